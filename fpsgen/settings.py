"""What a user may set of a video, and the defaults of each model, its authors': the one table of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from fpsgen.errors import UsageError, option
from fpsgen.solvers import FEW_STEPS, FewStepSolver, Sigmas, Solver, SolverName, noise_levels, steps_from
from fpsgen.wan import sizes

if TYPE_CHECKING:
    from torch import Tensor

# Where a transformer's blocks are while they do not compute: by what is free; on the device; elsewhere (`residence`).
Offload = Literal["auto", "none", "blocks"]

# Wan2.1 `wan/configs/shared_config.py`, `sample_neg_prompt` (Apache-2.0); the model was tuned with it.
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"  # noqa: RUF001
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"  # noqa: RUF001
    "杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)
# What models from images add before it: no camera that shakes (`wan/configs/wan_i2v_14B.py`), and between two images no
# cut (`wan/configs/__init__.py`); Wan2.2's add nothing.
_NO_SHAKING, _NO_CUT = "镜头晃动，", "镜头切换，"  # noqa: RUF001


@dataclass(frozen=True)
class Sampling:
    """What a user says of a video's length and steps; None leaves it to the model. Fields as `Settings` has them."""

    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_low: float | None = None
    shift: float | None = None
    solver: SolverName | None = None

    def check(self, sigmas: Sigmas = "original") -> None:
        """UsageError as `check_settings`."""
        check_settings(self.frames, self.steps, self.guidance, self.shift, self.solver, sigmas, self.guidance_low)


AS_USUAL = Sampling()


@dataclass(frozen=True)
class Placement:
    """How a command places a model. offload: of the transformer's blocks."""

    offload: Offload = "auto"


@dataclass(frozen=True)
class Settings:
    """All that a video depends on but its prompt, seed and preset.

    width, height: rendered, in pixels; negative: the prompt that guidance leads away from; sigmas: the noise levels of
    the steps, the original's or diffusers'; a solver for few steps has its authors', which count as the original's.
    boundary: the noise level from which up the high-noise expert computes steps, None for a model of one transformer;
    guidance_low: of the low-noise expert's steps, None for `guidance`. stride: pixels per latent, along height and
    width.
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
    boundary: float | None = None
    guidance_low: float | None = None
    stride: int = sizes.STRIDE

    def override(self, **given: Any) -> Settings:
        """These, but for every keyword that is not None, and for what a solver for few steps brings with it."""
        told = {name: value for name, value in given.items() if value is not None}
        few = FEW_STEPS.get(told.get("solver", ""))
        told = (few.settings if few else {}) | told
        if "guidance" in told:  # of both experts, unless the low-noise one's is given as well
            told = {"guidance_low": None} | told
        return replace(self, **told)

    def check(self) -> None:
        """UsageError where no video can have these settings."""
        sampling = (self.steps, self.guidance, self.shift, self.solver, self.sigmas, self.guidance_low)
        check_settings(self.frames, *sampling)
        sizes.check_model_size(self.width, self.height, self.stride)
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
        return sizes.latent_shape(self.frames, self.height, self.width, self.stride)

    @property
    def branches(self) -> int:
        """How many velocities each step computes: with guidance the conditional and the unconditional one."""
        return 1 if self.guidance == 1 and self.guidance_low in (None, 1) else 2

    @cached_property
    def high_steps(self) -> int:
        """How many of the first steps the high-noise expert computes: those whose timestep is not below the boundary
        (Wan2.2 `wan/text2video.py`); all where there is no other expert."""
        if self.boundary is None:
            return self.steps
        return steps_from(self.boundary, self.steps, self.shift, self.solver, self.sigmas)

    def guidance_at(self, step: int) -> float:
        """The guidance of a step, counted from 0."""
        return self.guidance if self.guidance_low is None or step < self.high_steps else self.guidance_low

    @property
    def noise_levels(self) -> list[float]:
        """Before each step."""
        return noise_levels(self.steps, self.shift, self.solver, self.sigmas)

    def new_solver(self, fresh: Callable[[int], Tensor] | None = None) -> Solver | FewStepSolver:
        """The solver before its first step. fresh: as `FewStepSolver` has it."""
        if self.solver in FEW_STEPS:
            return FewStepSolver(self.steps, self.shift, self.solver, fresh)
        return Solver(self.steps, self.shift, self.solver, self.sigmas)


_LARGE = Settings(1280, 720, 81, 16, 50, guidance=5.0, shift=5.0, negative=WAN_NEGATIVE)
# By the names of `wan.config.SHAPES`. Wan2.1 `generate.py` and README: 50 steps, 81 frames, shift 5 and guidance 5; for
# 1.3B the README advises guidance 6 and shift 8. They do not depend on the video's size, but for `at_size`. Wan2.2
# `wan/configs/wan_t2v_A14B.py`, `wan_i2v_A14B.py` and `wan_ti2v_5B.py`.
DEFAULTS = {
    "1.3b": replace(_LARGE, width=832, height=480, guidance=6.0, shift=8.0),
    "14b": _LARGE,
    "2.2-14b": replace(_LARGE, steps=40, shift=12.0, guidance=4.0, guidance_low=3.0, boundary=0.875),
    "5b": replace(_LARGE, height=704, frames=121, fps=24, stride=16),
    "i2v-14b": replace(_LARGE, steps=40, negative=_NO_SHAKING + WAN_NEGATIVE),
    "flf2v-14b": replace(_LARGE, shift=16.0, negative=_NO_CUT + _NO_SHAKING + WAN_NEGATIVE),
    "2.2-i2v": replace(_LARGE, steps=40, guidance=3.5, boundary=0.9),
}
# FastVideo `fastvideo/pipelines/basic/wan/presets.py`, `FAST_WAN_T2V_480P`: the size of the clips of their training.
DEFAULTS |= {
    f"{key}-vsa": DEFAULTS[key].override(solver="fastwan", width=832, height=448, frames=61) for key in ("1.3b", "14b")
}
DEFAULTS["5b-vsa"] = DEFAULTS["5b"].override(solver="fastwan")


def at_size(kind: str, own: Settings, width: int, height: int) -> Settings:
    """A model's defaults at a size: Wan2.1's `generate.py` lowers the shift of image-to-video at 480p. kind: of
    `wan.config.SHAPES`."""
    if kind != "i2v-14b" or own.solver in FEW_STEPS:
        return own
    return replace(own, shift=3.0 if sizes.named_size(width, height) == "480p" else DEFAULTS[kind].shift)


def check_settings(
    frames: int | None,
    steps: int | None,
    guidance: float | None,
    shift: float | None,
    solver: str | None = None,
    sigmas: str = "original",
    guidance_low: float | None = None,
) -> None:
    """Refuse numbers that mean nothing, and what a solver for few steps contradicts; None is none."""
    if frames is not None:
        sizes.check_frames(frames)
    for field, value, low, high, usual in (
        ("steps", steps, 1, 1000, 50),
        ("guidance", guidance, 0, 100, 5),
        ("guidance_low", guidance_low, 0, 100, 3),
        ("shift", shift, 0.01, 100, 5),
    ):
        if value is not None and not low <= value <= high:
            raise UsageError(f"{option(field, value)}: must be {low} to {high}", hint=f"try {option(field, usual)}")
    if few := FEW_STEPS.get(solver or ""):
        most = len(few.points)
        counts = f"{few.fewest} to {most}" if few.fewest < most else str(most)
        if steps is not None and not few.fewest <= steps <= most:
            hint = f"use {option('steps', most)}, or another {option('solver')}"
            raise UsageError(f"{option('steps', steps)}: the solver {solver} has {counts} steps", hint)
        for field, given, own in (("shift", shift, few.shift), ("sigmas", sigmas, "original")):
            if given not in (None, own):
                told = f"{option(field, given)}: the solver {solver} has noise levels of its own"
                raise UsageError(told, hint=f"leave {option(field)} out")
