"""Who runs in a comparison: a preset, and what it is compared with. bf16 is the fastest dense attention found here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch

from fpsgen import machine
from fpsgen.bench import stopwatch
from fpsgen.bench.by_diffusers import Diffusers
from fpsgen.bench.contenders import VideoContender
from fpsgen.bench.dense_kernels import KERNELS
from fpsgen.bench.names import DIFFUSERS, STEPS, fewer_steps
from fpsgen.bench.record import KernelTrial, VideoRecord
from fpsgen.errors import RenderError, UsageError, option
from fpsgen.presets import BF16, rival, shipped
from fpsgen.request import Request, VideoPlan
from fpsgen.request import resolve as resolve_video
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.values import from_dict
from fpsgen.weights.models import Model

_ROUNDS = 5
_MOST_FLOPS = 2e11  # of a trial on a CPU, where one of 14B at 720p would take minutes


@dataclass(frozen=True)
class LineUp:
    """Contenders for one video, the preset first. reference: the one that the others are measured against. tried: the
    kernels from which bf16's was chosen, the choice first."""

    contenders: tuple[VideoContender, ...]
    reference: VideoContender
    tried: tuple[KernelTrial, ...] = ()

    @property
    def plan(self) -> VideoPlan:
        """The preset's; request, model and target are those of all."""
        return self.contenders[0].plan

    @property
    def settings(self) -> Settings:
        return self.contenders[0].settings

    def facts(self, command: list[str]) -> dict[str, Any]:
        """The fields of `VideoBenchRecord` but its notes. To be called before the work: the commit is that of the
        running code."""
        plan, target = self.plan, self.plan.target
        card = stopwatch.card(target.device)
        about = {**machine.provenance(command), "card": card, "model": plan.model.name_with_loras, **target.as_dict()}
        about["loras"] = [each.as_dict() for each in plan.model.checkpoint.loras]
        return about | {"video": from_dict(VideoRecord, plan.request.as_dict()), "reference": self.reference.name}


def resolve(preset: str, names: Sequence[str], request: Request, model: Model, target: Target) -> LineUp:
    """The contenders called `preset` and `names`, which `names.check` gave; bf16 is torch's own choice.

    The reference is bf16 if it is among `names`, else the first of them that has all steps. UsageError where a
    contender cannot run here, is to have more steps than the video, or a preset does not fit the video.
    """

    def contender(name: str, shown: str) -> VideoContender:
        size = request.settings.width, request.settings.height
        if name in shipped.GRADES:
            own = shipped.of_grade(name, model.family, *size)
        else:
            own = BF16 if name == DIFFUSERS or name in KERNELS else shipped.find(name)
        plan = resolve_video(replace(request, preset=own), model, target)
        return Diffusers(shown, plan) if name == DIFFUSERS else VideoContender(shown, plan, KERNELS.get(name))

    def with_fewer_steps(name: str, steps: int) -> VideoContender:
        if steps > request.settings.steps:
            told = f"{option('compare', name)} has more steps than the video, which has {request.settings.steps}"
            hint = f"write {STEPS}{request.settings.steps} or fewer, or give the video more {option('steps')}"
            raise UsageError(told, hint)
        settings = replace(request.settings, steps=steps)
        own = replace(request, settings=settings, preset=rival.of(first.steps))
        return VideoContender(name, resolve_video(own, model, target))

    # Two may be called bf16: the first is what `generate` runs.
    first = contender(preset, f"generate's {preset}" if preset in names else preset)
    fewer = {name: steps for name in names if (steps := fewer_steps(name))}
    others = [with_fewer_steps(name, fewer[name]) if name in fewer else contender(name, name) for name in names]
    for one in (first, *others):
        if reason := one.refusal():
            raise UsageError(f"{one.name} cannot run here: {reason}", hint=f"leave it out of {option('compare')}")
    whole = [one for one in others if one.name not in fewer]
    return LineUp((first, *others), next((one for one in whole if one.name == BF16.name), whole[0]))


def with_fastest(line_up: LineUp) -> LineUp:
    """The same, with the fastest kernel for dense attention behind bf16, if bf16 is the reference; behind bf16 with
    fewer steps, too."""
    if line_up.reference.name != BF16.name:
        return line_up
    tried = try_kernels(line_up.plan)
    fast = VideoContender(BF16.name, line_up.reference.plan, KERNELS[tried[0].name])

    def faster(one: VideoContender) -> VideoContender:
        exact = one.name.startswith(STEPS) and one.plan.preset is BF16
        return fast if one is line_up.reference else replace(one, kernel=fast.kernel) if exact else one

    return LineUp(tuple(map(faster, line_up.contenders)), fast, tuple(tried))


@torch.inference_mode()
def try_kernels(plan: VideoPlan) -> list[KernelTrial]:
    """All kernels for dense attention that are not rounded to 8 bits, at the video's shape, the fastest first and
    those that do not run here last. On a CPU a long video is tried in part. RenderError where no kernel runs."""
    (heads, head_dim), target = (plan.model.config.num_heads, plan.model.config.head_dim), plan.target
    tokens, batch, device = plan.tiles.tokens, plan.request.settings.branches, target.device
    if device.type == "cpu":
        tokens = min(tokens, int((_MOST_FLOPS / (4.0 * head_dim * batch)) ** 0.5))
        heads = max(1, min(heads, int(_MOST_FLOPS / (4.0 * head_dim * tokens**2 * batch))))
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, tokens, heads, head_dim)
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=target.dtype) for _ in range(3))
    refused: list[KernelTrial] = []
    calls: dict[str, Callable[[], object]] = {}
    for name, kernel in KERNELS.items():
        if kernel.rounds:
            continue
        why_not = kernel.refusal(device, target.dtype, head_dim) or kernel.too_large(batch, heads, tokens)
        if why_not is None:
            call = partial(kernel.load(), q, k, v)
            why_not = _failure(name, call, device)
        if why_not is None:
            calls[name] = call
        else:
            refused.append(KernelTrial(name, None, why_not))
    if not calls:
        sizes = f"try a smaller {option('res')} or fewer {option('frames')}"
        raise RenderError(f"no dense attention of {tokens} tokens runs here: {refused[0].why_not}", hint=sizes)
    watch = stopwatch.Stopwatch(device)
    rounds = [watch.time(calls.values()) for _ in range(_ROUNDS)]
    times = {name: median(each) for name, each in zip(calls, zip(*rounds, strict=True), strict=True)}
    return [KernelTrial(name, times[name], None) for name in sorted(times, key=times.__getitem__)] + refused


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
