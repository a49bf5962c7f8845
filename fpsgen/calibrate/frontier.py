"""What else could be had: the error-cost frontier around a calibrated schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from fpsgen import metrics
from fpsgen.attention.plan import AttentionPlan
from fpsgen.calibrate import solve
from fpsgen.calibrate.budget import Tried
from fpsgen.calibrate.candidates import PRECISIONS, Candidates
from fpsgen.calibrate.job import Job, mean_cost, problem
from fpsgen.calibrate.measure import Measurement
from fpsgen.calibrate.record import FrontierPoint
from fpsgen.errors import UsageError
from fpsgen.presets import shipped
from fpsgen.wan.plan import StepPlan

_ESTIMATED = 24  # points of the estimated frontier


def points(job: Job, measurement: Measurement, tried: list[Tried]) -> list[FrontierPoint]:
    """Schedules that were verified, and estimates: of others along the frontier, of uniform plans, of shipped presets.

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
    task = problem(job, measurement.errors)
    low, high = float(job.candidates.costs.min()) + 0.01, 1.0
    for index in range(_ESTIMATED):
        at = low * (high / low) ** (index / (_ESTIMATED - 1))
        if (solved := solve.within_cost(task, at)) and solved.error > 0:
            found.append(FrontierPoint("calibrated", "", solved.cost, min(solved.error * scale, 1.0)))
    candidates = job.candidates
    for p, precision in enumerate(PRECISIONS):
        for w, window in enumerate(candidates.windows):
            if candidates.costs[p, w].isfinite() and precision != "bf16":
                name = f"{'x'.join(map(str, window))} {precision}"
                error = float(measurement.errors[..., p, w].sum()) * scale
                found.append(FrontierPoint("uniform", name, float(candidates.costs[p, w]), min(error, 1.0)))
    for preset in map(shipped.load, shipped.names()):
        sizes = (None, (job.settings.width, job.settings.height))
        if shipped.size_of(preset) not in sizes or preset.tile not in (None, job.tiles.tile):
            continue
        try:
            plans = preset.steps(job.model, job.settings)
        except UsageError:  # for another model, or its windows do not fit
            continue
        if (error := estimate(measurement, plans, job) * scale) > 0:
            found.append(FrontierPoint("preset", preset.name, mean_cost(job, plans), min(error, 1.0)))
    return found


def estimate(measurement: Measurement, plans: Sequence[StepPlan], job: Job) -> float:
    """The estimated error of any plans of each step; of windows that are no candidates, the nearest in density."""
    total = 0.0
    for phase in sorted(set(job.phase_of_step)):
        own = [step for step, at in zip(plans, job.phase_of_step, strict=True) if at == phase]
        for step, steps in Counter(own).items():  # of plans that change inside of a phase, the mean
            for layer, plan in enumerate(step.attention):
                error = _of_plan(measurement.errors[phase, layer], job.candidates, plan)
                total += error * steps / len(own)
    return total


def _of_plan(errors: torch.Tensor, candidates: Candidates, plan: AttentionPlan) -> float:
    """errors: [heads, precisions, windows] of one layer in one phase."""
    p, densities = PRECISIONS.index(plan.qk), torch.tensor(candidates.densities)
    total = 0.0
    for head in range(len(errors)):
        window = plan.windows[plan.heads[head] if plan.heads else 0]
        full = window or candidates.tiles.counts
        if full in candidates.windows:
            w = candidates.windows.index(full)
        else:
            w = int((densities - candidates.tiles.density(window)).abs().argmin())
        total += float(errors[head, p, w])
    return total
