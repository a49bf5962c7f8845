"""The picture of attention under its roofs: TFLOP/s over floating-point operations per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fpsgen.report.drawing import (
    BLUE,
    GREEN,
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

_COLOURS = (BLUE, GREEN, PINK, ORANGE, VERMILION, "#56b4e9", INK, "#8a6d00")
_MARKS = "osD^vP*X"  # for those who see no colours


@dataclass(frozen=True)
class Point:
    """One contender at one density. family: those of one have one colour; hollow: drawn so. intensity: operations per
    byte; tflops: 10^12 operations per second."""

    name: str
    family: str
    hollow: bool
    density: float
    intensity: float
    tflops: float


@dataclass(frozen=True)
class Roofs:
    """What a card can do at most. flat: 10^12 operations per second, by what limits; memory: 10^12 bytes per second."""

    flat: dict[str, float]
    memory: float


def draw(points: Sequence[Point], roofs: Roofs) -> bytes:
    """Every contender with a colour and a mark, joined from density to density."""
    with styled():
        figure = canvas(WIDTH, 4.9)
        axes = inches(figure, 0.62, 0.12, WIDTH - 0.62 - 2.05, 4.2)
        low, high = _limits(axes, points, roofs)
        _roofs(axes, roofs, low, high)
        families = list(dict.fromkeys(point.family for point in points))
        for name in dict.fromkeys(point.name for point in points):
            own = sorted((point for point in points if point.name == name), key=lambda point: point.intensity)
            number, hollow = families.index(own[0].family), own[0].hollow
            colour = _COLOURS[number % len(_COLOURS)]
            axes.plot([point.intensity for point in own], [point.tflops for point in own],
                      marker=_MARKS[number % len(_MARKS)], color=colour, markersize=6, label=written(name),
                      linewidth=0.9, linestyle=(0, (3, 2)) if hollow else "-",
                      markerfacecolor="white" if hollow else colour, zorder=4)  # fmt: skip
        _densities(axes, points)
        for text in figure.legend(loc="upper left", bbox_to_anchor=((WIDTH - 1.95) / WIDTH, 1.0), fontsize=8,
                                  handlelength=1.6).get_texts():  # fmt: skip
            text.set_parse_math(False)
        return png(figure)


def _limits(axes: Axes, points: Sequence[Point], roofs: Roofs) -> tuple[float, float]:
    ridge = max(roofs.flat.values()) / roofs.memory
    low = min(ridge, *(point.intensity for point in points)) / 6
    high = max(ridge, *(point.intensity for point in points)) * 2
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    least = min(roofs.memory * low, *(point.tflops for point in points))
    axes.set_ylim(least / 1.5, max(roofs.flat.values()) * 1.9)
    axes.set_xlabel("FLOP per byte that must be moved")
    axes.set_ylabel("TFLOP/s of the pairs computed")
    axes.grid(True, color="#e8e8e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if value >= 1 else f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    return low, high


def _roofs(axes: Axes, roofs: Roofs, low: float, high: float) -> None:
    """Flat roofs from where memory allows them, and memory's slope; those of one height share a label."""
    top = max(roofs.flat.values())
    ridge = top / roofs.memory
    axes.plot([low, ridge], [roofs.memory * low, top], color=SOFT, linewidth=1.2)
    levels: dict[float, list[str]] = {}
    for name, level in roofs.flat.items():
        alike = next((known for known in levels if math.isclose(known, level, rel_tol=0.01)), level)
        levels.setdefault(alike, []).append(name)
    for level, names in levels.items():
        axes.plot([level / roofs.memory, high], [level, level], color=SOFT, linewidth=1.2)
        axes.annotate(f"{', '.join(names)}: {level:.0f} TFLOP/s", (level / roofs.memory, level), (14, 3), va="bottom",
                      textcoords="offset points", fontsize=8, color=SOFT)  # fmt: skip
    begin, end = axes.transData.transform([(low, roofs.memory * low), (ridge, top)])
    angle = math.degrees(math.atan2(end[1] - begin[1], end[0] - begin[0]))
    at = math.sqrt(low * ridge)  # the middle
    axes.annotate(f"memory: {roofs.memory:.2f} TB/s", (at, roofs.memory * at), (-4, 4), rotation=angle, ha="center",
                  va="bottom", rotation_mode="anchor", textcoords="offset points", fontsize=8, color=SOFT)  # fmt: skip


def _densities(axes: Axes, points: Sequence[Point]) -> None:
    """Below the lowest point of each density, that density; those that would touch are left out."""
    taken: list[float] = []
    width = axes.bbox.width
    for density in sorted({point.density for point in points}, reverse=True):
        low = min((point for point in points if point.density == density), key=lambda point: point.tflops)
        place = axes.transData.transform((low.intensity, low.tflops))[0]
        if any(abs(place - other) < width / 18 for other in taken):
            continue
        taken.append(place)
        axes.annotate(f"{density:.2g}", (low.intensity, low.tflops), (0, -8), ha="center", va="top",
                      textcoords="offset points", fontsize=7.5, color=INK)  # fmt: skip
