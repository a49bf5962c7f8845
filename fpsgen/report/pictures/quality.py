"""The pictures of many clips: the PSNR of each, and how often they show what was asked for."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import PercentFormatter

from fpsgen.bench.record import QualityRecord
from fpsgen.report import words
from fpsgen.report.pictures.drawing import GREY, INK, SOFT, canvas, legend, png, written
from fpsgen.report.quality import Hits, adherence_of, values_of


def draw(record: QualityRecord) -> dict[str, bytes]:
    """Pictures by name: psnr, and adherence where it was judged."""
    drawn = {"psnr": _psnr(record)}
    return drawn | {"adherence": _adherence(judged)} if (judged := adherence_of(record)) else drawn


def _psnr(record: QualityRecord) -> bytes:
    """A row for each contender: a dot for each clip, infinite ones in a band at the right; mean and its interval."""
    contenders = record.others
    figure = canvas(1.0 + 0.9 * len(contenders))
    axes = figure.subplots()
    finite = [value for one in contenders for value in values_of(one) if math.isfinite(value)] or [30.0]
    margin = max(0.5, 0.06 * (max(finite) - min(finite)))
    end = max(finite) + margin
    for row, one in enumerate(contenders):
        values, mean = values_of(one), one.fidelity and one.fidelity.psnr
        # Beside each other by the golden ratio: evenly, and without chance.
        beside = [row - 0.18 + 0.4 * (number * 0.618 % 1 - 0.5) for number in range(len(values))]
        shown = [value if math.isfinite(value) else end + margin for value in values]
        axes.scatter(shown, beside, 22, f"C{row}", edgecolors="white", linewidths=0.5, alpha=0.85)
        if mean:
            axes.errorbar(mean.mean, row + 0.28, xerr=mean.ci95, fmt="D", color=INK, markersize=5, capsize=3,
                          label="mean, 95 % interval")  # fmt: skip
        if same := sum(map(math.isinf, values)):
            axes.annotate(words.counted(same, "clip"), (end + margin, row + 0.28), ha="center", va="center", fontsize=8)
    if any(math.isinf(value) for one in contenders for value in values_of(one)):
        axes.axvspan(end, end + 2 * margin, color=GREY, alpha=0.25, linewidth=0, label="the same frames: ∞ dB")
        end += 2 * margin
    axes.set_xlim(min(finite) - margin, end)
    axes.set_ylim(len(contenders) - 0.5, -0.5)
    axes.set_yticks(range(len(contenders)), [written(one.label) for one in contenders])
    axes.set_xlabel(f"PSNR against {written(record.base.label)}, dB")
    axes.grid(True, axis="x")
    legend(figure, 2)
    return png(figure)


def _adherence(judged: list[tuple[str, Hits]]) -> bytes:
    """Bars for each aspect, one for each contender: the share of clips that show it, and its 95 % interval."""
    aspects = list(judged[0][1])
    pitch = len(judged) + 1
    figure = canvas(0.8 + 0.25 * pitch * len(aspects))
    axes = figure.subplots()
    for order, (name, shown) in enumerate(judged):
        rows = [number * pitch + order for number in range(len(aspects))]
        hits, clips = np.array(list(shown.values())).T
        low, up = wilson(hits, clips)
        colour = GREY if order == len(judged) - 1 else f"C{order}"  # the last is the reference
        errors = hits / clips - low, up - hits / clips
        axes.barh(rows, hits / clips, 0.82, color=colour, label=written(name), xerr=errors, ecolor=INK, capsize=2)
        for row, counts in zip(rows, shown.values(), strict=True):
            axes.annotate("{} of {}".format(*counts), (1.015, row), va="center", fontsize=8, color=SOFT,
                          annotation_clip=False)  # fmt: skip
    axes.set_yticks([number * pitch + (len(judged) - 1) / 2 for number in range(len(aspects))], map(written, aspects))
    axes.set(xlim=(0, 1), xlabel="clips that show what their prompt says")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    legend(figure, 4)
    return png(figure)


def wilson(hits: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % confidence intervals of shares (Wilson, 1927), within 0 and 1 also where hits are none or all."""
    z, share = 1.96, hits / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)
