"""The solver: which noise levels are visited, and how one step moves the latents.

diffusers' schedulers do the arithmetic. What is odd about each is kept here and nowhere else.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # helps and wrong input need none of them, and do not wait for them
    import numpy as np
    from torch import Tensor

SolverName = Literal["unipc", "dpm++", "euler"]
Sigmas = Literal["original", "diffusers"]
TRAIN_TIMESTEPS = 1000
_IMPORT = threading.Lock()  # diffusers finds its classes when they are asked for, and fails in two threads at once


def original_sigmas(solver: SolverName, steps: int) -> np.ndarray:
    """The original's noise levels before the shift, float64 [steps].

    steps + 1 evenly spaced points down to 0, the last dropped: from 0.999 for UniPC
    (`wan/utils/fm_solvers_unipc.py`), from 1 for DPM++ (`wan/utils/fm_solvers.py`, `get_sampling_sigmas`). The
    original has no Euler; here it visits what UniPC does.
    """
    import numpy as np

    first = 1.0 if solver == "dpm++" else 1 - 1 / TRAIN_TIMESTEPS
    return np.linspace(first, 0, steps + 1)[:-1]


def shifted(levels: np.ndarray, shift: float) -> np.ndarray:
    """Noise levels moved by the flow shift: s' = shift s / (1 + (shift - 1) s)."""
    return shift * levels / (1 + (shift - 1) * levels)


def noise_levels(steps: int, shift: float, solver: SolverName = "unipc", sigmas: Sigmas = "original") -> list[float]:
    """The noise level before each step, in float32: what a `Solver` visits, which is asked where they are
    diffusers'."""
    import numpy as np

    if sigmas == "diffusers":
        return Solver(steps, shift, solver, sigmas).sigmas[:-1].tolist()
    return shifted(original_sigmas(solver, steps), shift).astype(np.float32).tolist()


class Solver:
    """One of diffusers' solvers over a flow. UniPC and DPM++ are of order 2, predicting x0, of lower order at the
    end, as Wan2.1 runs them; Euler is of order 1.

    sigmas "original" are Wan2.1's own; "diffusers" is what `WanPipeline` visits with that solver. scheduler: diffusers'
    own object, at its first step until `step` is called.
    """

    def __init__(self, steps: int, shift: float, solver: SolverName = "unipc", sigmas: Sigmas = "original"):
        import numpy as np
        import torch

        with _IMPORT:
            from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

        if solver == "euler":
            self.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=shift)
        else:
            kind = UniPCMultistepScheduler if solver == "unipc" else DPMSolverMultistepScheduler
            self.scheduler = kind(
                num_train_timesteps=TRAIN_TIMESTEPS,
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                flow_shift=shift,
            )
        self.scheduler.set_timesteps(steps)
        if sigmas == "original":
            # Set, not handed over: DPM++ takes no noise levels, and UniPC would shift them once more.
            levels = shifted(original_sigmas(solver, steps), shift)
            self.scheduler.sigmas = torch.from_numpy(np.append(levels, 0.0)).float()
            self.scheduler.timesteps = torch.from_numpy(TRAIN_TIMESTEPS * levels).long()
        # Else the first step is looked up by its timestep, and cut to integers two steps may share one.
        self.scheduler.set_begin_index(0)

    @property
    def sigmas(self) -> Tensor:
        """float32 [steps + 1]: the noise level before each step, and 0."""
        return self.scheduler.sigmas

    @property
    def timesteps(self) -> Tensor:
        """[steps]: 1000 sigma, which is what the model is told; cut to integers as int64, but for diffusers' Euler."""
        return self.scheduler.timesteps

    def step(self, velocity: Tensor, latents: Tensor) -> Tensor:
        """Latents at the next noise level, from the velocity at this one; the solver counts its steps itself."""
        # Any timestep, as a float: Euler refuses integers, and none of the three looks at it, counting as they do.
        return self.scheduler.step(velocity, self.timesteps[0].float(), latents, return_dict=False)[0]


def noise(channels: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """float32 [1, channels, frames, height, width], drawn on the CPU: the same on every device."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(1, channels, *shape, generator=generator, dtype=torch.float32)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of two velocities of one shape: unconditional + scale (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)
