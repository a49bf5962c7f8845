"""What else could be had: the error-cost frontier around a calibrated schedule."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from fpsgen import metrics
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.calibrate import solve
from fpsgen.calibrate.budget import Tried
from fpsgen.calibrate.candidates import PRECISIONS, Candidates
from fpsgen.calibrate.job import Job
from fpsgen.calibrate.measurement import Measurement
from fpsgen.calibrate.record import Checked, FrontierPoint
from fpsgen.calibrate.solve import Problem
from fpsgen.errors import UsageError
from fpsgen.presets import BF16, cost, shipped
from fpsgen.presets.account import denoising_cost, stand_in
from fpsgen.solvers import FEW_STEPS
from fpsgen.wan.plan import StepPlan

# Points of the estimated frontier: prices of error, in the cost of denoising, from a tenth on, three in a power of ten.
_ESTIMATED, _LEAST_POWER, _PER_POWER = 24, -1, 3
_FEWER = (1.0, 1.5, 2.0)  # costs of fewer dense steps, in the schedule's


def points(job: Job, task: Problem, measurement: Measurement, tried: list[Tried]) -> list[FrontierPoint]:
    """Schedules that were verified, and estimates: of others along the frontier and, where attention was chosen, of
    uniform plans and of shipped presets. task: what was solved.

    Estimates are scaled by what the schedule that was taken came to over what it was estimated at, and end at 1.
    """
    taken = tried[-1]
    found = []
    for one in tried:
        error = metrics.mean_ci95([each.error for each in one.checked])[0]
        psnr = metrics.mean_ci95([each.psnr for each in one.checked])[0]
        found.append(FrontierPoint("calibrated", "", one.schedule.cost, error, psnr, True, one is taken))
    if not taken.schedule.error or not found[-1].error:
        return found  # there is nothing to scale estimates by
    scale = found[-1].error / taken.schedule.error
    branches = job.settings.branches
    known: set[float] = set()
    for power in range(_ESTIMATED):  # from where errors count for nothing to where they count for all
        solved = solve.at_price(task, 10 ** (_LEAST_POWER + power / _PER_POWER))
        if solved.cost not in known and solved.error > 0:
            known.add(solved.cost)
            found.append(FrontierPoint("calibrated", "", solved.cost, min(solved.error * scale, 1.0)))
    if "attention" not in job.choose:
        return found
    candidates, linear = job.candidates, cost.of_linear(*stand_in(job.model, job.tiles))
    for p, precision in enumerate(PRECISIONS):
        for c, own in enumerate(candidates.choices):
            if candidates.costs[p, c].isfinite() and precision != "bf16":
                error = float(measurement.errors[..., p, c].sum()) * scale
                total = cost.of_video(float(candidates.costs[p, c]), linear)
                point = FrontierPoint("uniform", f"{own}, {precision}", total, min(error, 1.0))
                found.append(point)
    for preset in map(shipped.load, shipped.names()):
        sizes = (None, (job.settings.width, job.settings.height))
        if shipped.size_of(preset) not in sizes or preset.tile not in (None, job.tiles.tile):
            continue
        try:
            plans = preset.steps(job.model, job.settings)
        except UsageError:  # for another model, or its windows do not fit
            continue
        if any(step != StepPlan(step.attention) for step in plans):
            continue  # of what steps reuse and of linear layers only schedules' own estimates are known
        if (error := estimate(measurement, plans, job) * scale) > 0:
            found.append(
                FrontierPoint("preset", preset.name, denoising_cost(plans, job.model, branches), min(error, 1.0))
            )
    return found


def fewer_steps(job: Job, plans: Sequence[StepPlan]) -> list[tuple[StepPlan, ...]]:
    """Dense steps in BF16 that cost as much as a schedule, and some more: what anyone can have without it."""
    dense = BF16.steps(job.model, job.settings)
    whole = denoising_cost(plans, job.model, job.settings.branches) * len(plans)
    counts = [max(1, math.floor(factor * whole + 1e-9)) for factor in _FEWER[: job.effort.rivals]]
    few = FEW_STEPS.get(job.settings.solver)
    least = few.fewest if few else 1
    return [dense[:count] for count in dict.fromkeys(counts) if least <= count < len(plans)]


def of_dense(job: Job, dense: Sequence[StepPlan], checked: Sequence[Checked]) -> FrontierPoint:
    """The point of fewer dense steps. checked: their clips."""
    (error, _), (psnr, _) = (metrics.mean_ci95([getattr(one, key) for one in checked]) for key in ("error", "psnr"))
    total = denoising_cost(dense, job.model, job.settings.branches) * len(dense) / job.settings.steps
    return FrontierPoint("dense", f"{len(dense)} steps", total, error, psnr, True)


def estimate(measurement: Measurement, plans: Sequence[StepPlan], job: Job) -> float:
    """The estimated error of any plans of each step; of what is no candidate, the nearest one in density, of its kind
    where there is one."""
    total = 0.0
    for phase in sorted(set(job.phase_of_step)):
        own = [step for step, at in zip(plans, job.phase_of_step, strict=True) if at == phase]
        for step, steps in Counter(own).items():  # of plans that change inside of a phase, the mean
            for layer, plan in enumerate(step.attention):
                error = _of_plan(measurement.errors[phase, layer], job.candidates, plan)
                total += error * steps / len(own)
    return total


def _of_plan(errors: torch.Tensor, candidates: Candidates, plan: AttentionPlan) -> float:
    """errors: [heads, precisions, choices] of one layer in one phase."""
    p, nearest = PRECISIONS.index(plan.qk), [_nearest(candidates, plan, own) for own in plan.key_tiles]
    of_heads = plan.heads or (0,) * len(errors)
    return sum(float(errors[head, p, nearest[own]]) for head, own in enumerate(of_heads))


def _nearest(candidates: Candidates, plan: AttentionPlan, own: KeyTiles) -> int:
    """The candidate that comes nearest to what some heads of a plan see."""
    wanted = plan.density_of(own)

    def far(choice: int) -> tuple[bool, float]:
        one = candidates.choices[choice]
        alike = (one.top is None, one.rest) == (own.top is None, own.rest)
        return not alike, abs(candidates.densities[choice] - wanted)

    if own in candidates.choices:
        return candidates.choices.index(own)
    return min(range(len(candidates.choices)), key=far)
