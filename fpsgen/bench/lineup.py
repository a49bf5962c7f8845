"""Who runs in a comparison: a preset, and what it is compared with. bf16 is the fastest dense attention found here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from statistics import median

import torch

from fpsgen import machine
from fpsgen.bench.by_diffusers import Diffusers
from fpsgen.bench.contenders import Ours
from fpsgen.bench.dense_kernels import KERNELS
from fpsgen.bench.names import DIFFUSERS
from fpsgen.bench.stopwatch import Stopwatch
from fpsgen.errors import RenderError, UsageError
from fpsgen.presets import BF16, Preset, shipped
from fpsgen.request import Request
from fpsgen.target import Target
from fpsgen.weights.models import Model

Contender = Ours | Diffusers

_ROUNDS = 5
_MOST_FLOPS = 2e11  # of a trial on a CPU, where one of 14B at 720p would take minutes


@dataclass(frozen=True)
class KernelTrial:
    """One kernel for dense attention at the video's own shape: its time, or why it has none."""

    name: str
    milliseconds: float | None
    why_not: str | None


@dataclass(frozen=True)
class LineUp:
    """contenders: the preset first. reference: the name of the contender that the others are measured against.
    tried: the kernels from which bf16's was chosen, the choice first."""

    contenders: tuple[Contender, ...]
    reference: str
    tried: tuple[KernelTrial, ...] = ()


def resolve(preset: str, names: Sequence[str], model: Model, size: tuple[int, int], target: Target) -> LineUp:
    """The contenders called `preset` and `names`, which `names.check` has passed; bf16 is torch's own choice.

    The reference is bf16 if it is among `names`, else the first of them. size: width and height of the video.
    UsageError where a contender cannot run here.
    """

    def find(name: str) -> Preset:
        return shipped.of_grade(name, model.family, *size) if name in shipped.GRADES else shipped.find(name)

    def contender(name: str) -> Contender:
        if name == DIFFUSERS:
            return Diffusers()
        return Ours(name, BF16, name) if name in KERNELS else Ours(name, find(name))

    # Two may be called bf16: the first is what `generate` runs.
    first = Ours(f"generate's {preset}" if preset in names else preset, find(preset))
    found = (first, *map(contender, names))
    for one in found:
        if reason := one.refusal(model, target):
            raise UsageError(f"{one.name} cannot run here: {reason}", hint="leave it out of --compare")
    return LineUp(found, BF16.name if BF16.name in names else names[0])


def line_up(preset: str, names: Sequence[str], request: Request, model: Model, target: Target) -> LineUp:
    """As `resolve`, with the fastest kernel behind bf16; UsageError also where a contender does not fit the video."""
    found = resolve(preset, names, model, (request.settings.width, request.settings.height), target)
    for one in found.contenders:
        one.outline(request, model, target)
    if found.reference != BF16.name:
        return found
    tokens = prod(model.config.grid(request.settings.latent_shape))
    best, tried = fastest(model, tokens, request.settings.branches, target.device, target.dtype)
    first, *others = found.contenders
    fast = (Ours(one.name, BF16, best) if one.name == BF16.name else one for one in others)
    return LineUp((first, *fast), BF16.name, tuple(tried))


@torch.inference_mode()
def fastest(
    model: Model, tokens: int, batch: int, device: torch.device, dtype: torch.dtype
) -> tuple[str, list[KernelTrial]]:
    """The kernel that computes dense attention fastest here, and all that were tried, at the video's shape. On a CPU
    a long video is tried in part. RenderError where no kernel runs."""
    heads, head_dim = model.config.num_heads, model.config.head_dim
    if device.type == "cpu":
        tokens = min(tokens, int((_MOST_FLOPS / (4.0 * head_dim * batch)) ** 0.5))
        heads = max(1, min(heads, int(_MOST_FLOPS / (4.0 * head_dim * tokens**2 * batch))))
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, tokens, heads, head_dim)
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    refused: list[KernelTrial] = []
    calls: dict[str, Callable[[], object]] = {}
    for name, kernel in KERNELS.items():
        if kernel.rounds:
            continue
        why_not = kernel.refusal(device, dtype, head_dim) or kernel.too_large(batch, heads, tokens)
        if why_not is None:
            call = partial(kernel.load(), q, k, v)
            why_not = _failure(name, call, device)
        if why_not is None:
            calls[name] = call
        else:
            refused.append(KernelTrial(name, None, why_not))
    if not calls:
        told = f"no dense attention of {tokens} tokens runs here: {refused[0].why_not}"
        raise RenderError(told, hint="try a smaller --res or fewer --frames")
    clock = Stopwatch(device).time if device.type == "cuda" else _clock
    rounds = [clock(calls.values()) for _ in range(_ROUNDS)]
    times = {name: median(each) for name, each in zip(calls, zip(*rounds, strict=True), strict=True)}
    ran = [KernelTrial(name, times[name], None) for name in sorted(times, key=times.__getitem__)]
    return ran[0].name, ran + refused


def _failure(name: str, call: Callable[[], object], device: torch.device) -> str | None:
    """What ends a kernel at the video's own shape although a few tokens went well; None where nothing does."""
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


def _clock(calls: Iterable[Callable[[], object]]) -> list[float]:
    """Milliseconds of each call on a CPU."""
    found = []
    for call in calls:
        begin = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - begin))
    return found
