"""`--compare steps:K`: the same video with fewer steps, by `fpsgen bench` and by `fpsgen bench quality`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fpsgen.sampling import Denoiser
from tests.tools.bench import EXACT, HALVES, Bench
from tests.tools.bench_quality import Quality
from tests.tools.cli import invoke
from tests.tools.videos import read

INT8 = EXACT + 'qk = "int8"\npv = "fp8"\n'


@pytest.fixture
def bench(pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Bench(pocket_folder, tmp_path)


def test_fewer_steps_are_the_video_that_generate_makes_with_them(bench: Bench, tmp_path: Path) -> None:
    """In INT8, as the preset is; bf16 with all steps is what both are measured against."""
    result = bench.run(preset=bench.preset(HALVES), compare="steps:2", pairs=1, seed=3, videos="videos")
    assert result.exit_code == 0, result.output
    assert "not calibrated" not in "".join(line for line in result.stderr.splitlines() if "steps:2" in line)
    record = json.loads((tmp_path / "out.json").read_text())
    ours, bf16, fewer = record["contenders"]
    assert (record["reference"], bf16["name"], fewer["name"]) == ("bf16", "bf16", "steps:2")
    assert [one["steps"] for one in (ours, bf16, fewer)] == [record["video"]["steps"]] * 2 + [2] == [3, 3, 2]
    assert [len(run["steps"]) for run in (fewer["cold"], *fewer["warm"])] == [2, 2]
    assert fewer["told"].startswith("2 steps, dense attention, q and k in INT8")
    (phase,) = fewer["phases"]
    assert (phase["first"], phase["last"], phase["density"]) == (1, 2, 1.0)
    assert phase["split"] is not None
    assert len(ours["phases"]) == len(bf16["phases"]) == 2
    assert fewer["fidelity"]["latent_error"] > 0
    assert fewer["speedup"]["denoise"]["median"] > 0
    assert "steps:2" in (tmp_path / "out.html").read_text()
    bench.preset(INT8, "int8.toml")
    chosen = ("--model", bench.folder, "--res", "96x64", "--seed", 3, "--steps", 2, "--preset", "int8.toml")
    invoke("a cat surfing", *chosen, "-o", "own.mp4")
    (video,) = (tmp_path / "videos").glob("3-steps*.mp4")
    assert (read(tmp_path / "own.mp4")[1] == read(video)[1]).all()


def test_all_steps_of_a_preset_that_is_dense_in_int8_are_what_it_computes(bench: Bench) -> None:
    record = bench(preset=bench.preset(INT8), compare="sdpa,steps:3", pairs=0)
    ours, sdpa, same = record["contenders"]
    assert record["reference"] == "sdpa"  # no bf16 is added where something else has all steps
    assert same["fidelity"] == ours["fidelity"]
    assert 0 < ours["fidelity"]["latent_error"] < 0.1
    assert sdpa["fidelity"] is None
    assert same["backends"] == ["reference"]


def test_steps_round_nothing_where_the_preset_rounds_nothing(bench: Bench) -> None:
    windows = HALVES.replace('qk = "int8"\npv = "fp8"\n', "")
    record = bench(preset=bench.preset(windows), compare="steps:3,steps:1", pairs=0)
    _, bf16, same, one = record["contenders"]
    assert same["fidelity"]["identical"]
    assert same["backends"] == bf16["backends"] == [record["tried"][0]["name"]]
    assert one["fidelity"]["latent_error"] > 0
    assert (same["told"][:8], one["told"][:7]) == ("3 steps,", "1 step,")


@pytest.mark.parametrize(
    "name", ["steps:0", "steps:-2", "steps:", "steps:1.5", "steps:x", "steps:99999", "steps:02", "steps: 2", "steps:4"]
)
def test_what_is_no_number_of_steps_is_refused(bench: Bench, loads: list[str], name: str) -> None:
    result = bench.run(preset=bench.preset(HALVES), compare=name)  # of three steps
    assert result.exit_code == 2, result.output
    assert f"--compare {name} " in " ".join(result.stderr.split())
    assert "steps:3" in result.stderr or "steps:13" in result.stderr  # what to write
    assert not loads


def test_clips_with_fewer_steps_are_kept(quality: Quality, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    real = Denoiser.run
    monkeypatch.setattr(
        Denoiser, "run", lambda own, *given, **named: (steps.append(own.settings.steps), real(own, *given, **named))[1]
    )
    record = quality.record("--compare", "steps:2", "--steps", 3)
    ours, bf16, fewer = record["contenders"]
    assert (record["reference"], fewer["name"], fewer["steps"]) == ("bf16", "steps:2", 2)
    assert [one["steps"] for one in (ours, bf16)] == [3, 3]
    assert steps == [3, 3, 2] * 2
    assert all(clip["fidelity"]["latent_error"] > 0 for clip in fewer["clips"])
    assert not any("dense-int8" in note for note in record["notes"])
    steps.clear()
    assert quality.record("--compare", "steps:2", "--steps", 3)["contenders"][2]["fidelity"] == fewer["fidelity"]
    assert not steps
    quality.record("--compare", "steps:1,steps:2", "--steps", 3)
    assert steps == [1, 1]
    assert "--compare steps:4" in quality.refused("--compare", "steps:4", "--steps", 3)
    assert "--compare steps:x" in quality.refused("--compare", "steps:x")
