"""What is calibrated, how much is measured for it, and what follows from that alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from fpsgen import assets
from fpsgen.attention.tiles import TileGrid
from fpsgen.calibrate.budget import Budget
from fpsgen.calibrate.candidates import EVERYTHING, LINEAR_PROBES, LINEARS, PRECISIONS, Candidates, Choice
from fpsgen.calibrate.measurement import Measurement
from fpsgen.calibrate.solve import Problem
from fpsgen.calibrate.ways import Ways
from fpsgen.presets import Phase, Preset, cost
from fpsgen.presets.account import stand_in
from fpsgen.settings import Settings
from fpsgen.wan.plan import MOST_REUSED, StepPlan, StepSpan
from fpsgen.weights.models import Model

_LEAST_STEPS = 2  # in a phase, where the trajectory has that many
_APART = 2e-6  # a noise level and the end of a phase, at least: more than `Preset.at` takes for rounding


@dataclass(frozen=True)
class Effort:
    """clips: prompts that the model is measured on; probed: those of them on which sensitivities are; checks: prompts
    behind them that the schedule is verified on; steps: of the measured trajectories; phases: of the schedule; layers:
    how many of them are probed, those between by interpolation; tiles: of queries, for each layer and phase; rounds: of
    verification, at most; rivals: how many videos of fewer dense steps are compared with the schedule. look, decode:
    time of looking into a step, and of decoding a clip, in a step's, for the time that is left."""

    clips: int
    probed: int
    checks: int
    steps: int
    phases: int
    layers: int
    tiles: int
    rounds: int
    rivals: int
    look: float
    decode: float


# The pocket model: minutes on two cores. Wan2.1: at most what five BF16 clips take, verification included, and three
# where only attention may be chosen; fewer dense steps, which are compared with the schedule, come on top.
EFFORT = {
    "pocket": Effort(
        clips=4, probed=4, checks=8, steps=20, phases=10, layers=6, tiles=12, rounds=6, rivals=3, look=10, decode=12
    ),
    "wan": Effort(
        clips=2, probed=1, checks=1, steps=10, phases=4, layers=3, tiles=6, rounds=4, rivals=1, look=1, decode=0.5
    ),
}


def spans(settings: Settings, count: int) -> list[StepSpan]:
    """`count` phases of nearly equally many steps of a trajectory, ended halfway between two noise levels, rounded to 4
    digits, or to as many as keep it between them. None is of two experts: one more there may be for that."""
    steps, sigmas, high = settings.steps, settings.noise_levels, settings.high_steps
    parts = [(0, steps, count)]
    if 0 < high < steps:
        of_high = max(1, min(count - 1, round(count * high / steps)))
        parts = [(0, high, of_high), (high, steps, max(1, count - of_high))]
    begins = [first + round(n * (end - first) / many) for first, end, many in parts for n in range(many)] + [steps]

    def end(at: int) -> float:
        boundary = settings.boundary
        if boundary is not None and at == high and sigmas[at - 1] > boundary + _APART:
            return boundary
        return _between(sigmas[at - 1], sigmas[at])

    ends = [1.0] + [end(at) for at in begins[1:-1]] + [0.0]
    pairs = zip(begins, begins[1:], ends, ends[1:], strict=False)
    return [StepSpan(first, after - 1, (above, below)) for first, after, above, below in pairs]


def _between(high: float, low: float) -> float:
    middle = (high + low) / 2
    return next(
        (end for digits in range(4, 9) if low + _APART < (end := round(middle, digits)) < high - _APART), middle
    )


def defaults(family: str) -> tuple[Effort, tuple[str, ...]]:
    """How much is measured, and the prompts, where the user says nothing."""
    return EFFORT["pocket" if family == "pocket" else "wan"], assets.prompts("calibrate", family)


def phases_of(steps: int, most: int) -> int:
    """How many phases a trajectory of so many steps is divided into."""
    return max(1, min(most, steps // _LEAST_STEPS))


@dataclass(frozen=True)
class WorkPart:
    """steps: of all guidance branches that are computed; work: their time and what is done beside them, in a step's."""

    name: str
    steps: int
    work: float


@dataclass(frozen=True)
class Job:
    """What is calibrated. prompts: enough for effort.clips and, behind them, effort.checks; seeds count from `seed`.
    name: of the preset. choose: of what."""

    model: Model
    settings: Settings
    effort: Effort
    budget: Budget
    prompts: tuple[str, ...]
    seed: int
    name: str
    choose: frozenset[Choice] = EVERYTHING

    @cached_property
    def tiles(self) -> TileGrid:
        return self.model.tiles(self.settings.latent_shape)

    @cached_property
    def candidates(self) -> Candidates:
        return Candidates(self.tiles, stand_in(self.model, self.tiles)[1])

    @cached_property
    def costs(self) -> Tensor:
        """Of the candidates that may be chosen, of attention; the others' are infinite."""
        dense = torch.arange(len(PRECISIONS))[:, None] == PRECISIONS.index("bf16")
        return self.candidates.costs if "attention" in self.choose else self.candidates.costs.where(dense, math.inf)

    @cached_property
    def linear_costs(self) -> Tensor:
        """Of the `LINEARS` that may be chosen, where 16-bit linear layers have cost 1."""
        config, tokens = stand_in(self.model, self.tiles)
        every = torch.tensor([cost.of_linear(config, tokens, own) for own in LINEARS], dtype=torch.float64)
        return every / every[0] if "linear" in self.choose else torch.ones(1, dtype=torch.float64)

    @property
    def attention_share(self) -> float:
        """Of dense attention, in the cost of a step; the rest is linear layers'."""
        return 1 / (1 + cost.of_linear(*stand_in(self.model, self.tiles)))

    @property
    def least_cost(self) -> float:
        """The cost of the cheapest schedule that there is, whatever it errs by."""
        steps, share = self.settings.steps, 1.0
        if "compute" in self.choose:
            share *= math.ceil(steps / (MOST_REUSED + 1)) / steps
        if "guidance" in self.choose:
            share /= self.settings.branches
        return share * (
            self.attention_share * float(self.costs.min()) + (1 - self.attention_share) * float(self.linear_costs.min())
        )

    @cached_property
    def phases(self) -> list[StepSpan]:
        return spans(replace(self.settings, steps=self.effort.steps), self.effort.phases)

    @cached_property
    def steps(self) -> list[StepSpan]:
        """Each step of the video."""
        return spans(self.settings, self.settings.steps)

    @cached_property
    def phase_of_step(self) -> list[int]:
        """For each step of the video, the number of its phase, as `generate` will find it."""
        phases = tuple(Phase(sigma=span.sigma) for span in self.phases)
        preset = Preset(name=self.name, phases=phases)
        return [phases.index(preset.at(sigma)) for sigma in self.settings.noise_levels]

    @property
    def parts(self) -> list[WorkPart]:
        """What there is to do until the first round of verification is done, in that order."""
        own, phases, clip = self.effort, self.phases, self.effort.checks * self.settings.steps
        probes = own.probed * (len(phases) * own.layers + sum(own.steps - span.first for span in phases))
        return [
            WorkPart("dense trajectories", own.clips * own.steps, own.clips * own.steps),
            WorkPart("candidates", 0, own.clips * len(phases) * own.look),
            WorkPart("sensitivities", probes, probes),
            *(WorkPart(name, own.probed * steps, own.probed * steps) for name, steps in self._others if steps),
            WorkPart("verification, BF16", clip, self.round),
            WorkPart("verification, a round", clip, self.round),
        ]

    @property
    def _others(self) -> list[tuple[str, int]]:
        """The steps of what is measured beside attention, for each probed clip."""
        phases = len(self.phases)
        linear = len(LINEAR_PROBES) * phases * self.effort.layers if "linear" in self.choose else 0
        reused = 2 * phases + self.settings.steps if self.choose & {"guidance", "compute"} else 0
        return [("linear layers", linear), ("reused steps", reused)]

    @property
    def work(self) -> float:
        """The work of all parts."""
        return sum(part.work for part in self.parts)

    @property
    def round(self) -> float:
        """The work of one round of verification."""
        return self.effort.checks * (self.settings.steps + self.effort.decode)


def problem(job: Job, measured: Measurement) -> Problem:
    """What is to be solved, with nothing tied."""
    counts, choose = torch.tensor(job.phase_of_step).bincount(minlength=len(job.phases)).double(), job.choose
    return Problem(
        measured.errors,
        job.costs,
        # The video may have more steps than the measured trajectory: its cost is what a budget is about.
        counts / counts.sum(),
        linear_errors=measured.linear if "linear" in choose else None,
        linear_costs=job.linear_costs if "linear" in choose else None,
        attention=job.attention_share,
        ways=_ways(job, measured) if choose & {"guidance", "compute"} else None,
    )


def _ways(job: Job, measured: Measurement) -> Ways:
    """Of the choices that the job allows."""
    reused, counts = measured.reused, torch.tensor(job.phase_of_step).bincount(minlength=len(job.phases))
    assert reused is not None
    return Ways(
        tuple(job.phase_of_step),
        tuple(job.settings.noise_levels),
        # An error in all steps of a phase is that of one, so many times.
        measured.probed.sum(1) / reused.change.clamp(min=1e-300) / counts.clamp(min=1),
        reused.alone / reused.change.clamp(min=1e-300),
        reused.velocities if "compute" in job.choose else None,
        reused.differences if "guidance" in job.choose else None,
        job.settings.high_steps,
    )


def mean_cost(job: Job, plans: Sequence[StepPlan]) -> float:
    """The cost of the video's attention, where dense BF16 attention's is 1."""
    tokens = job.candidates.tokens
    return fmean(
        step.share(job.settings.branches) * cost.of_plan(plan, tokens) for step in plans for plan in step.attention
    )
