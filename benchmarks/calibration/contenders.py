"""Who is compared at each cost; `PROTOCOL.md` says why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from benchmarks.calibration.worker import Plans, job_for
from fpsgen.attention.plan import AttentionPlan, KeyTiles, Rest, fit
from fpsgen.calibrate import frontier, solve
from fpsgen.calibrate.job import Job, mean_cost, problem
from fpsgen.calibrate.measurement import Measurement
from fpsgen.calibrate.schedule import to_preset
from fpsgen.calibrate.solve import Axis
from fpsgen.presets import cost
from fpsgen.wan.config import WAN_14B
from fpsgen.wan.plan import StepPlan

STEPS = 20
LEVELS = {"high": 0.324, "middle": 0.259, "low": 0.146, "least": 0.080}
WITHOUT: dict[str, Axis] = {"without steps": "phase", "without layers": "layer", "without heads": "head"}
STARTS = (0, 1, 2, 4, 6)  # dense steps before a uniform plan
FEWER = (16, 13, 10)  # steps of a calibrated video
RESTS: tuple[Rest, ...] = get_args(Rest)
TRIED = 3  # uniform plans of each kind that are rendered, of those that the estimate puts first

# Errors of contenders on the calibration clips, means.
Trial = Callable[[list[Plans]], list[float]]


def attention_cost(job: Job, plans: Plans) -> float:
    """Of the whole video; dense BF16 attention in 20 steps is 1."""
    return mean_cost(job, plans) * len(plans) / STEPS


def video_cost(job: Job, plans: Plans) -> float:
    """The same, with linear layers."""
    linear = cost.of_linear(WAN_14B, job.candidates.tokens)
    return cost.of_video(mean_cost(job, plans), linear) * len(plans) / STEPS


def contenders_of(level: str, measurement: Measurement, trial: Trial) -> dict[str, Plans]:
    """All of one level, by name."""
    limit = LEVELS[level]
    job = job_for(limit)
    windows = torch.tensor([own.is_window for own in job.candidates.choices])
    found = {
        "calibrated": solved(job, measurement, limit),
        "windows alone": solved(job, measurement, limit, only=windows),
    }
    for name, axis in WITHOUT.items() if level != "least" else ():
        found[name] = solved(job, measurement, limit, tied=axis)
    for kind, every in (("top", uniform_tops(job, limit)), ("window", uniform_windows(job, limit))):
        likeliest = sorted(every, key=lambda name: frontier.estimate(measurement, every[name], job))[:TRIED]
        best = least(trial, {name: every[name] for name in likeliest})
        found[f"dense start, then {kind}: {best}"] = every[best]
    once = cost.of_plan(AttentionPlan(job.tiles, qk="int8", pv="fp8"), job.candidates.tokens)
    steps = max(2, math.floor(limit / once * STEPS + 1e-9))
    found[f"fewer steps: {steps}"] = (dense(job),) * steps
    fewer = {str(steps): solved(job_for(limit, steps), measurement, limit * STEPS / steps) for steps in FEWER}
    best = least(trial, fewer)
    found[f"calibrated, fewer steps: {best}"] = fewer[best]
    return found


def least(trial: Trial, every: dict[str, Plans]) -> str:
    """Which errs least on the calibration clips."""
    errors = trial(list(every.values()))
    return min(zip(errors, every, strict=True))[1]


def solved(
    job: Job, measurement: Measurement, limit: float, tied: Axis | None = None, only: Tensor | None = None
) -> Plans:
    """The schedule of least estimated error whose attention costs at most `limit` a step; only: which choices there
    are."""
    task = dataclasses.replace(problem(job, measurement), attention=1.0)
    if only is not None:
        task = dataclasses.replace(task, costs=task.costs.where(only, math.inf))
    if tied is not None:
        task = dataclasses.replace(task, tied=frozenset({tied}))
    schedule = solve.within_cost(task, limit)
    assert schedule is not None
    return to_preset(job, schedule).steps(job.model, job.settings)


def dense(job: Job) -> StepPlan:
    return StepPlan((AttentionPlan(job.tiles, qk="int8", pv="fp8"),) * job.model.config.num_layers)


def after_start(job: Job, start: int, own: KeyTiles) -> Plans:
    """The first steps dense, then the same key tiles everywhere, in INT8."""
    plan = AttentionPlan(job.tiles, (fit(own, job.tiles),), qk="int8", pv="fp8")
    then = StepPlan((plan,) * job.model.config.num_layers)
    return (dense(job),) * start + (then,) * (STEPS - start)


def uniform_tops(job: Job, limit: float) -> dict[str, Plans]:
    """For each start the largest share that the level allows."""
    tiles = len(job.tiles.valid)
    found = {}
    for start in STARTS:
        every = ((n, after_start(job, start, KeyTiles(top=n / tiles, rest="summary"))) for n in range(1, tiles))
        within = [(n, plans) for n, plans in every if attention_cost(job, plans) <= limit + 1e-9]
        if within:
            most, plans = max(within, key=lambda each: each[0])
            found[f"{start}, {100 * most / tiles:.0f} %"] = plans
    return found


def uniform_windows(job: Job, limit: float) -> dict[str, Plans]:
    """For each start and rest the window of the largest density that the level allows."""
    found = {}
    for start in STARTS:
        for rest in RESTS:
            every = {window: after_start(job, start, KeyTiles(window, rest=rest)) for window in job.tiles.windows[:-1]}
            within = [window for window in every if attention_cost(job, every[window]) <= limit + 1e-9]
            if within:
                window = max(within, key=job.tiles.density)
                told = "x".join(map(str, window)) + (" with summary" if rest == "summary" else "")
                found[f"{start}, {told}"] = every[window]
    return found
