"""What else could be had: estimates of plans that were not solved for, and how far two videos are apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fpsgen import metrics
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.calibrate import frontier
from fpsgen.calibrate.budget import Budget, Tried
from fpsgen.calibrate.job import problem
from fpsgen.calibrate.measurement import Measurement
from fpsgen.calibrate.record import Checked
from fpsgen.calibrate.schedule import to_preset
from fpsgen.calibrate.solve import within_cost
from fpsgen.presets import Phase, Preset, shipped
from fpsgen.wan.plan import StepPlan
from tests.tools.calibration import VIDEO, small_job


def measurement(choices: int) -> Measurement:
    """Of two phases, layers and heads."""
    errors = torch.rand(2, 2, 2, 3, choices, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors[..., 0, -1] = 0
    return Measurement(errors, errors.sum((2, 3, 4)))


def test_estimates_of_any_plans(pocket_folder: Path) -> None:
    job = small_job(pocket_folder, replace(VIDEO, steps=8))
    of = measurement(len(job.candidates.choices))
    dense = StepPlan((AttentionPlan(job.tiles),) * 2)
    probe = StepPlan((job.candidates.plan(1, [0, 0]),) * 2)
    assert frontier.estimate(of, [dense] * 8, job) == 0
    everywhere = frontier.estimate(of, [probe] * 8, job)
    assert everywhere == pytest.approx(float(of.errors[..., 1, 0].sum()))
    # In half of the steps of each phase: half of that, wherever they lie in it.
    alternating = frontier.estimate(of, [dense, probe] * 4, job)
    counts = [job.phase_of_step.count(phase) for phase in (0, 1)]
    shares = [sum(own == phase for own in job.phase_of_step[1::2]) / counts[phase] for phase in (0, 1)]
    assert alternating == pytest.approx(sum(shares[i] * float(of.errors[i, ..., 1, 0].sum()) for i in (0, 1)))
    assert 0 < alternating < everywhere


@pytest.mark.parametrize(
    ("seen", "nearest"),
    [
        (KeyTiles(top=0.3, rest="summary"), KeyTiles(top=0.32, rest="summary")),
        (KeyTiles(top=0.3), KeyTiles(top=0.32)),
        (KeyTiles(top=0.001), KeyTiles(top=0.02)),
    ],
)
def test_of_what_is_no_candidate_the_nearest_of_its_kind(
    pocket_folder: Path, seen: KeyTiles, nearest: KeyTiles
) -> None:
    job = small_job(pocket_folder, replace(VIDEO, steps=8, width=480, height=320))
    of = measurement(len(job.candidates.choices))
    plan = StepPlan((AttentionPlan(job.tiles, (seen,), qk="int8", pv="fp8"),) * 2)
    found = float(of.errors[..., 1, job.candidates.choices.index(nearest)].sum())
    assert frontier.estimate(of, [plan] * 8, job) == pytest.approx(found)


def test_a_solved_schedule_is_estimated_as_it_was_solved(pocket_folder: Path) -> None:
    job = small_job(pocket_folder)
    of = measurement(len(job.candidates.choices))
    solved = within_cost(problem(job, of), 0.4)
    assert solved is not None
    plans = to_preset(job, solved).steps(job.model, job.settings)
    assert frontier.estimate(of, plans, job) == pytest.approx(solved.error)


@pytest.mark.parametrize(("tile", "shown"), [((2, 2, 2), True), (None, True), ((1, 2, 2), False)])
def test_a_shipped_preset_of_other_tiles_is_left_out(
    pocket_folder: Path, monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int, int] | None, shown: bool
) -> None:
    """Its windows may fit these tiles by chance, and would mean something else."""
    job = small_job(pocket_folder, budget=Budget("cost", 0.4))
    of = measurement(len(job.candidates.choices))
    phases = (Phase(sigma=(1.0, 0.0), window=(1, 1, 1), qk="int8", pv="fp8"),)
    monkeypatch.setattr(shipped, "names", lambda: ["theirs"])
    monkeypatch.setattr(shipped, "load", lambda name: Preset(name=name, phases=phases, tile=tile))
    solved = within_cost(problem(job, of), 0.4)
    assert solved is not None
    tried = Tried(solved, [Checked("a cat", 0, 0.01, 30.0)], True)
    points = frontier.points(job, problem(job, of), of, [tried])
    assert any(point.name == "theirs" for point in points) is shown
    assert [point.error for point in points if point.chosen] == [0.01]


def test_mean_square_is_exact() -> None:
    """Frame by frame as at once, and of differences in either direction."""
    rng = np.random.default_rng(0)
    ours, exact = (rng.integers(0, 256, (5, 16, 24, 3), dtype=np.uint8) for _ in range(2))
    assert metrics.mean_square(ours, exact) == float(((ours.astype(float) - exact) ** 2).mean())
    assert metrics.mean_square(exact, exact) == 0
    assert metrics.psnr(metrics.mean_square(np.zeros_like(ours), np.full_like(ours, 255))) == 0
