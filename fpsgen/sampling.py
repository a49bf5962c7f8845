"""The solver: which noise levels are visited, and how one step moves the latents.

diffusers' UniPC does the arithmetic. Two facts about it are kept here and nowhere else: it applies the
flow shift to sigmas that it is given, and it needs the *unshifted* grid for that reason.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

Grid = Literal["original", "diffusers"]
TRAIN_TIMESTEPS = 1000


def original_grid(steps: int) -> np.ndarray:
    """The original's noise levels before the shift, float64 [steps] (`wan/utils/fm_solvers_unipc.py`).

    steps + 1 points from 0.999 to 0, the last dropped. Shifted they are s' = shift s / (1 + (shift - 1) s).
    """
    return np.linspace(1 - 1 / TRAIN_TIMESTEPS, 0, steps + 1)[:-1]


class Solver:
    """UniPC of order 2 over a flow, as Wan2.1 runs it: bh2, predicting x0, lower order at the end.

    grid "original" is Wan2.1's own; "diffusers" is what `WanPipeline` visits. They differ by up to 0.006.
    """

    def __init__(self, steps: int, shift: float, grid: Grid = "original"):
        self._scheduler = UniPCMultistepScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=shift,
        )
        if grid == "original":
            self._scheduler.set_timesteps(sigmas=original_grid(steps))
        else:
            self._scheduler.set_timesteps(steps)
        # Else the first step is looked up by its timestep, and cut to integers two steps may share one.
        self._scheduler.set_begin_index(0)

    @property
    def sigmas(self) -> Tensor:
        """float32 [steps + 1]: the noise level before each step, and 0."""
        return self._scheduler.sigmas

    @property
    def timesteps(self) -> Tensor:
        """int64 [steps]: 1000 sigma, cut to integers, which is what the model is told."""
        return self._scheduler.timesteps

    def step(self, velocity: Tensor, index: int, latents: Tensor) -> Tensor:
        """Latents at sigmas[index + 1], from the velocity at sigmas[index]. Steps must come in order."""
        return self._scheduler.step(velocity, self.timesteps[index], latents, return_dict=False)[0]


def noise(channels: int, latents: tuple[int, int, int], seed: int) -> Tensor:
    """float32 [1, channels, frames, height, width], drawn on the CPU: the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(1, channels, *latents, generator=generator, dtype=torch.float32)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of two velocities of one shape: unconditional + scale (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)
