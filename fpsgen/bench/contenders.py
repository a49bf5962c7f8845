"""fpsgen as a contender: with a preset, or with one kernel for dense attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from fpsgen import pipeline
from fpsgen.attention import dense, door
from fpsgen.bench.dense_kernels import KERNELS
from fpsgen.pipeline import Event, Request
from fpsgen.presets import BF16, Plans, Preset, file
from fpsgen.target import Target
from fpsgen.timing import Timings
from fpsgen.weights.models import Model


@dataclass(frozen=True)
class Outline:
    """What a contender runs, as a record has it.

    told: in a few words. plans: attention at each step; None where another program decides. density: the share of
    token pairs that are computed, as the mean over steps and layers. backends: the names of what computes
    self-attention. preset: as `presets.file` writes one.
    """

    told: str
    plans: list[Plans] | None = None
    density: float | None = None
    backends: tuple[str, ...] = ()
    preset: dict[str, Any] | None = None


@dataclass(frozen=True)
class Ours:
    """fpsgen with a preset. name: as the user gave it. kernel: the one of `KERNELS` that computes dense
    attention; None for the one that `generate` runs."""

    name: str
    preset: Preset
    kernel: str | None = None

    def refusal(self, model: Model, target: Target) -> str | None:
        """Why it cannot run here; None where it can."""
        if self.kernel is None:
            return None
        return KERNELS[self.kernel].refusal(target.device, target.dtype, model.config.head_dim)

    def running(self) -> AbstractContextManager[None]:
        """Attention inside is this contender's."""
        return nullcontext() if self.kernel is None else dense.using(KERNELS[self.kernel].load())

    def outline(self, request: Request, model: Model, device: torch.device) -> Outline:
        """What it runs there; UsageError where the preset does not fit the video."""
        plans = pipeline.schedule(replace(request, preset=self.preset), model)
        each = [plan for layers in plans for plan in layers]
        density = sum(plan.density for plan in each) / len(each)
        backends = {door.choose(device, plan, model.config.head_dim).name for plan in set(each)}
        if self.kernel is not None:
            backends = backends - {"dense"} | {self.kernel}
        what = "dense attention" if self.preset.is_exact else f"preset {self.preset.name}, density {density:.2f}"
        told = f"{what}, by {', '.join(map(door.told, sorted(backends)))}"
        preset = None if self.preset is BF16 else file.as_dict(self.preset)
        return Outline(told, plans, density, tuple(sorted(backends)), preset)

    def run(self, request: Request, model: Model, target: Target, timings: Timings) -> Iterator[Event]:
        """The video, as `pipeline.generate` makes it."""
        with self.running():
            yield from pipeline.generate(
                replace(request, preset=self.preset), model, target.device, target.dtype, target.text_dtype, timings,
                tolerant=True,
            )  # fmt: skip
