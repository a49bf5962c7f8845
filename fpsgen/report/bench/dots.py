"""The pictures of many clips: the PSNR of each, and how often they show what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fpsgen.report import words
from fpsgen.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    SOFT,
    VERMILION,
    WIDTH,
    canvas,
    inches,
    png,
    styled,
    written,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (BLUE, ORANGE, GREEN, PINK, VERMILION, "#56b4e9")
_DOT = 0.085  # inches, of a dot and its edge
_ROW = 0.9  # inches
_SIDE = 0.62  # inches at the right end, for clips whose PSNR is infinite


def psnr(rows: Sequence[tuple[str, Sequence[float], tuple[float, float | None] | None]], base: str) -> bytes:
    """A row for each contender: a dot for each clip, infinite ones at the right end, mean and its interval below.

    rows: name, PSNR of the clips, mean and half of its interval over those that are finite. base: what they are
    compared with.
    """
    with styled():
        figure = canvas(WIDTH, 0.3 + _ROW * len(rows) + 0.5)
        endless = any(math.isinf(value) for _, values, _ in rows for value in values)
        wide = WIDTH - 0.25 - (_SIDE if endless else 0.0)
        axes = inches(figure, 0.12, 0.3, wide, _ROW * len(rows))
        finite = [value for _, values, _ in rows for value in values if math.isfinite(value)] or [30.0]
        margin = max(0.5, 0.06 * (max(finite) - min(finite)))
        axes.set_xlim(min(finite) - margin, max(finite) + margin)
        axes.set_ylim(len(rows), 0)
        _frame(axes)
        axes.set_xlabel(f"PSNR against {written(base)}, dB", parse_math=False)
        for number, (name, values, mean) in enumerate(rows):
            _row(axes, number, name, values, mean, wide)
            _endless(axes, number, values, wide)
        if endless:
            place = axes.transAxes
            axes.text(1 + _SIDE / 2 / wide, 0, "∞", transform=place, ha="center", va="top", fontsize=10, color=INK)
            axes.plot([1 + 0.1 / wide] * 2, [0, 1], color="#e8e8e4", linewidth=0.7, transform=place, clip_on=False)
        handles = [
            Line2D([], [], marker="o", color=SOFT, markersize=5, linestyle="", label="a clip"),
            Line2D([], [], marker="D", color=INK, markersize=5, linewidth=1.4, label="mean, 95 % interval"),
        ]
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, 1.0), ncols=2, fontsize=8)
        return png(figure)


def _frame(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.tick_params(length=3)
    axes.grid(True, axis="x", color="#e8e8e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _row(
    axes: Axes, number: int, name: str, values: Sequence[float], mean: tuple[float, float | None] | None, wide: float
) -> None:
    low, high = axes.get_xlim()
    colour = _COLOURS[number % len(_COLOURS)]
    axes.text(low, number + 0.13, written(name, 60), fontsize=8.5, weight="bold", va="center", parse_math=False)
    finite = sorted(value for value in values if math.isfinite(value))
    scale = wide / (high - low)
    spread = stacked([value * scale for value in finite])
    room = min(_DOT / _ROW, 0.45 / max(1, 2 * max(spread, default=0)))
    axes.plot(finite, [number + 0.5 + room * _side(level) for level in spread], "o", color=colour, markersize=5,
              markeredgecolor="white", markeredgewidth=0.5, alpha=0.85, zorder=3)  # fmt: skip
    if mean is not None:
        middle, half = mean
        axes.plot([middle - (half or 0), middle + (half or 0)], [number + 0.86] * 2, color=INK, linewidth=1.4)
        axes.plot([middle], [number + 0.86], "D", color=INK, markersize=5, zorder=4)


def _endless(axes: Axes, number: int, values: Sequence[float], wide: float) -> None:
    """One mark for all clips that are identical, and how many they are."""
    if not (count := sum(map(math.isinf, values))):
        return
    at, rows = 1 + _SIDE / 2 / wide, axes.get_ylim()[0]
    axes.plot([at], [1 - (number + 0.5) / rows], "o", color=_COLOURS[number % len(_COLOURS)], markersize=5,
              transform=axes.transAxes, clip_on=False)  # fmt: skip
    axes.text(at, 1 - (number + 0.66) / rows, words.counted(count, "clip"), transform=axes.transAxes,
              ha="center", va="top", fontsize=7.5, color=SOFT)  # fmt: skip


def stacked(places: Sequence[float]) -> list[int]:
    """For ascending places in inches a level each, such that dots of one level do not touch: 0 where there is room."""
    ends: list[float] = []
    found = []
    for place in places:
        level = next((n for n, end in enumerate(ends) if place - end >= _DOT), len(ends))
        ends[level : level + 1] = [place]
        found.append(level)
    return found


def _side(level: int) -> float:
    """Levels to both sides in turn: 0, 1, -1, 2, -2 …"""
    return (level + 1) // 2 * (1 if level % 2 else -1)


def adherence(contenders: Sequence[tuple[str, Mapping[str, Sequence[int]]]]) -> bytes:
    """Bars for each aspect, one for each contender: the share of clips that show it, and its 95 % interval."""
    aspects = list(contenders[0][1])
    bar, gap, top = 0.25, 0.34, 0.32
    high = len(aspects) * (len(contenders) * bar + gap)
    with styled():
        figure = canvas(WIDTH, top + high + 0.42)
        axes = inches(figure, 0.95, top, WIDTH - 0.95 - 0.85, high)
        axes.set_xlim(0, 1)
        axes.set_ylim(high, 0)
        _frame(axes)
        axes.xaxis.set_major_formatter(lambda value, _: words.percent(value))
        axes.set_xlabel("clips that show what their prompt says")
        for number, aspect in enumerate(aspects):
            at = number * (len(contenders) * bar + gap) + gap / 2
            axes.text(-0.012, at + len(contenders) * bar / 2, written(aspect), ha="right", va="center", fontsize=9)
            for order, (name, told) in enumerate(contenders):
                hits, of = told[aspect]
                y = at + (order + 0.5) * bar
                label = written(name) if number == 0 else None
                axes.barh(y, hits / of, bar * 0.82, color=colour_of(order, len(contenders)), label=label)
                low, up = wilson(hits, of)
                axes.plot([low, up], [y, y], color="white", linewidth=2.6)
                axes.plot([low, up], [y, y], color=INK, linewidth=1.2)
                axes.text(1.015, y, f"{hits} of {of}", va="center", fontsize=8, color=SOFT)
        legend = figure.legend(loc="upper left", bbox_to_anchor=(0.098, 1.0), ncols=4, fontsize=8, handlelength=1.1)
        for text in legend.get_texts():
            text.set_parse_math(False)
        return png(figure)


def colour_of(order: int, count: int) -> str:
    """The last is the reference."""
    return GREY if order == count - 1 else _COLOURS[order % len(_COLOURS)]


def wilson(hits: int, of: int) -> tuple[float, float]:
    """A share's 95 % confidence interval (Wilson, 1927), which stays within 0 and 1 also where hits are none or all."""
    z, share = 1.96, hits / of
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def values_of(contender: Mapping[str, Any]) -> list[float]:
    """The PSNR of each clip of a contender, infinite where its frames are the reference's."""
    told = [clip["fidelity"] for clip in contender["clips"] if clip["fidelity"]]
    return [math.inf if one["identical"] else one["psnr"] for one in told]
