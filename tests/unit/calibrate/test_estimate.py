"""`--dry-run`: its arithmetic by hand, and its counts against what a calibration really computes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fpsgen.calibrate import estimate, frontier
from fpsgen.calibrate.budget import Budget
from fpsgen.calibrate.candidates import EVERYTHING, Choice
from fpsgen.calibrate.job import EFFORT as REAL
from fpsgen.calibrate.job import Job
from fpsgen.calibrate.run import Result, calibrate
from fpsgen.target import Target
from fpsgen.wan.plan import dense
from fpsgen.wan.transformer import WanTransformer
from tests.tools.calibration import ATTENTION, CPU, EFFORT, VIDEO, Recorder, small_job, wan_job


def run(job: Job, watcher: Recorder | None = None) -> Result:
    return calibrate(job, Target(CPU, torch.float32, torch.float32), watcher or Recorder())


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))


def test_14b_at_720p_by_hand() -> None:
    job = wan_job("14b", 1280, 720, REAL["wan"])
    parts = {part.name: part for part in estimate.parts(job)}
    # 2 clips of 10 steps, two guidance branches each.
    assert parts["dense trajectories"].forwards == 2 * 10 * 2
    # On one of them 3 layers in 4 phases, and the rest of the trajectory from the steps 0, 2, 5 and 8 on.
    assert parts["sensitivities"].forwards == (3 * 4 + 10 + 8 + 5 + 2) * 2
    assert parts["verification, BF16"].forwards == parts["verification, a round"].forwards == 50 * 2
    # Wan2.1's README: 1837.9 s for 50 steps on one H100. 5120 wide, 40 layers, FFN 13824; 21 x 45 x 80 tokens.
    tokens = 21 * 45 * 80
    once = 40 * (4 * 5120 * tokens**2 + 2 * tokens * (6 * 5120**2 + 2 * 5120 * 13824))
    assert estimate.forward_flops(job)[0] == once
    assert estimate.clip_seconds(job) == pytest.approx(1837.9, rel=0.01)
    assert parts["dense trajectories"].seconds == pytest.approx(0.4 * estimate.clip_seconds(job))
    # Scores and values of 6 tiles of 120 queries, three precisions, two branches, in 2 clips and 4 phases; for each of
    # 159 candidates two sums over 630 tiles, in float64.
    looked = 2 * 4 * 2 * 3 * 40 * 5120 * (6 * 120) * (4 * tokens + 8 * 159 * 630)
    assert parts["candidates"].seconds == pytest.approx(looked / 20e12)
    # A round at half of attention's cost: attention is 4.68 of 6.66 10^15 operations.
    saved = 40 * 4 * 5120 * tokens**2 / 2 / once
    assert parts["verification, a round"].seconds == pytest.approx((1 - saved) * estimate.clip_seconds(job))


@pytest.mark.parametrize(("choose", "clips"), [(ATTENTION, 3), (EVERYTHING, 5)])
def test_14b_at_720p_takes_no_more_than_some_clips(choose: frozenset[Choice], clips: int) -> None:
    """Without the fewer dense steps that the schedule is compared with, whose number it decides."""
    job = replace(wan_job("14b", 1280, 720, REAL["wan"]), choose=choose)
    assert sum(part.seconds for part in estimate.parts(job)) <= clips * estimate.clip_seconds(job)


@pytest.mark.parametrize("choose", [ATTENTION, EVERYTHING])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_as_many_forwards_as_there_are(
    pocket_folder: Path, monkeypatch: pytest.MonkeyPatch, guidance: float, choose: frozenset[Choice]
) -> None:
    forwards = 0
    real = WanTransformer.forward

    def counted(self: WanTransformer, latents: torch.Tensor, *rest: object) -> torch.Tensor:
        nonlocal forwards
        forwards += len(latents)  # a batch of both branches counts twice
        return real(self, latents, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(WanTransformer, "forward", counted)
    video, effort = replace(VIDEO, guidance=guidance), replace(EFFORT, clips=2, probed=1, checks=2)
    job = small_job(pocket_folder, video, effort, Budget("cost", 0.4), choose)  # one round
    steps = run(job).preset.steps(job.model, job.settings)
    branches = job.settings.branches
    # Steps that are dense at the beginning are not rendered again, and others only as far as the schedule says.
    same = next(i for i, step in enumerate(steps) if step != dense(job.tiles, 2))
    left = sum(1 - step.share(branches) for step in steps) + same
    wanted = sum(part.forwards for part in estimate.parts(job))
    assert forwards == wanted - left * effort.checks * branches


@pytest.mark.parametrize("budget", [Budget("cost", 0.3), Budget("psnr", 57.0), Budget("psnr", 20.0)])
def test_the_bar_ends_at_its_end(pocket_folder: Path, budget: Budget) -> None:
    """All work is told as done, in several rounds, and again where it was there already."""
    effort = replace(EFFORT, rivals=2, look=3, decode=5)
    job = small_job(pocket_folder, effort=effort, budget=budget, choose=EVERYTHING)
    for _ in range(2):
        watcher = Recorder()
        made = run(job, watcher)
        assert watcher.done == pytest.approx(watcher.wanted)
        assert watcher.stages == ["load", "measure", "verify"]
        rivals = frontier.fewer_steps(job, made.preset.steps(job.model, job.settings))
        work = sum(job.effort.checks * (len(own) + job.effort.decode) for own in rivals)
        assert watcher.wanted == job.work + (len(watcher.notes) - 1) * job.round + work
        assert len(watcher.notes) > 1 or budget.value != 57


def test_bytes_that_are_kept(pocket_folder: Path, tmp_path: Path) -> None:
    """Velocities and frames; their files have headers, and the rest is small."""
    job = small_job(pocket_folder, budget=Budget("cost", 0.3))
    run(job)
    kept = list((tmp_path / "cache").glob("*/*/*-step*.piece"))
    kept += (tmp_path / "cache").glob("*/*/*-frames.piece")
    assert len(kept) == 4 + 4 + 1
    size = sum(path.stat().st_size for path in kept)
    assert estimate.disk_bytes(job) < size < estimate.disk_bytes(job) + 200 * len(kept)


def test_a_table_without_windows(pocket_folder: Path) -> None:
    """One tile: dense in 8 bits is all there is, and it is found."""
    video = replace(VIDEO, width=32, height=16, frames=5)
    job = small_job(pocket_folder, video, budget=Budget("cost", 0.7))
    assert job.tiles.counts == (1, 1, 1)
    preset = run(job).preset
    assert preset.measured is not None
    assert preset.measured.density == 1
    prologue = 9 * 470e12 / (4 * 3.0e12) / 75_600
    assert 470 / 892 + prologue <= preset.measured.cost + 1e-4  # FP8's, rounded to 4 digits
    assert preset.measured.cost <= 470 / 882 + prologue + 1e-4  # INT8's
    assert math.isfinite(preset.measured.psnr)
