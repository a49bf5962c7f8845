"""What a schedule really costs in quality: whole clips, against BF16 from the same noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fpsgen import metrics
from fpsgen.calibrate.record import Checked
from fpsgen.calibrate.trajectory import Clip, Renderer
from fpsgen.errors import RenderError
from fpsgen.events import Done
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.plan import StepPlan

if TYPE_CHECKING:
    from fpsgen.wan.vae import VAE


class Checker:
    """Renders the verification clips, dense ones once. decoding: the time of decoding a clip, in a step's."""

    def __init__(self, renderer: Renderer, clips: list[Clip], vae: VAE, decoding: float):
        self.renderer, self.clips, self._vae, self._decoding = renderer, clips, vae, decoding
        self._steps = renderer.settings.steps
        self._counted: set[int] = set()  # clips whose dense rendering the ticks tell of

    def check(self, plans: Sequence[StepPlan]) -> list[Checked]:
        """Every clip with the plans of each step, of which there may be fewer than BF16 has."""
        return self.renderer.side_by_side(lambda number: self._check(number, plans), range(len(self.clips)))

    def _check(self, number: int, plans: Sequence[StepPlan]) -> Checked:
        clip, name = self.clips[number], _name(plans, number)
        journal, again = self.renderer.journal, number in self._counted
        self._counted.add(number)
        if (kept := journal.get(name)) is not None:
            self.renderer.watch(Done(len(plans) if again else len(plans) + self._steps))
        else:
            dense = self.renderer.dense
            velocities, exact = self._exact(number, again)
            # What comes before the first step that differs is known, unless noise levels are others.
            first = next((step for step, own in enumerate(plans) if own != dense), self._steps)
            same = first if len(plans) == self._steps else 0
            self.renderer.watch(Done(same))
            _, ours = self.renderer.render(clip, name, plans, velocities[:same])
            error = metrics.latent_error(ours, exact)
            apart = metrics.mean_square(self.decode(ours), self._exact_frames(number, exact))
            kept = journal.put(name, latents=ours, found=torch.tensor([error, apart], dtype=torch.float64))
            journal.drop(f"{name}-step")
        self.renderer.watch(Done(self._decoding * (1 if again else 2)))
        error, apart = kept["found"].tolist()
        return Checked(clip.prompt, clip.seed, error, metrics.psnr(apart))

    def frames(self, plans: Sequence[StepPlan], number: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 frames of a clip that was checked, BF16's and ours."""
        kept = self.renderer.journal.get(_name(plans, number))
        if kept is None:
            raise RenderError("a clip that was verified is gone", hint="run the same command again")
        _, exact = self._exact(number, again=True)
        return self._exact_frames(number, exact), self.decode(kept["latents"])

    def _exact(self, number: int, again: bool) -> tuple[list[Tensor], Tensor]:
        """Velocities and final latents of a clip in BF16, rendered once."""
        steps = [self.renderer.dense] * self._steps
        return self.renderer.render(self.clips[number], f"check{number}", steps, again=again)

    def _exact_frames(self, number: int, exact: Tensor) -> np.ndarray:
        """Decoded once."""
        name = f"check{number}-frames"
        kept = self.renderer.journal.get(name) or self.renderer.journal.put(
            name, frames=torch.from_numpy(self.decode(exact))
        )
        return kept["frames"].numpy()

    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 [frames, height, width, 3]; RenderError where the VAE's values are not finite."""
        return np.concatenate(list(wan_vae.frames_of(self._vae, latents.to(self.renderer.device))))


def _name(plans: Sequence[StepPlan], number: int) -> str:
    """The name of a clip's piece in the journal."""
    every = [plan.attention if plan == StepPlan(plan.attention) else plan for plan in plans]  # what older runs kept
    return f"check{number}-{hashlib.sha256(repr(every).encode()).hexdigest()[:24]}"
