"""Programs that make one and the same video: here fpsgen, with a preset or with one kernel for dense attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fpsgen import pipeline
from fpsgen.attention import dense, door
from fpsgen.bench.dense_kernels import DenseKernel
from fpsgen.bench.record import ContenderRecord
from fpsgen.events import Event
from fpsgen.presets import BF16, DENSE_INT8, file, label
from fpsgen.request import VideoPlan
from fpsgen.settings import Settings
from fpsgen.timing import Timings
from fpsgen.wan.plan import StepPlan


@dataclass(frozen=True)
class VideoContender:
    """fpsgen; `by_diffusers` has another program. name: as the user gave it. plan: the video, and how fpsgen makes it;
    the other program shares its request, model and target. All contenders have the same settings, but some have fewer
    steps. kernel: what computes dense attention; None for what `generate` runs."""

    name: str
    plan: VideoPlan
    kernel: DenseKernel | None = None

    @property
    def label(self) -> str:
        """The name in tables and pages."""
        return label(self.name, self.plan.target.dtype_name)

    @property
    def settings(self) -> Settings:
        return self.plan.request.settings

    @property
    def steps(self) -> tuple[StepPlan, ...]:
        """What each step computes; nothing where another program decides."""
        return self.plan.steps

    @cached_property
    def identity(self) -> str:
        """What its clips depend on besides what all contenders share; made once, because it names every step's plan."""
        return repr((self.name, self.steps, self.about().backends))[1:-1]

    def refusal(self) -> str | None:
        """Why it cannot run here; None where it can."""
        target, head_dim = self.plan.target, self.plan.model.config.head_dim
        return None if self.kernel is None else self.kernel.refusal(target.device, target.dtype, head_dim)

    def about(self) -> ContenderRecord:
        """What a record says of it."""
        preset, density = self.plan.preset, self.plan.density
        backends = {choice.name for choice in self.plan.backends.values()}
        if self.kernel is not None:
            backends = backends - {"dense"} | {self.kernel.name}
        what = preset.about if preset is DENSE_INT8 else f"preset {preset.name}, density {density:.2f}"
        what = "dense attention" if preset.is_exact else what
        steps = self.settings.steps
        return ContenderRecord(
            name=self.name, label=self.label, steps=steps,
            told=f"{steps} step{'s' * (steps > 1)}, {what}, by {', '.join(map(door.display_name, sorted(backends)))}",
            preset=None if preset is BF16 else file.as_dict(preset), density=density, backends=sorted(backends),
        )  # fmt: skip

    def running(self) -> AbstractContextManager[None]:
        """Inside, the model's self-attention is computed as this contender computes it."""
        return nullcontext() if self.kernel is None else dense.using(self.kernel.load())

    def run(self, output: Path, timings: Timings) -> Iterator[Event]:
        """The video, as `pipeline.generate` makes it."""
        request, model, target = replace(self.plan.request, output=output), self.plan.model, self.plan.target
        with self.running():
            yield from pipeline.generate([request], model, target, [timings], accept=True)
