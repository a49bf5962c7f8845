"""What a denoising step is made of: self-attention, linear layers, and the rest.

Modules are timed by hooks around their calls. On a GPU these put events on the stream, which are read when all is done:
nothing waits in between, and where the GPU waits for the host, that counts to what it waits for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpsgen import machine
from fpsgen.attention import door
from fpsgen.bench.record import Span
from fpsgen.request import VideoPlan
from fpsgen.sampling import Denoiser
from fpsgen.wan.plan import StepPlan, distinct

SAMPLES = 3
ENOUGH = 10.0  # seconds, after which a step is measured no further time

# A moment: seconds of a monotonic clock, or an event on a CUDA stream.
Mark = Any


@dataclass(frozen=True)
class Split:
    """Seconds of one step, all guidance branches together.

    attention: self-attention but for its projections, that is norms of q and k, RoPE, rounding, the kernel. linear:
    every nn.Linear, the projections of both attentions and the FFN above all. rest: norms, modulation,
    cross-attention's product, patchify with its small product, guidance.
    """

    attention: float
    linear: float
    rest: float

    @property
    def total(self) -> float:
        return self.attention + self.linear + self.rest


@dataclass(frozen=True)
class PhaseStep:
    """A step that stands for all of `span`. split: of the median step. nonfinite: how many values of its velocity are
    NaN or infinite. together: whether both guidance branches ran in one batch; None without guidance."""

    span: Span
    split: Split
    nonfinite: int
    together: bool | None


@torch.inference_mode()
def by_phase(plan: VideoPlan, denoiser: Denoiser, cut: Sequence[Span]) -> Iterator[PhaseStep]:
    """Measure the first step of each span of `cut`, after one that warms up: `SAMPLES` times, less often a long one.

    Kernels are compiled before. Spans with the same plan are measured once. The latents are noise at every level: it
    has variance 1, as true latents have, and time does not depend on values.
    """
    config = denoiser.transformer.config
    door.make_ready(denoiser.device, distinct(plan.steps), config.num_heads, config.head_dim)
    latents = denoiser.noise(plan.request.seed)
    known: dict[StepPlan, tuple[Split, int]] = {}
    for span in cut:
        step = plan.steps[span.first]
        if step not in known:
            splits, velocity = split(denoiser, latents, span.first, step)
            middle = sorted(splits, key=lambda one: one.total)[(len(splits) - 1) // 2]
            known[step] = middle, int((~velocity.isfinite()).sum())
        yield PhaseStep(span, *known[step], denoiser.together if denoiser.branches > 1 else None)


@torch.inference_mode()
def split(denoiser: Denoiser, latents: Tensor, number: int, plan: StepPlan) -> tuple[list[Split], Tensor]:
    """Of `SAMPLES` times step `number`, or of as many as take `ENOUGH`, after one that warms up; and the velocity."""

    def step() -> Tensor:
        return denoiser.velocity(latents, number, plan)

    transformer = denoiser.transformer
    device = latents.device
    attentions = [block.self_attn for block in transformer.layers()]
    projections = {module for own in attentions for module in own.modules() if isinstance(module, nn.Linear)}
    others = {module for module in transformer.modules() if isinstance(module, nn.Linear)} - projections
    velocity = step()
    splits: list[Split] = []
    first = time.perf_counter()
    while len(splits) < SAMPLES and (not splits or time.perf_counter() - first < ENOUGH):
        machine.synchronise(device)
        with _timed(attentions, device) as whole, _timed(projections, device) as own, _timed(others, device) as other:
            begin = _mark(device)
            step()
            end = _mark(device)
        machine.synchronise(device)
        total, inside, projecting, multiplying = (_seconds(each) for each in ([(begin, end)], whole, own, other))
        splits.append(Split(inside - projecting, projecting + multiplying, total - inside - multiplying))
    return splits, velocity


@contextmanager
def _timed(modules: Iterable[nn.Module], device: torch.device) -> Iterator[list[tuple[Mark, Mark]]]:
    """Begin and end of every call of `modules`, none of which calls another of them."""
    calls: list[tuple[Mark, Mark]] = []
    begin: Mark = None

    def before(*_: object) -> None:
        nonlocal begin
        begin = _mark(device)

    def after(*_: object) -> None:
        calls.append((begin, _mark(device)))

    handles = []
    try:
        for module in modules:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _mark(device: torch.device) -> Mark:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(calls: list[tuple[Mark, Mark]]) -> float:
    """In all of them; events must have happened."""
    return sum(end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000 for begin, end in calls)
