"""`fpsgen calibrate`: what it writes, what it keeps when it is stopped, and what it refuses before it begins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fpsgen.calibrate import frontier
from fpsgen.calibrate.trajectory import Renderer
from fpsgen.cli import app
from fpsgen.errors import RenderError
from fpsgen.presets import file
from fpsgen.wan.plan import UNROUNDED
from tests.tools.calibration import Calibrator, forwards
from tests.tools.cli import invoke, told
from tests.tools.disk import fill_disk


def test_a_preset_that_generate_uses(calibrator: Calibrator, pocket_folder: Path, tmp_path: Path) -> None:
    result = calibrator("--min-psnr", 40)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "my.toml")
    assert f"use it   fpsgen generate PROMPT --preset {tmp_path / 'my.toml'}" in result.stdout
    preset = file.read(tmp_path / "my.toml", "my.toml")
    of = preset.measured
    assert of is not None
    assert preset.about == "calibrated for --min-psnr 40"
    assert (preset.model, preset.tile) == ("pocket", (2, 2, 2))
    assert (of.size, of.frames, of.steps, of.shift, of.guidance, of.clips) == ("96x64", 9, 4, 3.0, 3.0, 1)
    assert of.psnr >= 40
    assert of.psnr == of.psnr_worst
    assert "ci95" not in (tmp_path / "my.toml").read_text(encoding="utf-8"), "one clip has no interval"
    assert 0 < of.error < 0.1
    assert of.device == "cpu"
    assert of.torch == torch.__version__
    assert 0 < of.density < 1
    made = invoke(
        "a cat", "--model", pocket_folder, "--steps", 4, "--seed", 1, "--preset", tmp_path / "my.toml", "-o",
        tmp_path / "v.mp4", "--json",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "preset" not in made.stderr
    assert json.loads(made.stdout)["preset"]["measured"]["psnr"] == of.psnr
    assert json.loads(made.stdout)["attention"]["density"] == pytest.approx(of.density, abs=1e-4)
    other = invoke(
        "a cat", "--model", pocket_folder, "--frames", 5, "--steps", 2, "--preset", tmp_path / "my.toml", "-o",
        tmp_path / "w.mp4",
    )  # fmt: skip
    assert other.exit_code == 0, other.output
    said = " ".join(other.stderr.split())
    assert said.count("my.toml was measured") == 1
    assert "9 frames, 4 steps" in said  # and not 96x64, which is the same


def test_what_it_says_is_what_generate_makes(calibrator: Calibrator, pocket_folder: Path, tmp_path: Path) -> None:
    """The PSNR, from videos that `generate` makes of the verified prompt and seed: raw frames, before the encoder."""
    calibrator.preset("--target-cost", 0.2)
    frames: dict[str, list[np.ndarray]] = {"bf16": [], "my.toml": []}
    for preset, kept in frames.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fpsgen.video.VideoWriter.write", lambda _, data, kept=kept: kept.append(data.copy()))
            patch.setattr("fpsgen.video.VideoWriter.close", lambda _: None)
            invoke(
                "a dog surfing", "--model", pocket_folder, "--steps", 4, "--seed", 1, "--preset", preset,
                "-o", tmp_path / "v.mp4",
            )  # fmt: skip
    exact, ours = (np.concatenate(kept).astype(np.float64) for kept in frames.values())
    assert exact.shape == (9, 64, 96, 3)
    of = file.read(tmp_path / "my.toml", "my.toml").measured
    assert of is not None
    assert of.psnr == pytest.approx(10 * np.log10(255**2 / ((ours - exact) ** 2).mean()), abs=0.006)
    assert of.cost <= 0.2


def test_the_same_command_gives_the_same_bytes(calibrator: Calibrator, monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrator.preset("--min-psnr", 45)
    calls = forwards(monkeypatch)
    assert calibrator.preset("--min-psnr", 45) == first
    assert not calls, "all was kept"
    assert calibrator.preset("--min-psnr", 45, "--fresh") == first
    assert len(calls) > 20


def test_another_budget_costs_verification_alone(calibrator: Calibrator, monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrator.preset("--target-cost", 0.5)
    calls = forwards(monkeypatch)
    assert calibrator.preset("--target-cost", 0.2) != first
    assert 0 < len(calls) <= 4
    calls.clear()
    assert calibrator.preset("--target-cost", 0.5) == first
    assert not calls


def test_other_settings_are_measured_anew(calibrator: Calibrator, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrator.preset("--target-cost", 0.5)
    calls = forwards(monkeypatch)
    others: list[dict[str, object]] = [{"seed": 1}, {"guidance": 4}, {"clips": 2}]
    for settings in others:
        calls.clear()
        calibrator.preset("--target-cost", 0.5, **settings)
        assert len(calls) > 15


@pytest.mark.slow  # one process that is killed stands for it
def test_stopped_anywhere_it_goes_on_from_there(calibrator: Calibrator, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = forwards(monkeypatch)
    whole = calibrator.preset("--target-cost", 0.3)
    wanted = len(calls)
    real, left = Renderer.velocity, 0

    def stopping(*args: Any) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return real(*args)

    # In the trajectory, between layers, in a phase, in BF16's verification, in the last step of all.
    for at in (1, 3, 7, 12, 17, wanted):
        (calibrator.directory / "my.toml").unlink()
        monkeypatch.setenv("FPSGEN_CACHE_DIR", str(calibrator.directory / f"cache{at}"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Renderer, "velocity", stopping)
            left = at
            assert "stopped; what was measured is kept" in calibrator.refused("--target-cost", 0.3, code=130)
        calls.clear()
        assert calibrator.preset("--target-cost", 0.3) == whole
        assert len(calls) == wanted - (at - 1), "it computes what is left, and nothing twice"


def test_stopped_with_fresh_it_says_how_to_go_on(calibrator: Calibrator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very same command would forget once more."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Renderer, "velocity", stop)
    assert "run the same command again:" in calibrator.refused(code=130)
    assert "run the same command without --fresh:" in calibrator.refused("--fresh", code=130)


def test_a_process_that_is_killed(calibrator: Calibrator) -> None:
    """Politely, as `kill` and a batch system do."""
    command = [
        sys.executable,
        "-m",
        "fpsgen",
        "calibrate",
        *map(str, calibrator.args("--no-report", "--target-cost", 0.3)),
    ]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (begun := list((calibrator.directory / "cache").glob("*/*/measure0-step1.piece"))):
        assert time.monotonic() < end
        assert process.poll() is None, "it ended too early"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopped; what was measured is kept" in said
    assert not list(calibrator.directory.glob("*.toml"))
    assert not list(begun[0].parent.glob(".*")), "a half-written piece"
    with pytest.MonkeyPatch.context() as patch:
        calls = forwards(patch)
        resumed = calibrator.preset("--target-cost", 0.3)
        left = len(calls)
        assert calibrator.preset("--target-cost", 0.3, "--fresh") == resumed
        assert left <= len(calls) - left - 2, "two steps were kept"


@pytest.mark.parametrize(
    ("choose", "has"),
    [
        ("attention", {"attention"}),
        ("linear", {"linear"}),
        ("guidance,compute", {"guidance", "compute"}),
        ("guidance, compute,linear,attention", {"attention", "linear", "guidance", "compute"}),
    ],
)
def test_nothing_else_is_chosen(calibrator: Calibrator, tmp_path: Path, choose: str, has: set[str]) -> None:
    """And what is chosen is in the file, as far as a low cost needs it."""
    cost = {"attention": 0.4, "linear": 0.96, "guidance,compute": 0.3}.get(choose, 0.1)
    record = told(calibrator("--target-cost", cost, "--json", choose=choose, steps=8), "calibrate")
    steps = file.read(tmp_path / "my.toml", "my.toml").phases
    found = set()
    for phase in steps:
        found |= {"attention"} if any(own.qk != "bf16" for own in (phase, *phase.layers)) else set()
        found |= {"linear"} if any(own.linear != UNROUNDED for own in (phase, *phase.layers)) else set()
        found |= {"guidance"} if phase.guidance != "full" else set()
        found |= {"compute"} if phase.compute != "full" else set()
    assert found <= has
    assert found
    assert record["denoising"] <= cost + 1e-4  # rounded to 4 digits
    assert len(record["steps_done"]) == 8


def test_what_fewer_dense_steps_do_as_well_is_not_written(
    calibrator: Calibrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost as much at most, and their clips are taken to be exact here."""
    real = frontier.of_dense
    monkeypatch.setattr(frontier, "of_dense", lambda *args: replace(real(*args), error=0.0))
    said = calibrator.refused("--target-cost", 0.5, steps=8, choose="attention")
    assert "3 dense steps cost no more than the schedule that was found, and are as close to bf16" in said
    assert "--steps 3" in said
    assert not list(tmp_path.glob("*.toml"))


def test_json(calibrator: Calibrator, tmp_path: Path) -> None:
    result = calibrator("--target-cost", 0.4, "--json", report=True)
    record = told(result, "calibrate")
    assert result.stdout.count("\n") == 1
    assert record["preset"] == str(tmp_path / "my.toml")
    assert record["report"] == str(tmp_path / "my.html")
    assert (tmp_path / "my.html").exists()
    assert record["budget"] == "--target-cost 0.4"
    assert record["cost"] <= 0.4
    assert [phase["steps"] for phase in record["phases"]] == ["1-2", "3-4"]
    assert sum(point["chosen"] for point in record["frontier"]) == 1
    json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told(calibrator("--target-cost", 0.4, "--json"))["report"] is None


def test_phases_are_told_in_steps_of_the_video(calibrator: Calibrator) -> None:
    """Where it has more than the measured trajectory's twenty."""
    record = told(calibrator("--target-cost", 0.4, "--json", steps=41))
    ends = [[int(end) for end in phase["steps"].split("-")] for phase in record["phases"]]
    assert len(ends) == 10
    assert [ends[0][0], ends[-1][-1]] == [1, 41]
    assert all(before[-1] + 1 == after[0] for before, after in pairwise(ends))
    assert record["cost"] <= 0.4


def test_the_preset_is_named_for_the_model(calibrator: Calibrator, tmp_path: Path) -> None:
    result = calibrator("--target-cost", 0.4, output=None)
    assert result.exit_code == 0, result.output
    assert (tmp_path / f"{calibrator.model.name}-calibrated.toml").exists()


def test_a_calibrated_preset_is_replaced_and_a_link_stays_one(calibrator: Calibrator, tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "my.toml").symlink_to(tmp_path / "presets" / "real.toml")
    first = calibrator.preset("--target-cost", 0.5)
    assert calibrator.preset("--target-cost", 0.2) != first
    assert (tmp_path / "my.toml").is_symlink()
    assert list((tmp_path / "presets").iterdir()) == [tmp_path / "presets" / "real.toml"]


def test_a_full_disk_at_the_end(calibrator: Calibrator, monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrator.preset("--target-cost", 0.5)
    fill_disk(monkeypatch, ".toml")
    said = calibrator.refused("--target-cost", 0.2, code=1)
    assert "my.toml cannot be written: No space left on device" in said
    assert "what was measured is kept" in said
    result = calibrator("--target-cost", 0.2, "--json")
    record = json.loads(result.stdout)
    assert (result.exit_code, record["preset"], record["report"]) == (1, None, None)
    assert "No space left on device" in record["unwritten"]
    told = calibrator("--target-cost", 0.2).stdout
    assert "cost     " in told
    assert "use it" not in told, "there is nothing to be used"
    monkeypatch.undo()
    assert (calibrator.directory / "my.toml").read_bytes() == first
    assert calibrator.preset("--target-cost", 0.2).decode() == record["toml"], "the object has the preset itself"


def test_a_report_that_cannot_be_written_leaves_the_preset_and_says_so(
    calibrator: Calibrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise RenderError("the report my.html could not be written: No space left on device")

    monkeypatch.setattr("fpsgen.report.write", full)
    result = calibrator("--target-cost", 0.5, report=True)
    assert result.exit_code == 1
    assert f"--preset {tmp_path / 'my.toml'}" in result.stdout
    said = " ".join(result.stderr.split())
    assert "my.toml is written, but then: the report my.html could not be written: No space left on device" in said
    result = calibrator("--target-cost", 0.5, "--json", report=True)
    record = json.loads(result.stdout)
    assert (result.exit_code, record["preset"], record["report"]) == (1, str(tmp_path / "my.toml"), None)


def test_without_a_name_a_free_one_is_taken(calibrator: Calibrator, tmp_path: Path) -> None:
    first, second = (f"{calibrator.model.name}-calibrated{more}.toml" for more in ("", "-2"))
    (tmp_path / first).write_text("mine")
    result = calibrator("--target-cost", 0.4, output=None)
    assert result.exit_code == 0, result.output
    assert (tmp_path / first).read_text() == "mine"
    assert result.stdout.splitlines()[-1] == second


def test_damaged_pieces_are_measured_anew(
    calibrator: Calibrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibrator.preset("--target-cost", 0.3)
    calls = forwards(monkeypatch)
    pieces = sorted((tmp_path / "cache").glob("*/*/*.piece"))
    for number, path in enumerate(pieces[1::2]):
        data = bytearray(path.read_bytes())
        path.unlink()
        match number % 4:
            case 0:
                path.write_bytes(data[: number * 7])
            case 1:
                data[-40] ^= 1  # of a number
                path.write_bytes(data)
            case 2:
                os.mkfifo(path)
            case 3:
                path.symlink_to(pieces[0])
    assert calibrator.preset("--target-cost", 0.3) == whole
    assert 0 < len(calls) < 30


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 1}, {"steps": 3}, {"guidance": 1}, {"frames": 1}, {"dtype": "bf16"}, {"clips": 3, "checks": 1},
        {"seed": 2**64 - 1},
    ],
)  # fmt: skip
def test_odd_settings(calibrator: Calibrator, settings: dict[str, object]) -> None:
    preset = file.parse(calibrator.preset("--target-cost", 0.6, **settings), "my.toml")
    assert preset.measured is not None
    assert preset.measured.cost <= 0.6
    assert 0 < preset.measured.psnr <= 100


def test_two_at_once(calibrator: Calibrator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run of the same job, from beginning to end, at every fifth step of the first."""
    real = Renderer.velocity
    count = 0
    inside = False

    def velocity(*args: Any) -> torch.Tensor:
        nonlocal count, inside
        count += 1
        if count % 5 == 1 and not inside:
            inside = True
            fresh = ["--fresh"] if count % 2 else []
            own = calibrator.args("--no-report", "--target-cost", 0.3, *fresh, output=tmp_path / "other.toml")
            result = CliRunner().invoke(app, ["calibrate", *map(str, own)])
            assert result.exit_code == 0, result.output
            inside = False
        return real(*args)

    monkeypatch.setattr(Renderer, "velocity", velocity)
    assert calibrator.preset("--target-cost", 0.3) == (tmp_path / "other.toml").read_bytes()
