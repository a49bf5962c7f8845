"""What a denoising step is made of: self-attention, linear layers, and the rest.

Modules are timed by hooks around their calls. On a GPU these put events on the stream, which are read when all is done:
nothing waits in between, and where the GPU waits for the host, that counts to what it waits for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fpsgen import machine
from fpsgen.attention import door
from fpsgen.bench.fidelity import count_nonfinite
from fpsgen.bench.record import Split
from fpsgen.request import VideoPlan
from fpsgen.sampling import Denoiser
from fpsgen.wan.plan import StepPlan, StepSpan, distinct

SAMPLES = 3
ENOUGH = 10.0  # seconds, after which a step is measured no further time

# A moment: seconds of a monotonic clock, or an event on a CUDA stream.
Mark = Any


@dataclass(frozen=True)
class StepParts:
    """split: of the median step of those measured. nonfinite: how many values of its velocity are NaN or infinite."""

    split: Split
    nonfinite: int


def spans(plans: Sequence[Sequence[StepPlan]], sigmas: Sequence[float]) -> list[StepSpan]:
    """The longest spans in which none of several videos computes anything else. plans: of each video's steps; sigmas:
    the noise level before each step, and after the last."""
    found, first = [], 0
    for _, alike in groupby(zip(*plans, strict=True)):
        last = first + len(list(alike)) - 1
        found.append(StepSpan(first, last, (sigmas[first], sigmas[last + 1])))
        first = last + 1
    return found


@torch.inference_mode()
def by_span(plan: VideoPlan, denoiser: Denoiser, cut: Sequence[StepSpan]) -> list[StepParts]:
    """Measure the first step of each span, after one that warms up: `SAMPLES` times, a long one less often.

    Kernels are compiled before. Spans with the same plan are measured once. The latents are noise at every level: it
    has variance 1, as true latents have, and time does not depend on values.
    """
    config = denoiser.transformer.config
    door.make_ready(denoiser.device, distinct(plan.steps), config.num_heads, config.head_dim)
    latents = denoiser.noise(plan.request.seed)
    known: dict[StepPlan, StepParts] = {}
    for span in cut:
        step = plan.steps[span.first]
        if step not in known:
            splits, velocity = split(denoiser, latents, span.first, step)
            middle = sorted(splits, key=lambda one: one.total)[(len(splits) - 1) // 2]
            known[step] = StepParts(middle, count_nonfinite(velocity))
    return [known[plan.steps[span.first]] for span in cut]


@torch.inference_mode()
def split(denoiser: Denoiser, latents: Tensor, number: int, plan: StepPlan) -> tuple[list[Split], Tensor]:
    """The parts of step `number`, timed `SAMPLES` times after one run that warms up, or less often where that takes
    `ENOUGH`; and the step's velocity."""
    transformer, device = denoiser.transformer, latents.device
    attentions = [block.self_attn for block in transformer.layers()]
    projections = {module for own in attentions for module in own.modules() if isinstance(module, nn.Linear)}
    others = {module for module in transformer.modules() if isinstance(module, nn.Linear)} - projections
    velocity = denoiser.velocity(latents, number, plan)
    splits: list[Split] = []
    first = time.perf_counter()
    while len(splits) < SAMPLES and (not splits or time.perf_counter() - first < ENOUGH):
        machine.synchronise(device)
        with _timed(attentions, device) as whole, _timed(projections, device) as own, _timed(others, device) as other:
            step = [_mark(device)]
            denoiser.velocity(latents, number, plan)
            step.append(_mark(device))
        machine.synchronise(device)
        total, inside, projecting, multiplying = map(_seconds, (step, whole, own, other))
        splits.append(Split(inside - projecting, projecting + multiplying, total - inside - multiplying))
    return splits, velocity


@contextmanager
def _timed(modules: Iterable[nn.Module], device: torch.device) -> Iterator[list[Mark]]:
    """When calls of `modules` begin and end, in turns; none of the modules may call another of them."""
    marks: list[Mark] = []

    def note(*_: object) -> None:
        marks.append(_mark(device))

    handles = [each(note) for one in modules for each in (one.register_forward_pre_hook, one.register_forward_hook)]
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()


def _mark(device: torch.device) -> Mark:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(marks: Sequence[Mark]) -> float:
    """From each beginning to the end behind it; events must have happened."""
    return sum(
        end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000
        for begin, end in zip(marks[::2], marks[1::2], strict=True)
    )
