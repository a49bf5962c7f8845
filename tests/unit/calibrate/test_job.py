"""Phases: without a gap from noise to video, each with the steps that it was measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from fpsgen.calibrate.job import EFFORT, defaults, phases_of, problem, spans
from fpsgen.calibrate.measurement import Measurement
from fpsgen.presets import Phase, Preset, file
from fpsgen.solvers import FEW_STEPS, Sigmas, Solver, SolverName
from tests.tools.calibration import VIDEO, small_job, wan_job


@pytest.mark.parametrize("solver", [name for name in get_args(SolverName) if name not in FEW_STEPS])
@pytest.mark.parametrize("sigmas", get_args(Sigmas))
@pytest.mark.parametrize("shift", [0.01, 0.5, 1.0, 3.0, 8.0, 100.0])
def test_each_step_is_in_the_phase_it_was_measured_for(solver: SolverName, sigmas: Sigmas, shift: float) -> None:
    for steps in (1, 2, 3, 4, 7, 10, 20):
        for count in {1, phases_of(steps, 10), phases_of(steps, 4), min(steps, 5)}:
            found = spans(replace(VIDEO, steps=steps, shift=shift, solver=solver, sigmas=sigmas), count)
            assert len(found) == count
            assert [found[0].sigma[0], found[-1].sigma[1]] == [1.0, 0.0]
            assert [own.sigma[0] for own in found[1:]] == [own.sigma[1] for own in found[:-1]]
            assert [step for own in found for step in range(own.first, own.last + 1)] == list(range(steps))
            assert max(own.steps for own in found) - min(own.steps for own in found) <= 1
            # Through a file, as a preset; phases that do not fall are refused there.
            phases = tuple(Phase(sigma=own.sigma) for own in found)
            preset = file.parse(file.text(Preset(name="p", phases=phases)).encode(), "p")
            for step, sigma in enumerate(Solver(steps, shift, solver, sigmas).sigmas[:-1].tolist()):
                (own,) = [number for number, span in enumerate(found) if span.first <= step <= span.last]
                assert preset.phases.index(preset.at(sigma)) == own


def test_phases_have_two_steps_where_there_are_two() -> None:
    assert [phases_of(steps, 10) for steps in (1, 2, 3, 4, 5, 19, 20, 50)] == [1, 1, 1, 2, 2, 9, 10, 10]
    assert phases_of(10, 4) == 4


@pytest.mark.parametrize("family", ["pocket", "1.3b", "14b"])
def test_defaults_suffice_for_themselves(family: str) -> None:
    effort, prompts = defaults(family)
    assert effort.clips + effort.checks <= len(prompts) == len(set(prompts))
    assert 1 <= effort.probed <= effort.clips
    assert effort.phases == phases_of(effort.steps, effort.phases)


@pytest.mark.parametrize("steps", [4, 5, 9, 50])
def test_a_budget_of_cost_counts_the_steps_of_the_video(pocket_folder: Path, steps: int) -> None:
    """Which may be more than the measured trajectory's: then the phases have other shares of them."""
    job = small_job(pocket_folder, settings=replace(VIDEO, steps=steps, shift=8.0))
    errors = torch.zeros(2, 2, 2, 3, len(job.candidates.choices), dtype=torch.float64)
    weights = problem(job, Measurement(errors, errors.sum((2, 3, 4)))).weights
    end = job.phases[0].sigma[1]
    first = sum(sigma > end for sigma in job.settings.noise_levels)
    assert weights.tolist() == [first / steps, 1 - first / steps]


def test_wan_has_as_many_steps_as_its_video() -> None:
    job = wan_job("14b", 1280, 720, EFFORT["wan"])
    assert len(job.phase_of_step) == 50
    assert job.phase_of_step == sorted(job.phase_of_step)
    assert set(job.phase_of_step) == set(range(4))
