"""The solver: which noise levels are visited, and how one step moves the latents.

diffusers' schedulers do the arithmetic, but that of `FEW_STEPS`. What is odd about each is kept here and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import atan, cos, sin
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # helps and wrong input need none of them, and do not wait for them
    import numpy as np
    from torch import Tensor

SolverName = Literal["unipc", "dpm++", "euler", "lightx2v", "fastwan", "turbowan"]
Sigmas = Literal["original", "diffusers"]
TRAIN_TIMESTEPS = 1000
_IMPORT = threading.Lock()  # diffusers finds its classes when they are asked for, and fails in two threads at once


@dataclass(frozen=True)
class FewSteps:
    """The sampler of models that were distilled for a few steps, as their authors run it.

    points: the noise level before each step, not yet shifted; shift: the flow shift. fewest: so many steps may also be
    asked for; the first points are theirs. timesteps: what the model is told, from 1000 sigma, float32 [steps].
    renoises: whether steps add fresh noise; else they are Euler's.
    """

    points: tuple[float, ...]
    shift: float
    fewest: int
    timesteps: Callable[[Tensor], Tensor]
    renoises: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What a video has that is not asked for others. Guidance was distilled into the models."""
        return {"steps": len(self.points), "shift": self.shift, "guidance": 1.0}


FEW_STEPS = {
    # LightX2V, `lightx2v/models/schedulers/wan/step_distill/scheduler.py`; `denoising_step_list` and `sample_shift` of
    # configs/distill/wan21.
    "lightx2v": FewSteps((1.0, 0.75, 0.5, 0.25), 5.0, 4, lambda exact: exact, renoises=False),
    # FastVideo, `DmdDenoisingStage` in `fastvideo/pipelines/stages/denoising.py`: the timesteps are 1000, 757 and 522,
    # each with the nearest noise level of a table, which is 1 to 0.001 in 1000 points, shifted by 8.
    "fastwan": FewSteps((1.0, 0.28, 0.12), 8.0, 3, lambda exact: exact.round(), renoises=True),
    # TurboDiffusion, `turbodiffusion/inference/wan2.1_t2v_infer.py`, and rCM, `rcm/inference/wan2pt1_t2v_rcm_infer.py`:
    # TrigFlow's angles as noise levels of a flow. Timesteps are in bfloat16, as in training: 988, 932, 852 and 608.
    "turbowan": FewSteps(
        tuple(sin(angle) / (sin(angle) + cos(angle)) for angle in (atan(80), 1.5, 1.4, 1.0)),
        1.0, 1, lambda exact: exact.bfloat16().float(), renoises=True,
    ),
}  # fmt: skip


def original_sigmas(solver: SolverName, steps: int) -> np.ndarray:
    """The original's noise levels before the shift, float64 [steps].

    steps + 1 evenly spaced points down to 0, the last dropped: from 0.999 for UniPC
    (`wan/utils/fm_solvers_unipc.py`), from 1 for DPM++ (`wan/utils/fm_solvers.py`, `get_sampling_sigmas`). The
    original has no Euler; here it visits what UniPC does. `FEW_STEPS` have points of their own.
    """
    import numpy as np

    if few := FEW_STEPS.get(solver):
        return np.array(few.points[:steps])
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
    own object, at its first step until `step` is called. init_noise_sigma: what the noise is multiplied with before the
    first step.
    """

    init_noise_sigma = 1.0

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


class FewStepSolver:
    """A solver of `FEW_STEPS`, used like `Solver`. Each step goes to x0, where the flow would end, and back to the next
    noise level: along the velocity, or by fresh noise.

    fresh: noise of the latents' shape, by how many steps are done; needed where noise is added.
    """

    def __init__(self, steps: int, shift: float, solver: SolverName, fresh: Callable[[int], Tensor] | None = None):
        import torch

        self._few, self._fresh, self._done = FEW_STEPS[solver], fresh, 0
        self.sigmas = torch.tensor([*noise_levels(steps, shift, solver), 0.0])
        self.timesteps = self._few.timesteps(TRAIN_TIMESTEPS * self.sigmas[:-1])
        self.init_noise_sigma = self.sigmas[0].item()

    def step(self, velocity: Tensor, latents: Tensor) -> Tensor:
        """Latents at the next noise level, from the velocity at this one; the solver counts its steps itself."""
        before, after = self.sigmas[self._done : self._done + 2].tolist()
        self._done += 1
        x0 = latents - before * velocity
        if after == 0 or not self._few.renoises:
            return x0 + after * velocity
        assert self._fresh is not None
        return (1 - after) * x0 + after * self._fresh(self._done)


def noise(channels: int, shape: tuple[int, int, int], seed: int, done: int = 0) -> Tensor:
    """float32 [1, channels, frames, height, width], drawn on the CPU: the same on every device. done: after how many
    steps it is added; a seed's generator draws for one after the other, first for the start."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    for _ in range(done + 1):
        drawn = torch.randn(1, channels, *shape, generator=generator, dtype=torch.float32)
    return drawn


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of two velocities of one shape: unconditional + scale (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)
