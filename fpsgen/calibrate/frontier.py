"""What else could be had: the error-cost frontier around a calibrated schedule."""

from __future__ import annotations

from collections import Counter

import torch

from fpsgen import metrics
from fpsgen.attention.plan import AttentionPlan
from fpsgen.calibrate import solve
from fpsgen.calibrate.budget import Tried
from fpsgen.calibrate.candidates import PRECISIONS, Candidates
from fpsgen.calibrate.job import Job, mean_cost, problem, step_plans
from fpsgen.calibrate.measure import Measurement
from fpsgen.errors import UsageError
from fpsgen.presets import shipped
from fpsgen.wan.plan import StepPlan

_ESTIMATED = 24  # points of the estimated frontier


def points(job: Job, measurement: Measurement, tried: list[Tried]) -> list[dict]:
    """Schedules that were verified, and estimates: of others along the frontier, of uniform plans, of shipped presets.

    Estimates are scaled by what the schedule that was taken came to over what it was estimated at, and end at 1.
    """
    taken = tried[-1]
    found = []
    for one in tried:
        error = metrics.mean_ci95([each.error for each in one.checked])[0]
        psnr = metrics.mean_ci95([each.psnr for each in one.checked])[0]
        found.append(_point("calibrated", "", one.schedule.cost, error, psnr, True, one is taken))
    if not taken.schedule.error or not found[-1]["error"]:
        return found  # there is nothing to scale estimates by
    scale = found[-1]["error"] / taken.schedule.error
    task = problem(job, measurement.errors)
    low, high = float(job.candidates.costs.min()) + 0.01, 1.0
    for index in range(_ESTIMATED):
        at = low * (high / low) ** (index / (_ESTIMATED - 1))
        if (solved := solve.within_cost(task, at)) and solved.error > 0:
            found.append(_point("calibrated", "", solved.cost, solved.error * scale, None, False, False))
    candidates = job.candidates
    for p, precision in enumerate(PRECISIONS):
        for w, window in enumerate(candidates.windows):
            if candidates.costs[p, w].isfinite() and precision != "bf16":
                name = f"{'x'.join(map(str, window))} {precision}"
                error = float(measurement.errors[..., p, w].sum()) * scale
                found.append(_point("uniform", name, float(candidates.costs[p, w]), error, None, False, False))
    for preset in map(shipped.load, shipped.names()):
        if shipped.size_of(preset) not in (None, (job.settings.width, job.settings.height)):
            continue
        try:
            preset.check_family(job.model.family)
            plans = step_plans(job, preset)
        except UsageError:  # for another model, or its windows do not fit
            continue
        if preset.tile not in (None, job.tiles.tile):
            continue
        error = estimate(measurement, candidates, plans, job) * scale
        if error > 0:
            found.append(_point("preset", preset.name, mean_cost(job, plans), error, None, False, False))
    return found


def estimate(measurement: Measurement, candidates: Candidates, plans: list[StepPlan], job: Job) -> float:
    """The estimated error of any plans of each step; of windows that are no candidates, the nearest in density."""
    densities = torch.tensor(candidates.densities)
    total = 0.0
    for phase in sorted(set(job.phase_of_step)):
        own = [step for step, at in zip(plans, job.phase_of_step, strict=True) if at == phase]
        for step, steps in Counter(own).items():  # of plans that change inside of a phase, the mean
            for layer, plan in enumerate(step.attention):
                error = _of_plan(measurement.errors[phase, layer], candidates, densities, plan)
                total += error * steps / len(own)
    return total


def _of_plan(errors: torch.Tensor, candidates: Candidates, densities: torch.Tensor, plan: AttentionPlan) -> float:
    """errors: [heads, precisions, windows] of one layer in one phase."""
    p = PRECISIONS.index(plan.qk)
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


def _point(kind: str, name: str, cost: float, error: float, psnr: float | None, measured: bool, chosen: bool) -> dict:
    return {
        "kind": kind, "name": name, "cost": cost, "error": error if measured else min(error, 1.0), "psnr": psnr,
        "measured": measured, "chosen": chosen,
    }  # fmt: skip
