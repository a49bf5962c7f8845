"""What long work tells whoever looks on: one vocabulary for every command.

Work that makes a video is an iterator of events (`pipeline.generate`); calibration and the benches call a `Watch`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fpsgen.errors import FpsgenError
    from fpsgen.request import VideoPlan

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A stage begins: load, text, image, denoise, decode, measure, verify; what: is loaded."""

    name: str
    what: str = ""


@dataclass(frozen=True)
class Step:
    """`done` of `total` denoising steps are behind us; the last took `seconds`. finite: whether all its latents are
    numbers. Nothing but the watcher ends a run over it."""

    done: int
    total: int
    seconds: float
    finite: bool = True


@dataclass(frozen=True)
class TrainingStep:
    """`done` of `total` steps of training are behind us; the last took `seconds`. tokens: of the transformer, by all
    processes; skipped: its gradients were not used."""

    done: int
    total: int
    seconds: float
    loss: float
    tokens: int
    skipped: bool


@dataclass(frozen=True)
class Denoised:
    """The final latents, [1, 16, T, h, w]."""

    latents: Tensor = field(repr=False)


@dataclass(frozen=True)
class Preview:
    """What a video seems to become, after `done` of `total` steps; output: where it will be; pixels: uint8
    [height, width, 3]."""

    output: Path
    done: int
    total: int
    pixels: np.ndarray = field(repr=False)  # whoever prints events wants no pages of numbers


@dataclass(frozen=True)
class Frames:
    """`done` of `total` frames are decoded and with the encoder; pixels: the last, uint8 [n, height, width, 3]."""

    done: int
    total: int
    pixels: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Written:
    """The video is complete, in `path`. plan: what it was made by; about: what its comment says of that, timings
    included."""

    path: Path
    plan: VideoPlan = field(repr=False)
    about: dict = field(repr=False)


@dataclass(frozen=True)
class VideoFailed:
    """Of several videos the one of this number, counted from 1, could not be made; the others go on."""

    number: int
    fault: FpsgenError


@dataclass(frozen=True)
class Notice:
    """Something the user should know; `detail` ones only if asked for."""

    text: str
    detail: bool = False


@dataclass(frozen=True)
class Branches:
    """Whether both guidance branches run in one batch, or one after the other."""

    together: bool


@dataclass(frozen=True)
class Run:
    """The run `number` of `total` begins; each makes a video, or measures a contender, as its title says."""

    title: str
    number: int
    total: int


@dataclass(frozen=True)
class Work:
    """How much there is to do in all, in denoising steps of all guidance branches or another `unit`; told again where
    it grows."""

    total: float
    unit: str = "steps"


@dataclass(frozen=True)
class Done:
    """So much of the work was done, or found where an earlier run has kept it."""

    work: float


Event = (
    Stage | Step | TrainingStep | Denoised | Preview | Frames | Written | VideoFailed | Notice | Branches | Run | Work
    | Done
)  # fmt: skip
Watch = Callable[[Event], None]


def notices(watch: Watch) -> Watch:
    """A watch that tells `watch` of notices alone: for a part of work whose stages are not its own."""
    return lambda event: watch(event) if isinstance(event, Notice) else None


def finish(events: Generator[Event, None, T], watch: Watch) -> T:
    """Run an iterator of events to its end, telling `watch` each one; what the iterator returns."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        watch(event)
