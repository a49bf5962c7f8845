"""What is calibrated, and what follows from that alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fpsgen.attention.tiles import TileGrid
from fpsgen.calibrate.budget import Budget
from fpsgen.calibrate.candidates import Candidates
from fpsgen.calibrate.settings import Effort, PhaseSpan, spans
from fpsgen.presets import Phase, Preset, cost
from fpsgen.settings import Settings
from fpsgen.wan.plan import StepPlan

if TYPE_CHECKING:
    from fpsgen.calibrate.measure import Measurement
    from fpsgen.calibrate.solve import Problem, Schedule
    from fpsgen.weights.models import Model


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
        tokens = cost.STAND_IN_TOKENS if self.model.card else self.tiles.tokens
        return Candidates(self.tiles, tokens)

    @cached_property
    def phases(self) -> list[PhaseSpan]:
        return spans(replace(self.settings, steps=self.effort.steps), self.effort.phases)

    @cached_property
    def phase_of_step(self) -> list[int]:
        """For each step of the video, the number of its phase, as `generate` will find it."""
        phases = tuple(Phase(sigma=span.sigma) for span in self.phases)
        preset = Preset(name=self.name, phases=phases)
        return [phases.index(preset.at(sigma)) for sigma in self.settings.noise_levels]

    @property
    def work(self) -> float:
        """Steps of both guidance branches, or their time, until the first round is verified."""
        return sum(self.work_by_part.values())

    @property
    def work_by_part(self) -> dict[str, float]:
        """Of `work`, in the order in which it is done."""
        own, phases = self.effort, self.phases
        return {
            "dense trajectories": own.clips * own.steps,
            "candidates": own.clips * len(phases) * own.look,
            "sensitivities": own.probed * (len(phases) * own.layers + sum(own.steps - span.first for span in phases)),
            "verification, BF16": own.checks * (self.settings.steps + own.decode),
            "verification, a round": self.round,
        }

    @property
    def round(self) -> float:
        """Steps, or their time, of one more round of verification."""
        return self.effort.checks * (self.settings.steps + self.effort.decode)


def problem(job: Job, measurement: Measurement) -> Problem:
    """What is to be solved, with nothing tied."""
    import torch

    from fpsgen.calibrate.solve import Problem

    # The video may have more steps than the measured trajectory: its cost is what a budget is about.
    steps = torch.tensor(job.phase_of_step).bincount(minlength=len(job.phases)).double()
    return Problem(measurement.errors, job.candidates.costs, steps / steps.sum())


def to_preset(job: Job, solved: Schedule) -> Preset:
    """A schedule as a preset that says nothing of its quality yet."""
    from fpsgen.calibrate import schedule

    return schedule.preset(solved, job.candidates, job.phases, job.name, job.model.family)


def step_plans(job: Job, preset: Preset) -> list[StepPlan]:
    """What each layer does at each step of the video."""
    config = job.model.config
    return preset.schedule(job.settings.noise_levels, job.tiles, config.num_layers, config.num_heads)


def mean_cost(job: Job, plans: Sequence[StepPlan]) -> float:
    """The cost of the video's attention, where dense BF16 attention's is 1."""
    tokens = job.candidates.tokens
    return float(np.mean([[cost.of_plan(plan, tokens) for plan in step.attention] for step in plans]))


def mean_density(plans: Sequence[StepPlan]) -> float:
    """Share of token pairs that are computed, over steps, layers and heads."""
    return float(np.mean([[plan.density for plan in step.attention] for step in plans]))
