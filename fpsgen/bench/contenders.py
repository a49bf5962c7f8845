"""fpsgen as a contender: with a preset, or with one kernel for dense attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from fpsgen import pipeline
from fpsgen.attention import dense, door
from fpsgen.bench.dense_kernels import KERNELS
from fpsgen.events import Event
from fpsgen.presets import BF16, Preset, file
from fpsgen.request import Request, VideoPlan, resolve
from fpsgen.target import Target
from fpsgen.timing import Timings
from fpsgen.weights.models import Model


@dataclass(frozen=True)
class Outline:
    """What a contender runs, as a record has it.

    told: in a few words. plan: what its video comes to; None where another program decides. density: the share of
    token pairs that are computed, as the mean over steps and layers. backends: the names of what computes
    self-attention. preset: as `presets.file` writes one.
    """

    told: str
    plan: VideoPlan | None = None
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

    def outline(self, request: Request, model: Model, target: Target) -> Outline:
        """What it runs there; UsageError where the preset does not fit the video."""
        plan = resolve(replace(request, preset=self.preset), model, target)
        backends = {choice.name for choice in plan.backends.values()}
        if self.kernel is not None:
            backends = backends - {"dense"} | {self.kernel}
        what = "dense attention" if self.preset.is_exact else f"preset {self.preset.name}, density {plan.density:.2f}"
        told = f"{what}, by {', '.join(map(door.told, sorted(backends)))}"
        preset = None if self.preset is BF16 else file.as_dict(self.preset)
        return Outline(told, plan, plan.density, tuple(sorted(backends)), preset)

    def run(self, request: Request, model: Model, target: Target, timings: Timings) -> Iterator[Event]:
        """The video, as `pipeline.generate` makes it."""
        with self.running():
            yield from pipeline.generate([replace(request, preset=self.preset)], model, target, [timings])
