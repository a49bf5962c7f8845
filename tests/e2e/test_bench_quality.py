"""`fpsgen bench quality`: what it measures, what it keeps when it is stopped, and what it refuses before it begins."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fpsgen import experts, metrics, texts
from fpsgen.bench import quality as bench
from fpsgen.bench import vbench
from fpsgen.pocket.words import ASPECTS
from fpsgen.report import words
from fpsgen.sampling import Denoiser
from fpsgen.wan.transformer import WanTransformer
from tests.tools.bench_quality import ROUGH, Quality
from tests.tools.cli import invoke, told
from tests.tools.disk import fill_disk
from tests.tools.reports import Page

MEASURES = ("latent_cosine", "latent_error", "psnr", "ssim", "lpips")


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seed of each clip that is rendered."""
    seeds: list[int] = []

    def counted(denoiser: Denoiser, seed: int) -> Any:
        seeds.append(seed)
        return noise(denoiser, seed)

    noise = Denoiser.noise
    monkeypatch.setattr(Denoiser, "noise", counted)
    return seeds


# --- what it measures ----------------------------------------------------------------------------------


def test_the_measures_are_of_what_generate_makes(quality: Quality, pocket_folder: Path, tmp_path: Path) -> None:
    """PSNR and SSIM of every clip, from videos that `generate` makes of its prompt and seed: raw frames, before the
    encoder."""
    record = quality.record()
    ours, bf16 = record["contenders"]
    assert (ours["name"], bf16["name"], record["reference"]) == ("rough.toml", "bf16", "bf16")
    for clip in ours["clips"]:
        frames: dict[str, list[np.ndarray]] = {"bf16": [], "rough.toml": []}
        for preset, kept in frames.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fpsgen.video.VideoWriter.write", lambda _, data, kept=kept: kept.append(data.copy()))
                patch.setattr("fpsgen.video.VideoWriter.close", lambda _: None)
                invoke(
                    clip["prompt"], "--model", pocket_folder, "--seed", clip["seed"], "--preset", preset,
                    "-o", tmp_path / "v.mp4",
                )  # fmt: skip
        exact, made = (np.concatenate(kept) for kept in frames.values())
        assert exact.shape == (9, 64, 96, 3)
        apart = ((made.astype(np.float64) - exact) ** 2).mean()
        assert clip["fidelity"]["psnr"] == pytest.approx(10 * np.log10(255**2 / apart))
        assert clip["fidelity"]["ssim"] == pytest.approx(metrics.ssim(made, exact))
        assert clip["fidelity"]["nonfinite"] == 0
        assert not clip["fidelity"]["identical"]


def test_means_intervals_and_the_worst(quality: Quality) -> None:
    ours, bf16 = quality.record(seeds=2)["contenders"]
    assert [clip["seed"] for clip in ours["clips"]] == [7, 8, 9, 10]
    assert [clip["prompt"] for clip in ours["clips"]] == ["a cat surfing"] * 2 + ["a red dog on the sea"] * 2
    for measure, worst in zip(MEASURES[:4], (min, max, min, min), strict=True):
        values = [clip["fidelity"][measure] for clip in ours["clips"]]
        assert len(set(values)) == 4
        found = ours["fidelity"][measure]
        assert found["mean"] == pytest.approx(np.mean(values))
        # Student's t of three degrees of freedom.
        assert found["ci95"] == pytest.approx(3.18245 * np.std(values, ddof=1) / 2, rel=1e-5)
        assert found["worst"] == worst(values)
    assert (ours["identical"], ours["nonfinite"]) == (0, 0)
    assert 0 < ours["density"] < 0.2
    assert ours["backends"] == ["reference"]
    assert (bf16["fidelity"], bf16["identical"], bf16["nonfinite"], bf16["preset"]) == (None, None, None, None)
    assert [clip["fidelity"] for clip in bf16["clips"]] == [None] * 4
    assert (bf16["density"], bf16["backends"]) == (1.0, ["dense"])
    one = quality.record(prompts=_prompts("a cat"))["contenders"][0]
    assert not any("ci95" in told for told in one["fidelity"].values() if told), "one clip has no interval"


def test_a_preset_that_is_dense_is_identical(quality: Quality, rendered: list[int]) -> None:
    """And rendered on its own all the same."""
    record = quality.record("--compare", "bf16", preset="dense.toml")
    own = record["contenders"][0]
    assert own["identical"] == 2
    assert own["fidelity"]["psnr"] is None
    assert own["fidelity"]["latent_error"] == {"mean": 0.0, "ci95": 0.0, "worst": 0.0}
    assert own["fidelity"]["ssim"]["mean"] == pytest.approx(1, abs=1e-12)
    assert rendered == [7, 7, 8, 8]


def test_every_component_is_loaded_once(quality: Quality, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none beside another: each may need all the memory there is."""
    alive: list[str] = []
    order: list[str] = []

    class Watched:
        def __init__(self, name: str, load: Any, *args: Any):
            assert not alive, f"{name} is loaded beside {alive}"
            order.append(name)
            self.name, self.inner = name, load(*args)
            alive.append(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, *args: Any) -> Any:
            return self.inner(*args)

        def __del__(self) -> None:
            alive.remove(self.name)

    for module, name in ((texts, "load_text_encoder"), (experts, "load_transformer"), (bench, "load_vae")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, real=real: Watched(name, real, *args))
    quality.record(seeds=2)
    assert order == ["load_text_encoder", "load_transformer", "load_vae"]


def test_several_are_compared(quality: Quality, rendered: list[int]) -> None:
    record = quality.record("--compare", "dense.toml,bf16")
    assert [one["name"] for one in record["contenders"]] == ["rough.toml", "dense.toml", "bf16"]
    assert record["reference"] == "bf16"
    assert record["contenders"][1]["identical"] == 2
    assert len(rendered) == 6
    first = quality.record("--compare", "dense.toml")
    assert first["reference"] == "dense.toml"
    assert first["contenders"][0]["fidelity"]["psnr"] == record["contenders"][0]["fidelity"]["psnr"]
    assert len(rendered) == 6, "another --compare renders what is new"


def test_latents_that_are_not_finite(quality: Quality, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a preset they are counted, of the reference they end it."""
    real = WanTransformer.forward

    def broken(self: WanTransformer, latents: Any, timestep: Any, context: Any, plans: Any) -> torch.Tensor:
        out = real(self, latents, timestep, context, plans)
        if not plans.attention[0].is_dense:
            out = out.clone()
            out[:, 0, 0, 0, 0] = torch.nan
        return out

    monkeypatch.setattr(WanTransformer, "forward", broken)
    record = quality.record()
    own = record["contenders"][0]
    assert own["nonfinite"] == 2
    assert all(clip["fidelity"]["nonfinite"] > 0 for clip in own["clips"])
    assert own["fidelity"]["latent_cosine"]["mean"] < 0.5
    assert "rough.toml: 2 clips have latents that are not finite, taken for 0" in record["notes"]
    said = quality.refused("--compare", "rough.toml", code=1, preset="dense.toml")
    assert "the reference, rough.toml, gave values that are not finite" in said


def test_adherence_of_the_pocket_model_itself(quality: Quality) -> None:
    """At one step of its twenty, so that what it shows is anybody's guess; but it is asked."""
    wanted = {"subject": "cat", "motion": "surf"}
    for one in quality.record(model="pocket", steps=1, preset="fast", prompts=_prompts("a cat surfing"))["contenders"]:
        (clip,) = one["clips"]
        assert set(clip["shown"]) == set(ASPECTS)
        hits = {aspect: [int(clip["shown"][aspect] == wanted[aspect]), 1] for aspect in wanted}
        assert one["adherence"] == hits | {"scene": [0, 0]}


def test_other_sizes_are_not_judged(quality: Quality) -> None:
    record = quality.record()
    assert {one["adherence"] for one in record["contenders"]} == {None}
    assert "what the clips show is not judged" in " ".join(record["notes"])


# --- what it says --------------------------------------------------------------------------------------


def test_the_record_is_documented(quality: Quality) -> None:
    """Every key of a real record is named in its section of docs/bench.md, or in what all records share."""
    record = quality.record("--videos", "clips")
    record["contenders"][0]["vbench"] = dict.fromkeys(vbench.DIMENSIONS, 0.5)
    text = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    documented = sections["All of them"] + sections["`fpsgen bench quality`: the record"]
    documented += sections["`fpsgen bench`: the record"].partition("\nFidelity:\n")[2]
    theirs = {"preset", "machine", "adherence", "vbench"}  # whose keys are somebody else's to name

    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return {key for one in value for key in keys(one)}
        if not isinstance(value, dict):
            return set()
        return set(value) | {key for name, one in value.items() if name not in theirs for key in keys(one)}

    absent = {key for key in keys(record) if f"`{key}`" not in documented}
    assert not absent
    assert record["kind"] == "quality"
    assert record["format"] == 1
    assert record["prompts"] == ["a cat surfing", "a red dog on the sea"]
    assert (record["seeds"], record["seed"]) == (1, 7)
    assert record["machine"]["torch"] == torch.__version__


def test_json_and_the_table(quality: Quality, tmp_path: Path) -> None:
    result = quality("--no-report", "--json")
    record = told(result, "bench quality")
    assert record["record"] == "bench.json"
    assert record["report"] is None
    kept = json.loads(
        (tmp_path / "bench.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert kept["contenders"] == record["contenders"]
    assert result.stdout.count("\n") == 1
    shown = quality("--no-report").stdout
    assert "Fidelity to bf16 (float32)" in shown
    psnr = record["contenders"][0]["fidelity"]["psnr"]
    assert f"{words.number(psnr['mean'], half=psnr['ci95'])} (worst {words.number(psnr['worst'])})" in shown
    assert shown.splitlines()[-1] == "bench.json"


def test_a_report_beside_the_record(quality: Quality, tmp_path: Path) -> None:
    """With the first two of its clips, and the worst."""
    result = quality(report=None, seeds=2)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == ["bench.json", "bench.html"]
    page = Page((tmp_path / "bench.html").read_text(encoding="utf-8"))
    assert "rough.toml" in page.words
    assert "a red dog on the sea" in page.words
    record = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert [one["label"] for one in record["contenders"]] == ["rough.toml", "bf16 (float32)"]
    psnr = [clip["fidelity"]["psnr"] for clip in record["contenders"][0]["clips"]]
    worst = psnr.index(min(psnr))
    assert len(page.videos) == len(dict.fromkeys([0, 1, worst]))
    for number in {0, 1, worst}:
        assert f"clip {number + 1} of 4" in page.words
    [told] = re.findall(r"clip (\d) of 4, the one furthest", page.words)
    assert int(told) == worst + 1


def test_wans_clips_are_counted_before_the_start(quality: Quality, wan_folder: Path) -> None:
    result = quality("--no-report", model=wan_folder, res="96x64", frames=5, steps=1, seeds=2)
    assert result.exit_code == 0, result.output
    assert "2 prompts, 2 seeds each, 2 contenders: 8 clips of 1 step" in " ".join(result.stderr.split())


# --- what it keeps -------------------------------------------------------------------------------------


def test_stopped_anywhere_it_goes_on_from_there(
    quality: Quality, rendered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quality.record()
    assert len(rendered) == 4
    real, left = bench.Journal.put, 0

    def stopping(*args: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        kept = real(*args, **more)
        if left == 0:
            raise KeyboardInterrupt
        return kept

    for at in (1, 6):  # the fifth piece is the first that is measured
        monkeypatch.setenv("FPSGEN_CACHE_DIR", str(quality.directory / f"cache{at}"))
        (quality.directory / "bench.json").unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.Journal, "put", stopping)
            left = at
            said = quality.refused(code=130)
        assert "stopped; every finished clip and what was measured of it are kept" in said
        assert "run the same command again" in said
        assert not (quality.directory / "bench.json").exists()
        rendered.clear()
        assert quality.record()["contenders"] == whole["contenders"]
        assert len(rendered) == max(0, 4 - at), "it renders what is left, and nothing twice"
    rendered.clear()
    assert quality.record("--fresh")["contenders"] == whole["contenders"]
    assert len(rendered) == 4


def test_clips_are_found_again_after_the_model_was_installed_anew(
    quality: Quality, pocket_folder: Path, tmp_path: Path, rendered: list[int]
) -> None:
    quality.record()
    shutil.copytree(pocket_folder, tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.safetensors"):
        os.utime(path, (1, 1))
    before = len(rendered)
    quality.record(model=tmp_path / "again")
    assert len(rendered) == before
    weights = tmp_path / "again" / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    quality.record(model=tmp_path / "again")
    assert len(rendered) == 2 * before


def test_other_settings_are_rendered_anew(quality: Quality, rendered: list[int]) -> None:
    one = _prompts("a cat")
    quality.record(prompts=one)
    changes: list[dict[str, object]] = [{"steps": 3}, {"guidance": 2}, {"shift": 5}, {"seed": 8}, {"frames": 5}]
    for change in changes:
        rendered.clear()
        quality.record(prompts=one, **change)
        assert len(rendered) == 2, change


def test_a_preset_of_the_same_name_with_another_content(quality: Quality, rendered: list[int]) -> None:
    first = quality.record()
    (quality.directory / "rough.toml").write_text(ROUGH.replace("[1, 1, 1]", "[1, 1, 3]"))
    rendered.clear()
    second = quality.record()
    assert rendered == [7, 8]
    assert second["contenders"][0]["fidelity"] != first["contenders"][0]["fidelity"]


def test_results_outlive_a_disk_that_is_full(
    quality: Quality, rendered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, ".json")
    result = quality("--no-report")
    assert result.exit_code == 1
    assert "Fidelity to bf16" in result.stdout
    assert "bench.json cannot be written: No space left on device" in " ".join(result.stderr.split())
    assert "every clip is kept" in " ".join(result.stderr.split())
    result = quality("--no-report", "--json")
    assert (result.exit_code, len(rendered)) == (1, 4)
    record = json.loads(result.stdout)
    assert (record["record"], len(record["contenders"])) == (None, 2)


# --- what it refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        ((), {"preset": "nobody"}, "there is no preset 'nobody'"),
        (("--compare", "nobody"), {}, "--compare nobody: there is no preset or kernel of that name"),
        (("--compare", "diffusers"), {}, "bench quality compares presets and kernels"),
        (("--compare", "bf16,rough.toml"), {}, "--preset rough.toml is compared with itself"),
        ((), {"preset": "bf16"}, "--preset bf16 is compared with itself"),
        (("--compare", "steps:2"), {"preset": "bf16"}, "--preset bf16 is what fewer steps are measured against"),
        (("--compare", "bf16,,fast"), {}, "--compare has an empty value"),
        ((), {"preset": "even.toml"}, "preset even.toml, line 4: "),
        (("--seeds", 0), {}, "greater than or equal to 1"),
        ((), {"seed": -1}, "--seed -1: must be 0 to"),
        ((), {"res": "832x480"}, "the pocket model renders only 96x64"),
        ((), {"frames": 4}, "--frames 4: the number must be 4n + 1"),
        ((), {"prompts": "none.txt"}, "none.txt has no prompts"),
        ((), {"prompts": "absent.txt"}, "cannot read the prompts in absent.txt: No such file or directory"),
        ((), {"output": "my.txt"}, "-o my.txt: a record is a .json file"),
        ((), {"output": "theirs.json"}, "theirs.json exists, and no bench wrote it"),
        (("--report", "a.html"), {}, "--report and --no-report contradict each other"),
        (("--vbench",), {}, "--vbench judges videos, and none are kept"),
        (("--vbench-bin", "x"), {}, "--vbench-bin works only together with --vbench"),
        (("--vbench", "--videos", "v", "--vbench-bin", "x"), {}, "--vbench-bin x: there is no such program"),
        (("--videos", "none.txt"), {}, "--videos none.txt cannot be written"),
        ((), {"model": "no/such/model"}, "no/such/model"),
        ((), {"device": "abacus"}, "--device abacus: fpsgen runs on cpu and cuda"),
    ],
)
def test_refused_before_anything_loads(
    quality: Quality, given: tuple[object, ...], options: dict[str, object], told: str, loads: list[str]
) -> None:
    (quality.directory / "none.txt").write_text("# nothing\n")
    (quality.directory / "theirs.json").write_text('{"a": 1}')
    (quality.directory / "even.toml").write_text(ROUGH.replace("[1, 1, 1]", "[1, 1, 2]"))
    assert told in quality.refused(*given, **options)
    assert not loads


def test_a_cache_that_cannot_be_written(
    quality: Quality, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "file"))
    assert "cannot be written" in quality.refused(code=1)
    assert not loads


def _prompts(*lines: str) -> str:
    Path("own.txt").write_text("\n".join(lines))
    return "own.txt"
