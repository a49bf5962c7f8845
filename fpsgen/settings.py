"""What a user may set of a video, and Wan2.1's defaults per model: the one table of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from fpsgen.errors import UsageError, option
from fpsgen.solvers import FEW_STEPS, FewStepSolver, Sigmas, Solver, SolverName, noise_levels
from fpsgen.wan import sizes

if TYPE_CHECKING:
    from torch import Tensor

# Wan2.1 `wan/configs/shared_config.py`, `sample_neg_prompt` (Apache-2.0); the model was tuned with it.
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"  # noqa: RUF001
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"  # noqa: RUF001
    "杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)


@dataclass(frozen=True)
class Settings:
    """All that a video depends on but its prompt, seed and preset.

    width, height: rendered, in pixels; negative: the prompt that guidance leads away from; sigmas: the noise levels of
    the steps, the original's or diffusers'; a solver for few steps has its authors', which count as the original's.
    """

    width: int
    height: int
    frames: int
    fps: int
    steps: int
    guidance: float
    shift: float
    negative: str
    solver: SolverName = "unipc"
    sigmas: Sigmas = "original"

    def override(self, **given: Any) -> Settings:
        """These, but for every keyword that is not None, and for what a solver for few steps brings with it."""
        told = {name: value for name, value in given.items() if value is not None}
        few = FEW_STEPS.get(told.get("solver", ""))
        return replace(self, **(few.settings if few else {}) | told)

    def check(self) -> None:
        """UsageError where no video can have these settings."""
        check_settings(self.frames, self.steps, self.guidance, self.shift, self.solver, self.sigmas)
        sizes.check_model_size(self.width, self.height)
        for field, value, choices in (
            ("solver", self.solver, get_args(SolverName)),
            ("sigmas", self.sigmas, get_args(Sigmas)),
        ):
            if value not in choices:
                raise UsageError(f"{option(field, value)}: there is none of that name", f"use {' or '.join(choices)}")
        if self.fps < 1:
            raise UsageError(f"fps {self.fps}: must be at least 1", hint="16 is Wan2.1's")

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT."""
        return f"{self.width}x{self.height}"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents."""
        return sizes.latent_shape(self.frames, self.height, self.width)

    @property
    def branches(self) -> int:
        """How many velocities each step computes: with guidance the conditional and the unconditional one."""
        return 1 if self.guidance == 1 else 2

    @property
    def noise_levels(self) -> list[float]:
        """Before each step."""
        return noise_levels(self.steps, self.shift, self.solver, self.sigmas)

    def new_solver(self, fresh: Callable[[int], Tensor] | None = None) -> Solver | FewStepSolver:
        """The solver before its first step. fresh: as `FewStepSolver` has it."""
        if self.solver in FEW_STEPS:
            return FewStepSolver(self.steps, self.shift, self.solver, fresh)
        return Solver(self.steps, self.shift, self.solver, self.sigmas)


# Wan2.1 `generate.py` and README: 50 steps, 81 frames, shift 5 and guidance 5; for 1.3B the README
# advises guidance 6 and shift 8. They do not depend on the video's size: `generate.py` lowers the shift at 480p
# for image-to-video alone.
DEFAULTS = {
    "1.3b": Settings(832, 480, 81, 16, 50, guidance=6.0, shift=8.0, negative=WAN_NEGATIVE),
    "14b": Settings(1280, 720, 81, 16, 50, guidance=5.0, shift=5.0, negative=WAN_NEGATIVE),
}


def defaults_of(dim: int) -> Settings:
    """Defaults of a model by the width of its transformer."""
    return DEFAULTS[sizes.family_of(dim)]


def check_settings(
    frames: int | None,
    steps: int | None,
    guidance: float | None,
    shift: float | None,
    solver: str = "unipc",
    sigmas: str = "original",
) -> None:
    """Refuse numbers that mean nothing, and what a solver for few steps contradicts; None is none."""
    if frames is not None:
        sizes.check_frames(frames)
    for field, value, low, high, usual in (
        ("steps", steps, 1, 1000, 50),
        ("guidance", guidance, 0, 100, 5),
        ("shift", shift, 0.01, 100, 5),
    ):
        if value is not None and not low <= value <= high:
            raise UsageError(f"{option(field, value)}: must be {low} to {high}", hint=f"try {option(field, usual)}")
    if few := FEW_STEPS.get(solver):
        most = len(few.points)
        counts = f"{few.fewest} to {most}" if few.fewest < most else str(most)
        if steps is not None and not few.fewest <= steps <= most:
            hint = f"use {option('steps', most)}, or another {option('solver')}"
            raise UsageError(f"{option('steps', steps)}: the solver {solver} has {counts} steps", hint)
        for field, given, own in (("shift", shift, few.shift), ("sigmas", sigmas, "original")):
            if given not in (None, own):
                told = f"{option(field, given)}: the solver {solver} has noise levels of its own"
                raise UsageError(told, hint=f"leave {option(field)} out")
