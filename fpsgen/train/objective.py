"""What a training step learns: at which noise levels, through which plans, and how far from what.

x = (1 - level) latents + level noise, and the timestep is 1000 level, as at inference. Everything random is drawn from
the seed, the step and a sample's place in the batch of all processes alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fpsgen import solvers
from fpsgen.attention.plan import AttentionPlan, KeyTiles, Seen, fit
from fpsgen.attention.tiles import TileGrid
from fpsgen.presets import Preset
from fpsgen.settings import Settings
from fpsgen.train.data import Data
from fpsgen.train.settings import TrainSettings
from fpsgen.wan import plan as plans
from fpsgen.wan.config import WanConfig
from fpsgen.wan.plan import UNROUNDED, StepPlan
from fpsgen.wan.transformer import WanTransformer

STAGES = 8  # from dense attention to the preset's
_DENSE_SHARE = 0.1  # of the mean weight, which noise levels have that are dense: they must not be forgotten


class VelocityModel(nn.Module):
    """A transformer as training runs it: from latents and text to the velocity in one forward pass, which is what FSDP
    makes whole and cuts again, with matrix products in `dtype`. `Denoiser` takes it for a transformer, on every number
    of processes: what `embed_text` hands on becomes keys and values in the forward pass.

    recompute: the activations of a block are computed again in the backward pass instead of being kept.
    """

    def __init__(self, transformer: WanTransformer, dtype: torch.dtype, recompute: bool = False):
        super().__init__()
        self.transformer, self.config, self.dtype = transformer, transformer.config, dtype
        for block in transformer.layers() if recompute else ():
            again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            block.forward = again  # type: ignore[method-assign]

    def embed_text(self, text: Tensor) -> Tensor:
        return text

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, plan: StepPlan) -> Tensor:
        """As the transformer's; text: [batch, length, text_dim]."""
        autocast = torch.autocast(latents.device.type, self.dtype, enabled=self.dtype != torch.float32)
        graded = torch.is_grad_enabled()
        # What FSDP makes whole in inference mode could never take part in training.
        with torch.inference_mode(False), torch.set_grad_enabled(graded), autocast:
            velocity = self.transformer(latents, timestep, self.transformer.embed_text(text), plan)
            return velocity.clone()  # FSDP warns of views


# Latents, timesteps, text and plan to velocity.
Teach = Callable[[Tensor, Tensor, Tensor, StepPlan], Tensor]


class Example(NamedTuple):
    """A sample as a step sees it. velocity: the teacher's, where the data have it; weight: float32 [T, h, w], how much
    each cell counts; plan: what the student computes."""

    latents: Tensor
    noise: Tensor
    level: float
    text: Tensor
    weight: Tensor
    velocity: Tensor | None
    plan: StepPlan


@dataclass(frozen=True)
class Levels:
    """Which noise levels are drawn.

    "preset": one of those that the video's steps visit, with a probability in proportion to 1 - density of its plan,
    moved by up to half the way to its neighbours; "logit-normal": sigmoid of a normal number, moved by the flow shift.
    """

    kind: str
    shift: float
    visited: Sequence[float]
    weights: Sequence[float]

    def draw(self, rng: random.Random) -> float:
        if self.kind == "logit-normal":
            s = 1 / (1 + math.exp(-rng.normalvariate(0, 1)))
            return float(solvers.shifted(np.float64(s), self.shift))  # type: ignore[arg-type]
        own = rng.choices(range(len(self.visited)), self.weights)[0]
        level = self.visited[own]
        above = self.visited[own - 1] if own else level
        below = self.visited[own + 1] if own + 1 < len(self.visited) else 0.0
        return rng.uniform((level + below) / 2, (level + above) / 2)

    def weight(self, level: float) -> float:
        """How often to take a level that data have, whose levels were drawn alike: "logit-normal" takes all of them as
        often as they are there."""
        nearest = min(range(len(self.visited)), key=lambda own: abs(self.visited[own] - level))
        return 1.0 if self.kind == "logit-normal" else self.weights[nearest]


class Objective:
    """The batch of each step, and its losses.

    settings, preset: of the run; video: whose steps and shift the noise levels are of; tiles: of the data's latents.
    """

    def __init__(
        self,
        settings: TrainSettings,
        preset: Preset,
        video: Settings,
        tiles: TileGrid,
        config: WanConfig,
        data: Data,
        device: torch.device,
    ):
        self.settings, self.preset, self.data, self.device = settings, preset, data, device
        self._guidance = video.guidance
        self._plans = preset.plans(tiles, config.num_layers, config.num_heads)
        self._dense = plans.dense(tiles, config.num_layers)
        self._shape = data.index.latent_shape
        visited = video.noise_levels
        sparse = [1 - self._plans[preset.at(level)].density for level in visited]
        least = _DENSE_SHARE * fmean(sparse)
        weights = [max(each, least) or 1.0 for each in sparse]
        self.levels = Levels(settings.levels, video.shift, visited, weights)

    def stage(self, step: int) -> int:
        """How far annealing is at a step: 0 is dense, STAGES the preset."""
        return STAGES if step >= (steps := self.settings.warm_up_steps) else STAGES * step // steps

    def example(self, step: int, place: int, sample: int) -> Example:
        """What the sample of this number is at a place of a step's batch.

        Velocities that the data have are of a level, a noise and the first caption: then those are taken.
        """
        own, rng = self.data.sample(sample), random.Random(f"{self.settings.seed} {step} {place}")
        level, seed, dropped = self.levels.draw(rng), rng.getrandbits(63), rng.random() < self.settings.caption_drop
        dropped = dropped and not self.settings.guided  # which learns both branches from every sample
        text, velocity = self.data.negative if dropped else rng.choice(own.texts), None
        if own.taught is not None and self.settings.distil:
            levels, seeds, velocities = own.taught
            one = rng.choices(range(len(levels)), [self.levels.weight(level) for level in levels.tolist()])[0]
            level, seed, text, velocity = float(levels[one]), int(seeds[one]), own.texts[0], velocities[one].float()
        noise = solvers.noise(len(own.latents), self._shape, seed)[0]
        weight = torch.ones(own.latents.shape[1:]) if own.weight is None else 1 + own.weight / 255
        plan = annealed(self._plans[self.preset.at(level)], self.stage(step))
        return Example(own.latents.float(), noise, level, text, weight, velocity, plan)

    def passes(self, examples: Iterable[Example]) -> list[list[Example]]:
        """The examples in groups that one forward pass takes: of one plan, and `micro` at the most."""
        alike: dict[tuple[StepPlan, bool], list[Example]] = {}
        for example in examples:
            alike.setdefault((example.plan, example.velocity is None), []).append(example)
        micro = self.settings.micro
        return [each[i : i + micro] for each in alike.values() for i in range(0, len(each), micro)]

    def losses(self, some: Sequence[Example], student: VelocityModel, teach: Teach | None) -> Tensor:
        """[3]: of one pass of `passes` the loss and both distances that it weighs, from the dense velocity and from the
        flow's, summed over the samples. teach: asked for dense velocities that the data do not have."""
        latents, noise, text, weight = (
            torch.stack([getattr(example, name) for example in some]).to(self.device)
            for name in ("latents", "noise", "text", "weight")
        )
        level = torch.tensor([example.level for example in some], device=self.device)
        s, weight = level.view(-1, 1, 1, 1, 1), weight.unsqueeze(1)
        x, timestep = (1 - s) * latents + s * noise, solvers.TRAIN_TIMESTEPS * level
        dense = None
        if known := [example.velocity for example in some if example.velocity is not None]:
            dense = torch.stack(known).to(self.device)
        elif self.settings.distil and teach is not None:
            # Before the student, whose activations take memory.
            _, dense = self._velocities(teach, x, timestep, text, self._dense)
        velocity, compared = self._velocities(student, x, timestep, text, some[0].plan)
        flow = _distance(velocity, noise - latents, weight)
        distil = torch.zeros_like(flow) if dense is None else _distance(compared, dense, weight)
        return torch.stack([self.settings.distil * distil + self.settings.flow * flow, distil, flow])

    def _velocities(
        self, model: Teach, latents: Tensor, timestep: Tensor, text: Tensor, plan: StepPlan
    ) -> tuple[Tensor, Tensor]:
        """The velocity with the samples' captions, and the one that distillation compares: the same, or the guided."""
        if not self.settings.guided:
            velocity = model(latents, timestep, text, plan)
            return velocity, velocity
        negative = self.data.negative.to(text).expand_as(text)
        latents, timestep, text = torch.cat([latents] * 2), timestep.repeat(2), torch.cat([text, negative])
        conditional, unconditional = model(latents, timestep, text, plan).chunk(2)
        return conditional, solvers.guide(conditional, unconditional, self._guidance)


def _distance(velocity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The mean squared distance over the cells of each sample, some of which count more; summed over the samples."""
    distance = (velocity - target).square() * weight
    return (distance.mean((1, 2, 3, 4)) / weight.mean((1, 2, 3, 4))).sum()


@lru_cache(maxsize=256)
def annealed(plan: StepPlan, stage: int) -> StepPlan:
    """`plan` on the way to it from dense, unrounded attention, which is stage 0, as STAGES is the plan itself: shares
    and windows shrink by equal factors, and layer after layer becomes 8-bit."""
    share, layers = stage / STAGES, plan.layers
    rounded = [share > number / len(layers) for number in range(len(layers))]
    attention = (_annealed(own, share, now) for (own, _), now in zip(layers, rounded, strict=True))
    linear = (own if now else UNROUNDED for (_, own), now in zip(layers, rounded, strict=True))
    return replace(plan, attention=tuple(attention), linear=tuple(linear))


def _annealed(plan: AttentionPlan, share: float, rounded: bool) -> AttentionPlan:
    grown = [_grown(own, plan.tiles, share) for own in plan.key_tiles]
    each = [grown[index] for index in plan.heads or (0,)]
    seen = tuple(dict.fromkeys(each))  # of which there may be fewer on the way
    heads = tuple(map(seen.index, each)) if len(seen) > 1 else ()
    if not rounded:
        return AttentionPlan(plan.tiles, seen, heads)
    return replace(plan, seen=seen, heads=heads)


def _grown(own: KeyTiles, tiles: TileGrid, share: float) -> Seen:
    """The key tiles whose density is `own`'s to the power of `share`."""
    if share == 1 or own == KeyTiles():
        return fit(own, tiles)
    if own.top is not None:
        return fit(replace(own, top=own.top**share), tiles)
    return fit(replace(own, window=tiles.window_of(tiles.density(own.window) ** share)), tiles)
