"""The solver: which noise levels are visited, and how one step moves the latents.

What is odd about each is kept here and nowhere else. UniPC, DPM++ and Euler are what diffusers' schedulers compute, bit
for bit, in the one setting that Wan2.1 has of each; to load diffusers for them would take a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import atan, cos, sin
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # helps and wrong input need none of them, and do not wait for them
    import numpy as np
    from torch import Tensor

SolverName = Literal["unipc", "dpm++", "euler", "lightx2v", "fastwan", "turbowan"]
Sigmas = Literal["original", "diffusers"]
TRAIN_TIMESTEPS = 1000


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


def _diffusers_sigmas(solver: SolverName, steps: int, shift: float) -> np.ndarray:
    """What diffusers' scheduler visits by itself, after the shift, float64 [steps]."""
    import numpy as np

    least = 1 / TRAIN_TIMESTEPS
    if solver == "unipc":
        levels = shifted(np.linspace(1, least, steps + 1)[:-1], shift)
        levels[0] = min(levels[0], 1 - 1e-6)  # log(1 - 1) is no number
        return levels
    if solver == "dpm++":
        return shifted(np.flip(1 - np.linspace(1, least, steps + 1))[:-1], shift)
    # Euler's shifts the ends of its range, in float32, then the range.
    lowest = float(shifted(np.full(1, least, np.float32), shift)[0])
    return shifted(np.linspace(TRAIN_TIMESTEPS, TRAIN_TIMESTEPS * lowest, steps) / TRAIN_TIMESTEPS, shift)


def _sigmas(steps: int, shift: float, solver: SolverName, sigmas: Sigmas) -> np.ndarray:
    """The noise level before each step, float64 [steps]."""
    if sigmas == "diffusers":
        return _diffusers_sigmas(solver, steps, shift)
    return shifted(original_sigmas(solver, steps), shift)


def noise_levels(steps: int, shift: float, solver: SolverName = "unipc", sigmas: Sigmas = "original") -> list[float]:
    """The noise level before each step, in float32: what a `Solver` visits."""
    import numpy as np

    return _sigmas(steps, shift, solver, sigmas).astype(np.float32).tolist()


def _timesteps(levels: np.ndarray, solver: SolverName, sigmas: Sigmas) -> np.ndarray:
    """What the model is told before each step, by a solver that is not for few steps."""
    import numpy as np

    if (solver, sigmas) == ("euler", "diffusers"):
        return np.float32(TRAIN_TIMESTEPS) * levels.astype(np.float32)
    return (TRAIN_TIMESTEPS * levels).astype(np.int64)


class Solver:
    """A solver over a flow. UniPC and DPM++ are of order 2, predicting x0, of lower order at both ends, as Wan2.1 runs
    them; Euler is of order 1.

    sigmas "original" are Wan2.1's own; "diffusers" is what `WanPipeline` visits with that solver. The attribute is
    float32 [steps + 1]: the noise level before each step, and 0. timesteps: [steps], 1000 sigma, which the model is
    told, cut to integers as int64, but for diffusers' Euler. init_noise_sigma: what the noise is multiplied with
    before the first step.
    """

    init_noise_sigma = 1.0

    def __init__(self, steps: int, shift: float, solver: SolverName = "unipc", sigmas: Sigmas = "original"):
        import numpy as np
        import torch

        levels = _sigmas(steps, shift, solver, sigmas)
        self.sigmas = torch.from_numpy(np.append(levels, 0.0)).float()
        self.timesteps = torch.from_numpy(_timesteps(levels, solver, sigmas))
        self._solver, self._steps, self._done = solver, steps, 0
        # log of signal to noise. Scalars stay on the CPU, wherever the latents are: no step waits for them.
        self._logs = torch.log(1 - self.sigmas) - torch.log(self.sigmas)
        self._ends: list[Tensor] = []  # x0 as the last two steps predicted it
        self._begin: Tensor | None = None  # the latents that the last step went out from

    def step(self, velocity: Tensor, latents: Tensor) -> Tensor:
        """Latents at the next noise level, from the velocity at this one; the solver counts its steps itself."""
        step, self._done = self._done, self._done + 1
        if self._solver == "euler":
            return latents + (self.sigmas[step + 1] - self.sigmas[step]) * velocity
        x0 = latents - self.sigmas[step] * velocity
        if self._solver == "unipc" and self._begin is not None:
            latents = self._corrected(step - 1, self._begin, x0)
        self._ends, self._begin = [*self._ends[-1:], x0], latents
        return (self._unipc if self._solver == "unipc" else self._dpm)(step, latents)

    @property
    def left(self) -> list[Tensor]:
        """What later steps need of those that are done."""
        return self._ends if self._begin is None else [*self._ends, self._begin]

    def go_on(self, done: int, left: Sequence[Tensor]) -> None:
        """Stand where `done` steps have left this; ValueError where they leave another number of tensors."""
        if len(left) != (0 if self._solver == "euler" or not done else min(done, 2) + 1):
            raise ValueError(f"{len(left)} tensors are not what {done} steps of {self._solver} leave")
        self._ends, self._begin = [*left[:-1]], left[-1] if left else None
        self._done = done

    def _order(self, step: int) -> int:
        return 1 if step in (0, self._steps - 1) else 2

    def _unipc(self, step: int, latents: Tensor) -> Tensor:
        """UniP-2 with B(h) = e^h - 1 (Zhao et al., arXiv 2302.04867)."""
        straight, gain, bend, _ = self._interval(step, latents)
        return straight if bend is None else straight - gain * (0.5 * bend)

    def _corrected(self, step: int, begin: Tensor, x0: Tensor) -> Tensor:
        """UniC-2: where the step that began at `begin` would have ended, had it known x0 at its end."""
        import torch

        straight, gain, bend, ratio = self._interval(step, begin)
        change = x0 - self._ends[-1]
        if bend is None:
            return straight - gain * (0.5 * change)
        h = self._logs[step] - self._logs[step + 1]
        first = h.expm1() / h - 1
        ones = torch.ones(())
        weights = torch.linalg.solve(
            torch.stack([torch.stack([ones, ones]), torch.stack([ratio, ones])]),
            torch.stack([first / h.expm1(), (first / h - 0.5) * 2 / h.expm1()]),
        )
        return straight - gain * (weights[0] * bend + weights[1] * change)

    def _interval(self, step: int, begin: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Of a step of UniPC: its end if x0 stayed as it is; what a change of x0 is multiplied with; the change in a
        step, as the last one shows it, or None in a step of order 1; the last step's length, in this one's."""
        level, after, last = self.sigmas[step], self.sigmas[step + 1], self._ends[-1]
        h = self._logs[step + 1] - self._logs[step]
        gain = (1 - after) * (-h).expm1()
        straight = after / level * begin - gain * last
        ratio = (self._logs[step - 1] - self._logs[step]) / h
        bend = (self._ends[-2] - last) / ratio if self._order(step) == 2 else None
        return straight, gain, bend, ratio

    def _dpm(self, step: int, latents: Tensor) -> Tensor:
        """DPM-Solver++(2M), midpoint (Lu et al., arXiv 2211.01095)."""
        last = self._ends[-1]
        h = self._logs[step + 1] - self._logs[step]
        gain = (1 - self.sigmas[step + 1]) * ((-h).exp() - 1)
        straight = (self.sigmas[step + 1] / self.sigmas[step]) * latents - gain * last
        if self._order(step) == 1:
            return straight
        ratio = (self._logs[step] - self._logs[step - 1]) / h
        return straight - 0.5 * gain * ((1 / ratio) * (last - self._ends[-2]))


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

    @property
    def left(self) -> list[Tensor]:
        """As `Solver` has it: steps leave nothing but latents."""
        return []

    def go_on(self, done: int, left: Sequence[Tensor]) -> None:
        """As `Solver` has it."""
        if left:
            raise ValueError("a solver for few steps leaves no tensors")
        self._done = done


def steps_from(level: float, steps: int, shift: float, solver: SolverName, sigmas: Sigmas) -> int:
    """How many of a solver's first steps have a timestep that is not below that of a noise level."""
    if solver in FEW_STEPS:
        return int((FewStepSolver(steps, shift, solver).timesteps >= TRAIN_TIMESTEPS * level).sum())
    told = _timesteps(_sigmas(steps, shift, solver, sigmas), solver, sigmas)
    return int((told >= TRAIN_TIMESTEPS * level).sum())


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
