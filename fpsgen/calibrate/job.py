"""What is calibrated, how much is measured for it, and what follows from that alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from fpsgen import assets
from fpsgen.attention.tiles import TileGrid
from fpsgen.calibrate.budget import Budget
from fpsgen.calibrate.candidates import Candidates
from fpsgen.calibrate.solve import Problem
from fpsgen.presets import Phase, Preset, cost
from fpsgen.settings import Settings
from fpsgen.wan.plan import StepPlan, StepSpan
from fpsgen.weights.models import Model

_LEAST_STEPS = 2  # in a phase, where the trajectory has that many


@dataclass(frozen=True)
class Effort:
    """clips: prompts that the model is measured on; probed: those of them on which sensitivities are; checks: prompts
    behind them that the schedule is verified on; steps: of the measured trajectories; phases: of the schedule; layers:
    how many of them are probed, those between by interpolation; tiles: of queries, for each layer and phase; rounds: of
    verification, at most. look, decode: time of looking into a step, and of decoding a clip, in a step's, for the time
    that is left."""

    clips: int
    probed: int
    checks: int
    steps: int
    phases: int
    layers: int
    tiles: int
    rounds: int
    look: float
    decode: float


# The pocket model: minutes on two cores. Wan2.1: at most what three BF16 clips take, verification included.
EFFORT = {
    "pocket": Effort(
        clips=4, probed=4, checks=8, steps=20, phases=10, layers=6, tiles=12, rounds=6, look=10, decode=12
    ),
    "wan": Effort(clips=2, probed=1, checks=1, steps=10, phases=4, layers=3, tiles=6, rounds=4, look=1, decode=0.5),
}


def spans(settings: Settings, count: int) -> list[StepSpan]:
    """`count` phases of nearly equally many steps of the measured trajectory, ended halfway between two noise levels,
    rounded to 4 digits."""
    steps, sigmas = settings.steps, settings.noise_levels
    begins = [round(index * steps / count) for index in range(count)] + [steps]
    ends = [1.0] + [round((sigmas[at - 1] + sigmas[at]) / 2, 4) for at in begins[1:-1]] + [0.0]
    pairs = zip(begins, begins[1:], ends, ends[1:], strict=False)
    return [StepSpan(first, after - 1, (high, low)) for first, after, high, low in pairs]


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
    name: of the preset."""

    model: Model
    settings: Settings
    effort: Effort
    budget: Budget
    prompts: tuple[str, ...]
    seed: int
    name: str

    @cached_property
    def tiles(self) -> TileGrid:
        return self.model.tiles(self.settings.latent_shape)

    @cached_property
    def candidates(self) -> Candidates:
        tokens = cost.STAND_IN_TOKENS if self.model.pocket else self.tiles.tokens
        return Candidates(self.tiles, tokens)

    @cached_property
    def phases(self) -> list[StepSpan]:
        return spans(replace(self.settings, steps=self.effort.steps), self.effort.phases)

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
            WorkPart("verification, BF16", clip, self.round),
            WorkPart("verification, a round", clip, self.round),
        ]

    @property
    def work(self) -> float:
        """The work of all parts."""
        return sum(part.work for part in self.parts)

    @property
    def round(self) -> float:
        """The work of one round of verification."""
        return self.effort.checks * (self.settings.steps + self.effort.decode)


def problem(job: Job, errors: Tensor) -> Problem:
    """What is to be solved, with nothing tied. errors: a measurement's."""
    # The video may have more steps than the measured trajectory: its cost is what a budget is about.
    steps = torch.tensor(job.phase_of_step).bincount(minlength=len(job.phases)).double()
    return Problem(errors, job.candidates.costs, steps / steps.sum())


def mean_cost(job: Job, plans: Sequence[StepPlan]) -> float:
    """The cost of the video's attention, where dense BF16 attention's is 1."""
    tokens = job.candidates.tokens
    return fmean(cost.of_plan(plan, tokens) for step in plans for plan in step.attention)
