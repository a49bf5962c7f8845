"""The one loop from noise to latents, whoever asks for them: a video, a calibration, a bench, the pocket's recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from fpsgen import machine, solvers
from fpsgen.errors import RenderError, option
from fpsgen.settings import Settings
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import WanTransformer


class Velocities(Protocol):
    """What is known of a trajectory: a run that was stopped goes on from it, and an old one is gone through again."""

    def get(self, step: int) -> Tensor | None:
        """The guided velocity of a step; None where it has to be computed."""
        ...

    def put(self, step: int, velocity: Tensor) -> Tensor:
        """Keep one that was computed; what `get` will give from now on."""
        ...


@dataclass(frozen=True)
class Moment:
    """A step that is behind us. velocity: the guided one; latents: after it; seconds: it took; finite: whether all
    latents are numbers."""

    step: int
    velocity: Tensor
    latents: Tensor
    seconds: float
    finite: bool


# Sees the number of a step that is to be computed, and the latents before it. What it returns is taken for the step's
# velocity; None lets the step run.
Look = Callable[[int, Tensor], Tensor | None]


class Denoiser:
    """A transformer with all that a trajectory needs but its noise and what each step computes.

    texts: [clips, length, text_dim], the prompts' embeddings and, with guidance, the negative prompt's. together:
    whether both guidance branches run in one batch; None for where they fit in the memory that is free.
    """

    @torch.inference_mode()
    def __init__(
        self,
        transformer: WanTransformer,
        settings: Settings,
        texts: Sequence[Tensor],
        device: torch.device,
        together: bool | None = None,
    ):
        self.transformer, self.settings, self.device = transformer, settings, device
        self.together = both_fit(transformer, settings, device) if together is None else together
        self._contexts = [transformer.embed_text(text) for text in ([torch.cat([*texts])] if self.together else texts)]
        self.branches = len(texts)
        self._timesteps = settings.new_solver().timesteps

    def noise(self, seed: int) -> Tensor:
        """Where a trajectory begins: float32 [1, 16, T, h, w], of a seed."""
        channels = self.transformer.config.in_channels
        return solvers.noise(channels, self.settings.latent_shape, seed).to(self.device)

    @torch.inference_mode()
    def velocity(self, latents: Tensor, step: int, plan: StepPlan) -> Tensor:
        """The guided velocity of `latents` at a step, counted from 0."""
        timestep = self._timesteps[step]
        found: list[Tensor] = []
        for context in self._contexts:
            branches = self.branches // len(self._contexts)
            batch = latents.repeat(branches, 1, 1, 1, 1)
            found += self.transformer(batch, timestep.expand(len(batch)), context, plan).chunk(branches)
        if len(found) == 1:
            return found[0]
        conditional, unconditional = found
        return solvers.guide(conditional, unconditional, self.settings.guidance)

    @torch.inference_mode()
    def run(
        self, noise: Tensor, plans: Sequence[StepPlan], kept: Velocities | None = None, look: Look | None = None
    ) -> Iterator[Moment]:
        """Every step from noise to latents, as it is done; plans: one for each step.

        kept: velocities that are known are taken from it, and the others given to it.
        """
        solver, latents = self.settings.new_solver(), noise
        for step, plan in enumerate(plans):
            begin = time.perf_counter()
            velocity = None if kept is None else kept.get(step)
            if velocity is None:
                velocity = None if look is None else look(step, latents)
                if velocity is None:
                    velocity = self.velocity(latents, step, plan)
                velocity = velocity if kept is None else kept.put(step, velocity)
            velocity = velocity.to(self.device)
            latents = solver.step(velocity, latents)
            finite = bool(latents.isfinite().all())  # waits for the device, too
            yield Moment(step, velocity, latents, time.perf_counter() - begin, finite)


def both_fit(transformer: WanTransformer, settings: Settings, device: torch.device) -> bool:
    """Whether a batch of two guidance branches fits in the memory that is free, by a worst-case estimate."""
    tokens = prod(transformer.config.grid(settings.latent_shape))
    per_token = transformer.config.bytes_per_token(transformer.dtype.itemsize)
    return 2 * tokens * per_token < 0.8 * machine.free_bytes(device)


def not_finite(dtype: torch.dtype, where: str = "", who: str = "the model") -> RenderError:
    """What a watcher raises who wants no video of values that are no numbers. where: in the work; who: gave them."""
    hint = None if dtype == torch.float32 else f"try {option('dtype', 'fp32')}"
    return RenderError(f"{who} gave values that are not finite{where}", hint)
