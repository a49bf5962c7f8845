"""The picture of attention under its roofs: TFLOP/s over floating-point operations per byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.ticker import LogLocator, NullFormatter

from fpsgen.report.attention import Point, Roofs, points_of, roofs_of
from fpsgen.report.pictures.drawing import INK, SERIES, SOFT, canvas, png, styled, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = "osD^vP*X"  # for those who see no colours


@styled
def draw(record: dict[str, Any]) -> dict[str, bytes]:
    """Pictures by name: roof-1, roof-2 … of the shapes in which anything was timed."""
    return {
        f"roof-{number}": _roofline(points, roofs_of(record["card"], case["head_dim"]))
        for number, case in enumerate(record["cases"], 1)
        if (points := points_of(case))
    }


def _roofline(points: list[Point], roofs: Roofs) -> bytes:
    """Every contender with a colour and a mark, joined from density to density."""
    figure = canvas(4.9)
    axes = figure.subplots()
    top = max(roofs.flat.values())
    ridge = top / roofs.memory
    low = min(ridge, *(point.intensity for point in points)) / 6
    high = max(ridge, *(point.intensity for point in points)) * 2
    least = min(roofs.memory * low, *(point.tflops for point in points))
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(least / 1.5, top * 1.9),
             xlabel="FLOP per byte that must be moved", ylabel="TFLOP/s of the pairs computed")  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:.0f}" if value >= 1 else f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True)
    _roofs(axes, roofs, low, high)
    families = list(dict.fromkeys(point.family for point in points))
    for name in dict.fromkeys(point.name for point in points):
        own = sorted((point for point in points if point.name == name), key=lambda point: point.intensity)
        number, hollow = families.index(own[0].family), own[0].with_prologue
        axes.plot([point.intensity for point in own], [point.tflops for point in own], _MARKS[number % len(_MARKS)],
                  color=SERIES[number % len(SERIES)], label=written(name), linewidth=0.9,
                  linestyle="--" if hollow else "-", fillstyle="none" if hollow else "full")  # fmt: skip
    for density in {point.density for point in points}:
        lowest = min((point for point in points if point.density == density), key=lambda point: point.tflops)
        axes.annotate(f"{density:.2g}", (lowest.intensity, lowest.tflops), (0, -8), textcoords="offset points",
                      ha="center", va="top", fontsize=7.5, color=INK)  # fmt: skip
    figure.legend(loc="outside right upper")
    return png(figure)


def _roofs(axes: Axes, roofs: Roofs, low: float, high: float) -> None:
    """Flat roofs from where memory allows them, and memory's slope; those of one height share a label."""
    style: dict[str, Any] = {"color": SOFT, "linewidth": 1.2}
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "fontsize": 8, "color": SOFT}
    ridge = max(roofs.flat.values()) / roofs.memory
    axes.plot([low, ridge], [roofs.memory * low, roofs.memory * ridge], **style)
    axes.annotate(f"memory: {roofs.memory:.2f} TB/s", (low * 1.6, roofs.memory * low * 1.6), (9, -3), **beside)
    levels: dict[int, list[str]] = {}
    for name, level in roofs.flat.items():
        levels.setdefault(round(level), []).append(name)
    for height, names in levels.items():
        axes.plot([height / roofs.memory, high], [height, height], **style)
        axes.annotate(f"{', '.join(names)}: {height} TFLOP/s", (height / roofs.memory, height), (14, 3), **beside)
