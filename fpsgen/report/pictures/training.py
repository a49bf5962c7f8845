"""The pictures of a training run: its losses, and the quality of the held-out clips over the steps."""

from __future__ import annotations

import math

from fpsgen.report import words
from fpsgen.report.pictures.drawing import SOFT, canvas, legend, png
from fpsgen.train.record import LossPoint, TrainRecord

_NAMES = {"distil": "from the dense model's velocity", "flow": "from the flow"}
_SMOOTH = 50  # points at most that a line's mean is over


def draw(record: TrainRecord) -> dict[str, bytes]:
    """Pictures by name: loss, and quality where there were checks."""
    drawn = {"loss": _loss(record.losses)}
    return drawn | {"quality": _quality(record)} if record.checks else drawn


def _loss(points: list[LossPoint]) -> bytes:
    """Each part that was learned from, or looked at: a faint line, and its running mean."""
    figure = canvas(3.4)
    axes = figure.subplots()
    steps = [point.step for point in points]
    for number, (key, name) in enumerate(_NAMES.items()):
        values = [getattr(point, key) for point in points]
        if any(values):
            # An axis of powers has no place for 0, which dense stages may have.
            shown, mean = ([value or math.nan for value in line] for line in (values, _running(values)))
            axes.plot(steps, shown, color=f"C{number}", linewidth=0.6, alpha=0.35)
            axes.plot(steps, mean, color=f"C{number}", linewidth=1.4, label=name)
    axes.set(xlabel="step", ylabel="mean squared distance", yscale="log")
    axes.yaxis.set_major_formatter(lambda value, _: words.power(value))
    axes.grid(True)
    legend(figure, 2)
    return png(figure)


def _running(values: list[float]) -> list[float]:
    """The mean of each value and of those shortly before it."""
    by = max(1, min(_SMOOTH, len(values) // 10))
    return [math.fsum(values[max(0, i - by + 1) : i + 1]) / min(by, i + 1) for i in range(len(values))]


def _quality(record: TrainRecord) -> bytes:
    """Error and PSNR of the held-out clips; dashed, what the preset had on the untrained model."""
    figure = canvas(3.2)
    steps = [check.step for check in record.checks]
    for axes, key, label in zip(
        figure.subplots(1, 2), ("error", "psnr"), ("error (1 \N{MINUS SIGN} cosine)", "PSNR, dB"), strict=True
    ):
        values = [getattr(check, key) for check in record.checks]
        halves = [getattr(check, f"{key}_ci95") or 0.0 for check in record.checks]
        axes.errorbar(steps, values, yerr=halves, fmt="o-", markersize=4, capsize=2, label="mean, 95 % interval")
        axes.axhline(values[0], color=SOFT, linewidth=0.8, linestyle="--", label="before training")
        axes.set(xlabel="step", ylabel=label)
        axes.grid(True)
    legend(figure, 2)
    return png(figure)
