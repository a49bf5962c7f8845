"""What videos will take, worked out before anything is loaded: arithmetic, memory, and time where a video was made here
before, or the cost model knows the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from fpsgen import pace, residence, several_gpus
from fpsgen.request import VideoPlan
from fpsgen.residence import Residence
from fpsgen.settings import Offload
from fpsgen.target import Target
from fpsgen.weights import needs

MODELLED = (9, 0)  # the compute capability of the cards that `presets.cost` has rates for


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of one or several videos of a model. tokens: of the largest. attention_flops, linear_flops: of self-attention and
    of the blocks' linear layers, of all videos; density: the share of token pairs that self-attention computes, a mean
    over the videos. memory: bytes of each part at work, of which one is in memory at a time. expected: seconds of
    each stage of all videos, by the last one that was made here; modelled: seconds of denoising on one device, by the
    cost model; None where nothing is known. shared: what several of the cost model's card come to, if there are
    several."""

    videos: int
    steps: int
    tokens: int
    density: float
    attention_flops: float
    linear_flops: float
    memory: dict[str, int]
    residence: Residence
    vae_tile: tuple[int, int] | None
    expected: dict[str, float] | None
    modelled: float | None
    shared: several_gpus.Expected | None

    @property
    def peak_memory(self) -> int:
        return max(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.peak_memory <= self.residence.free


def forecast(plans: Sequence[VideoPlan], offload: Offload = "auto", gpus: int = 1) -> Forecast:
    """Of videos of one model; its weights may be absent. UsageError where so many GPUs cannot share a video."""
    largest = max(plans, key=lambda plan: plan.tiles.tokens)
    lives = residence.of_transformer(plans, offload, gpus)
    every = [attention_and_linear(plan) for plan in plans]
    # What GPUs exchange is weighed against the cost model's step, whatever this device is; a step is not made up.
    shared = several_gpus.expected(largest, gpus, seconds_of_step(largest)) if gpus > 1 else None
    return Forecast(
        videos=len(plans),
        steps=sum(len(plan.steps) for plan in plans),
        tokens=largest.tiles.tokens,
        density=fsum(plan.density for plan in plans) / len(plans),
        attention_flops=fsum(attention for attention, _ in every),
        linear_flops=fsum(linear for _, linear in every),
        memory=memory(plans, lives),
        residence=lives,
        vae_tile=residence.vae_tile(largest, lives.free),
        expected=expected(plans),
        modelled=fsum(map(pace.modelled, plans)) if is_modelled(largest.target) else None,
        shared=shared,
    )


def attention_and_linear(plan: VideoPlan) -> tuple[float, float]:
    """Floating-point operations of a video's self-attention and of its linear layers, 2 for each weight and token."""
    config, branches = plan.model.config, plan.request.settings.branches
    once = 2.0 * plan.tiles.tokens * config.weights_per_token
    passes = [step.share(branches) * branches for step in plan.steps]
    attention = fsum(
        share * own.flops(config.num_heads, config.head_dim)
        for share, step in zip(passes, plan.steps, strict=True)
        for own in step.attention
    )
    return attention, once * fsum(passes)


def memory(plans: Sequence[VideoPlan], lives: Residence) -> dict[str, int]:
    """Bytes that each part takes at work, by its name in words. One is in memory at a time, of two experts, too."""
    model, target = plans[0].model, plans[0].target
    found = needs.weights(model.checkpoint, target)
    at_work = {model.checkpoint.words(part): lives.held for part in model.checkpoint.experts}
    if residence.of_text_encoder(model, target) != "device":
        at_work[model.checkpoint.words("text_encoder")] = needs.streamed(model.checkpoint, target, "text_encoder")
    vae, decoding = model.checkpoint.words("vae"), 0
    for plan in plans:
        own, whole = residence.decoding(plan), plan.request.settings.latent_shape[1:]
        tile = residence.vae_tile(plan, lives.free)
        decoding = max(decoding, int(own * tile[0] * tile[1] / (whole[0] * whole[1])) if tile else own)
    return found | at_work | {vae: found[vae] + decoding}


def expected(plans: Sequence[VideoPlan]) -> dict[str, float] | None:
    """Seconds of each stage, by the paces of the last videos that were made here with the same presets."""
    found: dict[str, float] = {}
    for _, same in itertools.groupby(plans, lambda plan: plan.preset.name):
        own = [*same]
        if (known := pace.of_last(own[0])) is None:
            return None
        for stage, seconds in known.of(own).items():
            found[stage] = max(found.get(stage, 0), seconds) if stage == "load" else found.get(stage, 0) + seconds
    return found


def is_modelled(target: Target) -> bool:
    """Whether the cost model has rates for a device."""
    if target.device.type != "cuda":
        return False
    import torch

    return torch.cuda.get_device_capability(target.device) == MODELLED


def seconds_of_step(plan: VideoPlan) -> float:
    """Of a mean step that computes all guidance branches, on the card of the cost model."""
    passes = fsum(step.share(plan.request.settings.branches) for step in plan.steps)
    return pace.modelled(plan) / passes if passes else 0.0
