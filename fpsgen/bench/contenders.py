"""Who can be compared: fpsgen with a preset, fpsgen with one kernel for dense attention, and diffusers' pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from statistics import median
from typing import Protocol

import torch

from fpsgen import machine, pipeline
from fpsgen.attention import dense, door
from fpsgen.bench.dense_kernels import KERNELS
from fpsgen.bench.names import DIFFUSERS, compared
from fpsgen.bench.stopwatch import Stopwatch
from fpsgen.errors import RenderError, UsageError
from fpsgen.pipeline import Event, Request
from fpsgen.presets import BF16, Plans, Preset, file, shipped
from fpsgen.timing import Timings
from fpsgen.weights.models import Model

_REPEATS = 5
_MOST_FLOPS = 2e11  # of a trial on a CPU, where one of 14B at 720p would take minutes


@dataclass(frozen=True)
class Outline:
    """What a contender runs. told: in a few words. plans: attention at each step, None where it is not ours to say, as
    backends, the names of what computes it, and preset, as `presets.file` writes one."""

    told: str
    plans: list[Plans] | None = None
    backends: tuple[str, ...] = ()
    preset: dict | None = None

    @property
    def density(self) -> float | None:
        """The share of token pairs that are computed, mean over steps and layers."""
        if self.plans is None:
            return None
        every = [plan.density for layers in self.plans for plan in layers]
        return sum(every) / len(every)


class Contender(Protocol):
    """Something that makes the video of a request; name: as the user gave it."""

    @property
    def name(self) -> str: ...

    def refusal(self, model: Model, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run here; None where it can."""
        ...

    def outline(self, request: Request, model: Model, device: torch.device) -> Outline:
        """What it runs there; UsageError where a preset does not fit."""
        ...

    def run(
        self,
        request: Request,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        text_dtype: torch.dtype,
        timings: Timings,
    ) -> Iterator[Event]:
        """As `pipeline.generate`."""
        ...  # fmt: skip


@dataclass(frozen=True)
class Ours:
    """fpsgen with a preset. kernel: of `KERNELS`, for its dense attention; None for what `generate` runs."""

    name: str
    preset: Preset
    kernel: str | None = None

    def refusal(self, model: Model, device: torch.device, dtype: torch.dtype) -> str | None:
        if self.kernel is None:
            return None
        return KERNELS[self.kernel].refusal(device, dtype, model.config.head_dim)

    def running(self) -> AbstractContextManager[None]:
        """Attention inside is this contender's."""
        return nullcontext() if self.kernel is None else dense.using(KERNELS[self.kernel].load())

    def outline(self, request: Request, model: Model, device: torch.device) -> Outline:
        plans = pipeline.schedule(replace(request, preset=self.preset), model)
        every = {plan for layers in plans for plan in layers}
        backends = {door.choose(device, plan, model.config.head_dim).name for plan in every}
        if self.kernel is not None:
            backends = backends - {"dense"} | {self.kernel}
        found = Outline("", plans, tuple(sorted(backends)), None if self.preset is BF16 else file.as_dict(self.preset))
        what = "dense attention" if self.preset.is_exact else f"preset {self.preset.name}, density {found.density:.2f}"
        return replace(found, told=f"{what}, by {', '.join(map(door.told, found.backends))}")

    def run(
        self, request: Request, model: Model, device: torch.device, dtype: torch.dtype, text_dtype: torch.dtype,
        timings: Timings,
    ) -> Iterator[Event]:  # fmt: skip
        with self.running():
            yield from pipeline.generate(
                replace(request, preset=self.preset), model, device, dtype, text_dtype, timings, tolerant=True
            )


@dataclass(frozen=True)
class Tried:
    """One kernel for dense attention at the video's own shape: its time, or why it has none."""

    name: str
    milliseconds: float | None
    why_not: str | None


def contender(name: str, model: Model, width: int, height: int) -> Contender:
    """The contender called `name`: a preset or its grade, bf16, one of `KERNELS`, or diffusers; UsageError where
    there is none. Which kernel is behind bf16 is for `fastest` to find."""
    if name == DIFFUSERS:
        from fpsgen.bench.by_diffusers import Diffusers

        return Diffusers()
    if name in KERNELS:
        return Ours(name, BF16, name)
    if name in shipped.GRADES:
        return Ours(name, shipped.of_grade(name, model.family, width, height))
    return Ours(name, compared(name))


@torch.inference_mode()
def fastest(model: Model, tokens: int, batch: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Tried]]:
    """The kernel that computes dense attention fastest here, and all that were tried, at the video's shape; on a CPU,
    of a long one, at a part of it.
    """
    config = model.config
    heads = config.num_heads
    if device.type == "cpu":
        tokens = min(tokens, int((_MOST_FLOPS / (4.0 * config.head_dim * batch)) ** 0.5))
        heads = max(1, min(heads, int(_MOST_FLOPS / (4.0 * config.head_dim * tokens**2 * batch))))
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, tokens, heads, config.head_dim)
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    refused, running = [], {}
    for name, kernel in KERNELS.items():
        if kernel.rounds:
            continue
        why_not = kernel.refusal(device, dtype, config.head_dim) or kernel.too_large(batch, heads, tokens)
        if why_not is None:
            call = partial(kernel.load(), q, k, v)
            why_not = _failure(name, call, device)
        if why_not is None:
            running[name] = call
        else:
            refused.append(Tried(name, None, why_not))
    if not running:
        told = f"no dense attention of {tokens} tokens runs here: {refused[0].why_not}"
        raise RenderError(told, hint="try a smaller --res or fewer --frames")
    times = _milliseconds(running, device)
    best = min(times, key=lambda name: times[name])
    others = sorted((name for name in times if name != best), key=lambda name: times[name])
    return best, [*(Tried(name, times[name], None) for name in (best, *others)), *refused]


def _failure(name: str, call: Callable[[], object], device: torch.device) -> str | None:
    """What ends the kernel `name` at the video's own shape, where a few tokens went well; None where nothing does."""
    try:
        call()
        machine.synchronise(device)
        return None
    except Exception as fault:  # whatever a foreign kernel raises
        told = f"{type(fault).__name__}: {' '.join(str(fault).split())}"[:300]
    if not machine.is_alive(device):
        broken = f"{name} failed, and nothing runs on {device} any more: {told}"
        raise RenderError(broken, hint=f"run the command again, without {name}")
    machine.release()  # only now, since the fault held on to the kernel's tensors
    return told


def _milliseconds(calls: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """The median of a few rounds of all calls, each of which has run once."""
    watch = Stopwatch(device).time if device.type == "cuda" else _clock
    rounds = [watch(calls.values()) for _ in range(_REPEATS)]
    return dict(zip(calls, (median(each) for each in zip(*rounds, strict=True)), strict=True))


def _clock(calls: Iterable[Callable[[], object]]) -> list[float]:
    """Milliseconds of each call on a CPU."""
    found = []
    for call in calls:
        begin = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - begin))
    return found


@dataclass(frozen=True)
class LineUp:
    """Who runs, the preset first; the name of the one that the others are measured against; what was tried for bf16."""

    contenders: tuple[Contender, ...]
    reference: str
    tried: tuple[Tried, ...] = ()


def resolved(
    preset: str, names: Sequence[str], model: Model, size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> list[Contender]:
    """The contenders called `preset` and `names`, for a video of width and height `size`; UsageError where one cannot
    run here."""
    if preset in names and preset != BF16.name:
        raise UsageError(f"--preset {preset} is compared with itself", hint="name another with --compare")
    own = shipped.of_grade(preset, model.family, *size) if preset in shipped.GRADES else shipped.find(preset)
    # Two may be called bf16: the first is what `generate` runs.
    found = [
        Ours(f"generate's {preset}" if preset in names else preset, own),
        *(contender(one, model, *size) for one in names),
    ]
    for one in found:
        if reason := one.refusal(model, device, dtype):
            raise UsageError(f"{one.name} cannot run here: {reason}", hint="leave it out of --compare")
    return found


def line_up(
    preset: str, names: list[str], request: Request, model: Model, device: torch.device, dtype: torch.dtype
) -> LineUp:
    """The contenders called `preset` and `names`; UsageError where one cannot run here, or does not fit the video.

    The reference is bf16 where that is among the names, else the first of them.
    """
    found = resolved(preset, names, model, (request.width, request.height), device, dtype)
    for one in found:
        one.outline(request, model, device)
    if BF16.name not in names:
        return LineUp(tuple(found), names[0])
    tokens = prod(model.config.grid(request.latent_shape))
    best, tried = fastest(model, tokens, 1 if request.guidance == 1 else 2, device, dtype)
    fast = [Ours(one.name, BF16, best) if one.name == BF16.name else one for one in found[1:]]
    return LineUp((found[0], *fast), BF16.name, tuple(tried))
