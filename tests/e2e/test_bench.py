"""`fpsgen bench`: who ran, in which order, how long each phase took, how near the frames are."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from fpsgen.attention import dense, reference
from fpsgen.bench import steps
from fpsgen.bench.dense_kernels import DenseKernel
from fpsgen.timing import STAGES
from fpsgen.wan import vae as wan_vae
from tests.tools.bench import EXACT, HALVES, Bench
from tests.tools.bench import bench as bench_cli
from tests.tools.disk import fill_disk
from tests.tools.videos import read


@pytest.fixture
def bench(pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Bench(pocket_folder, tmp_path)


def of(record: dict, name: str) -> dict[str, Any]:
    return next(one for one in record["contenders"] if one["name"] == name)


def test_the_preset_and_bf16_run_there_and_back(bench: Bench) -> None:
    preset = bench.preset(HALVES)
    record = bench(preset=preset, compare="bf16")
    assert record["kind"] == "compare"
    assert [one["name"] for one in record["contenders"]] == [str(preset), "bf16"]
    assert record["order"] == [str(preset), "bf16", "bf16", str(preset)]
    assert record["reference"] == "bf16"
    assert record["command"][0] == "fpsgen"
    for one in record["contenders"]:
        assert len(one["warm"]) == 2
        for run in (one["cold"], *one["warm"]):
            # What is between the phases are events that nobody draws.
            assert sum(run[name] for name in STAGES) == pytest.approx(run["total"], rel=0.02, abs=0.02)
            assert len(run["steps"]) == 3


def test_a_video_that_a_bench_replaces_is_named(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "2-bf16.mp4").write_bytes(b"mine")
    told = bench.run("--no-report", preset=bench.preset(HALVES), compare="bf16", pairs=0, videos=tmp_path / "videos")
    notes = [line for line in told.stderr.splitlines() if "will replace" in line]
    assert notes == [f"note: {tmp_path / 'videos' / '2-bf16.mp4'} exists: the new video will replace it"]


def test_fidelity_is_that_of_the_videos(bench: Bench, tmp_path: Path) -> None:
    preset = bench.preset(HALVES)
    record = bench(preset=preset, compare="bf16", pairs=0, videos=tmp_path / "videos")
    assert of(record, "bf16")["fidelity"] is None
    told = of(record, str(preset))["fidelity"]
    assert not told["identical"]
    assert 0 < told["latent_error"] < 1
    assert told["latent_cosine"] == pytest.approx(1 - told["latent_error"])
    assert 5 < told["psnr"] < 60
    assert 0 < told["ssim"] < 1
    assert told["nonfinite"] == 0
    ours, exact = (read(tmp_path / "videos" / f"{name}.mp4")[1] for name in ("1-mine.toml", "2-bf16"))
    assert ours.shape == exact.shape
    assert (ours != exact).any()


def test_a_preset_that_is_dense_is_identical_to_torchs_own_kernel(bench: Bench) -> None:
    record = bench(preset=bench.preset(EXACT), compare="sdpa", pairs=0)
    told = record["contenders"][0]["fidelity"]
    assert told["identical"]
    assert told["psnr"] is None
    assert told["ssim"] == told["latent_cosine"] == 1


def test_each_phase_of_the_preset_has_its_steps(bench: Bench) -> None:
    record = bench(preset=bench.preset(HALVES), compare="bf16", steps=6, shift=1, pairs=1)
    for one, densities in zip(record["contenders"], ([1.0, 1 / 6], [1.0, 1.0]), strict=True):
        first, second = one["phases"]
        assert (first["first"], first["last"], second["first"], second["last"]) == (1, 2, 3, 6)
        assert [first["density"], second["density"]] == pytest.approx(densities)
        assert first["sigma"][0] == pytest.approx(1, abs=2e-3)
        assert first["sigma"][1] == second["sigma"][0] > second["sigma"][1] == 0
        for phase in (first, second):
            assert phase["step"] > 0
            assert all(phase["split"][part] >= 0 for part in ("attention", "linear", "rest"))


def test_the_chosen_kernel_computes_the_self_attention_and_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = DenseKernel.load

    def counted(kernel: DenseKernel) -> dense.Kernel:
        def call(*given: Any) -> Any:
            calls.append(kernel.name)
            return real(kernel)(*given)

        return call

    monkeypatch.setattr(DenseKernel, "load", counted)
    record = bench(preset=bench.preset(HALVES), compare="sdpa-math", pairs=0)
    tried = 1
    # Two layers, three steps and one more whose parts are timed; guidance branches run in one batch.
    timed = len(calls) - tried - 2 * 3
    assert timed > 0
    assert set(calls) == {"sdpa-math"}
    assert of(record, "sdpa-math")["backends"] == ["sdpa-math"]


def test_a_sleep_in_a_phase_is_in_that_phase_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = wan_vae.to_uint8
    monkeypatch.setattr(wan_vae, "to_uint8", lambda piece: (time.sleep(0.8), real(piece))[1])
    record = bench(preset=bench.preset(EXACT), compare="sdpa", pairs=0)
    for one in record["contenders"]:
        assert one["median"]["decode"] > 2.4  # three pieces
        # Those take tenths of a second here, whatever else the machine does.
        assert all(one["median"][name] < 2.4 for name in ("load", "text", "denoise", "encode"))


def test_a_broken_plan_shows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = bench.preset(HALVES)
    sound = of(bench(preset=preset, compare="sdpa", pairs=0), str(preset))["fidelity"]
    real = reference.attention
    monkeypatch.setattr(reference, "attention", lambda q, k, v, plan: -real(q, k, v, plan))
    broken = of(bench(preset=preset, compare="sdpa", pairs=0), str(preset))["fidelity"]
    assert broken["latent_error"] > 3 * sound["latent_error"]
    assert broken["psnr"] < sound["psnr"] - 1


def test_diffusers_is_compared_on_the_same_noise_levels(bench: Bench) -> None:
    record = bench(preset=bench.preset(EXACT), compare="diffusers", prompt="a zebra cat", pairs=0, dtype="fp32")
    told = record["contenders"][0]
    assert told["fidelity"]["psnr"] is None or told["fidelity"]["psnr"] >= 50
    assert record["contenders"][1]["told"].startswith("WanPipeline of diffusers")
    assert record["contenders"][1]["phases"][0]["split"] is None


def test_what_a_person_sees(bench: Bench, tmp_path: Path) -> None:
    result = bench.run(preset=bench.preset(HALVES), compare="bf16,sdpa-math", pairs=1)
    assert result.exit_code == 0, result.output
    for told in ("denoise", "speed-up", "PSNR", "latent cosine", "sdpa-math", "bf16 (float32)", "out.json", "out.html"):
        assert told in result.output
    record = json.loads((tmp_path / "out.json").read_text())
    assert [one["name"] for one in record["contenders"]][1:] == ["bf16", "sdpa-math"]
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")
    again = bench.run("--no-report", preset=bench.preset(HALVES), compare="sdpa", pairs=0)
    assert again.exit_code == 0, again.output  # a record of ours is replaced


def test_the_cache_is_not_touched(bench: Bench, tmp_path: Path) -> None:
    bench(preset=bench.preset(HALVES), pairs=0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"compare": "nobody"}, "there is no preset or kernel of that name"),
        ({"compare": "bf16,"}, "--compare has an empty value"),
        ({"compare": "fa3"}, "fa3 cannot run here: not installed"),
        ({"compare": "diffusers", "guidance": 0.5}, "diffusers uses guidance only above 1"),
        ({"compare": "diffusers", "solver": "fastwan"}, "diffusers does not have the solver fastwan"),
        ({"compare": "steps:2", "solver": "fastwan"}, "--steps 2: the solver fastwan has 3 steps"),
        ({"compare": "flex"}, "flex cannot run here: it is for CUDA GPUs"),
        ({"compare": "mine.toml"}, "is compared with itself"),
        ({"preset": "nothing"}, "there is no preset 'nothing'"),
        ({"output": "out.txt"}, "a record is a .json file"),
        ({"output": "."}, "a record is a .json file"),
        ({"output": "other.json"}, "no bench wrote it"),
        ({"report": "page.txt"}, "is no name of a report"),
        ({"videos": "other.json"}, "cannot be written"),
        ({"random-weights": "7b", "model": None}, "there are no shapes of that name"),
        ({"random-weights": "14b"}, "contradict each other"),
        ({"random-weights": "14b", "model": None, "prompt": "a cat"}, "leave --prompt out"),
        ({"random-weights": "14b", "model": None, "vae": "vae.pth"}, "leave --vae out"),
        ({"random-weights": "i2v-14b", "model": None}, "begins with an image"),
        ({"steps": 0}, "--steps 0"),
    ],
)
def test_refusals_before_anything_loads(
    bench: Bench, tmp_path: Path, loads: list[str], options: dict[str, object], told: str
) -> None:
    bench.preset(HALVES)
    (tmp_path / "other.json").write_text("{}")
    result = bench.run(**({"preset": "mine.toml"} | options))
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.output.split())
    assert not loads
    assert (tmp_path / "other.json").read_text() == "{}"
    assert not (tmp_path / "out.json").exists()


def test_stopped_while_the_report_is_drawn_the_record_is_there(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fpsgen.report.write", stop)
    result = bench.run(preset=bench.preset(HALVES), pairs=0)
    assert result.exit_code == 130
    assert "stopped while the report was drawn" in result.output
    assert "Fidelity to bf16" in result.output
    assert json.loads((tmp_path / "out.json").read_text())["kind"] == "compare"


@pytest.mark.parametrize("suffix", [".json", ".html"])
def test_results_outlive_a_disk_that_is_full(bench: Bench, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Whichever file finds no room: first the tables, or the object with the record in it, then the reason."""
    fill_disk(monkeypatch, suffix)
    preset = bench.preset(HALVES)
    result = bench.run(preset=preset, pairs=0)
    assert (result.exit_code, "inside fpsgen" in result.output) == (1, False), result.output
    assert "Fidelity to bf16" in result.stdout
    assert result.stderr.count("No space left on device") == 1
    assert ("out.json is written, but then: the report" in " ".join(result.stderr.split())) == (suffix == ".html")
    result = bench.run("--json", preset=preset, pairs=0)
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert len(record["contenders"]) == 2
    assert (record["record"] is None, record["report"]) == (suffix == ".json", None)
    assert "No space left on device" in record["unwritten"]


def test_no_record_is_replaced_in_silence(bench: Bench, tmp_path: Path) -> None:
    preset, base = bench.preset(HALVES), f"bench-{bench.folder.name}-mine.toml"
    for name in (base, f"{base}-2"):
        result = bench.run("--no-report", preset=preset, pairs=0, output=None)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == f"{name}.json"
        assert "is replaced" not in result.stderr
    again = bench.run("--no-report", preset=preset, pairs=0, output=f"{base}.json")
    assert again.exit_code == 0
    assert f"{base}.json is replaced: the record of an earlier bench" in " ".join(again.stderr.split())


def test_every_key_of_a_record_is_documented(bench: Bench) -> None:
    record = bench(preset=bench.preset(HALVES), compare="bf16", pairs=1)
    for told in ("card", "preset"):  # a card's and a preset's own keys are told elsewhere
        record.pop(told, None)
    for one in record["contenders"]:
        one.pop("preset")
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text()
    assert sorted(keys(record) - {"record", "report"} - set(re.findall(r"`(\w+)`", page))) == []


def keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys(own) for own in value.values()))
    return set().union(*(keys(own) for own in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("solver", ["euler", "dpm++"])
def test_diffusers_with_every_solver(bench: Bench, solver: str) -> None:
    record = bench(preset=bench.preset(EXACT), compare="diffusers", pairs=0, dtype="fp32", solver=solver)
    told = record["contenders"][0]["fidelity"]
    assert told["identical"] or told["psnr"] >= 50


def test_values_that_are_not_finite_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "attention", lambda q, k, v, plan: v * float("nan"))
    preset = bench.preset(HALVES)
    record = bench(preset=preset, compare="sdpa", pairs=0)
    assert of(record, str(preset))["fidelity"]["nonfinite"] > 0
    assert 0 <= of(record, str(preset))["fidelity"]["ssim"] < 1
    refused = bench.run(preset=bench.preset(EXACT, "exact.toml"), compare=preset, pairs=0)
    assert refused.exit_code == 1
    assert "the reference, has" in refused.output


def test_a_step_that_cannot_be_taken_apart_costs_no_record(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(steps, "by_span", fail)
    record = bench(preset=bench.preset(HALVES), compare="sdpa", pairs=0)
    assert record["contenders"][0]["phases"][0]["split"] is None
    assert any("out of memory" in note for note in record["notes"])


def test_a_name_is_no_markup(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "[").mkdir()
    bench.preset(HALVES, "[/x].toml")
    result = bench.run("--no-report", preset="[/x].toml", compare="sdpa", pairs=0)
    assert result.exit_code == 0, result.output
    assert "[/x].toml" in result.output


def test_options_before_a_subcommand_are_refused() -> None:
    result = bench_cli("--model", "pocket", "quality")
    assert result.exit_code == 2
    assert "--model stands before quality" in result.output


def test_a_pipe_is_no_place_for_a_record(bench: Bench, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.json")
    result = bench.run(preset=bench.preset(HALVES))
    assert result.exit_code == 2
    assert "is not a regular file" in result.output


def test_cold_runs_are_not_compared(bench: Bench) -> None:
    record = bench(preset=bench.preset(EXACT), compare="sdpa", pairs=0)
    assert [one["speedup"] for one in record["contenders"]] == [None, None]
