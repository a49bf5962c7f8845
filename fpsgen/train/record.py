"""What a training run was and came to, field by field as its JSON has it: docs/train.md explains each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fpsgen import metrics

MOST_POINTS = 2000


@dataclass(frozen=True)
class LossPoint:
    """Losses of a step, counted from 1, or means over the steps since the last point: what is learned from, and the
    squared distances from the dense model's velocity and from the flow."""

    step: int
    loss: float
    distil: float
    flow: float


@dataclass(frozen=True)
class Check:
    """The held-out clips after a step, against those of the dense model as it was. error: 1 - cosine of the final
    latents; psnr: of the frames, dB. Means over the clips, with half of their 95 % intervals, None for one clip."""

    step: int
    error: float
    error_ci95: float | None
    psnr: float
    psnr_ci95: float | None
    psnr_worst: float

    @classmethod
    def of(cls, step: int, errors: Sequence[float], psnrs: Sequence[float]) -> Check:
        """From the values of each clip."""
        return cls(step, *metrics.mean_ci95(errors), *metrics.mean_ci95(psnrs), min(psnrs))


@dataclass(frozen=True, kw_only=True)
class TrainRecord:
    """weights, trained: fingerprints of the transformer before and after. dtype: of matrix products. processes: how
    many computed. text: of the preset's file, as it was written. video: what the held-out clips are. losses:
    MOST_POINTS at most. checks: step 0 is the preset on the untrained model; the last one is the result, rounded as
    its file has it. skipped: steps that were not finite, or whose loss was a spike. seconds: of training, without
    checks."""

    kind: str = "training"
    format: int = 1
    date: str
    commit: str | None
    command: list[str]
    machine: dict[str, Any]
    model: str
    weights: str
    trained: str
    device: str
    dtype: str
    processes: int
    preset: str
    text: str
    settings: dict[str, Any]
    data: str
    samples: int
    video: dict[str, Any]
    prompts: list[str]
    losses: list[LossPoint]
    checks: list[Check]
    skipped: int
    steps: int
    tokens: int
    seconds: float
    result: str

    @property
    def fps(self) -> int:
        return int(self.video["fps"])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sampled(points: Sequence[LossPoint], most: int = MOST_POINTS) -> list[LossPoint]:
    """At most so many points: each the mean of as many that follow one another, at the last of their steps."""
    by = -(-len(points) // most) or 1
    groups = [points[i : i + by] for i in range(0, len(points), by)]
    return [
        LossPoint(group[-1].step, *(sum(getattr(one, key) for one in group) / len(group) for key in _MEANS))
        for group in groups
    ]


_MEANS = ("loss", "distil", "flow")
