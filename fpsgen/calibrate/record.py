"""What a calibration measured and chose, field by field as JSON has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fpsgen.attention.plan import KeyTiles
from fpsgen.attention.tiles import Shape3
from fpsgen.wan.plan import Compute, Guidance


@dataclass(frozen=True)
class Checked:
    """One clip with a schedule. error: 1 - cosine of the final latents; psnr: of the frames, dB."""

    prompt: str
    seed: int
    error: float
    psnr: float


@dataclass(frozen=True)
class FrontierPoint:
    """A schedule and what it costs in quality. cost: of denoising; kind: how it came about; measured: whether clips
    were rendered with it, or the error is an estimate, which ends at 1, and psnr is None; chosen: whether it became the
    preset."""

    kind: Literal["calibrated", "uniform", "preset", "dense"]
    name: str
    cost: float
    error: float
    psnr: float | None = None
    measured: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class PhaseSteps:
    """The steps of a phase, counted from 1 (1-4), and the noise levels between which they are."""

    steps: str
    sigma: tuple[float, float]


@dataclass(frozen=True)
class StepDone:
    """How a step is obtained, as `StepPlan` has it."""

    guidance: Guidance
    compute: Compute


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """error: of the final latents by the probe, [phases, layers]; density, precision: what was chosen, alike; sees: the
    key tiles of each head, [phases, layers, heads]; of phases whose steps are all continued from others, what those do.
    linear: the precision of linear layers, [phases or computed steps, layers]; steps_done: of each step. cost: of
    attention; denoising: with linear layers. summary: means over the clips, with their intervals where there are some.
    preset: the text of its file."""

    model: str
    weights: str
    device: str
    size: str
    frames: int
    steps: int
    shift: float
    guidance: float
    versions: dict[str, str]
    fps: int
    solver: str
    grid: Shape3
    tile: Shape3
    tiles: Shape3
    layers: int
    heads: int
    head_dim: int
    cost_tokens: int
    budget: str
    holds: bool
    phases: list[PhaseSteps]
    error: list[list[float]]
    probe: str
    density: list[list[float]]
    precision: list[list[str]]
    cost: float
    mean_density: float
    frontier: list[FrontierPoint]
    clips: list[Checked]
    summary: dict[str, float]
    prompts: tuple[str, ...]
    seconds: dict[str, float]
    preset: str
    backend: str
    baseline: str
    command: tuple[str, ...] = ()
    sees: list[list[list[KeyTiles]]] = field(default_factory=list)
    linear: list[list[str]] = field(default_factory=list)
    steps_done: list[StepDone] = field(default_factory=list)
    denoising: float | None = None
    loras: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """All but the command, which the page says alone."""
        told = asdict(self)
        del told["command"]
        return told
