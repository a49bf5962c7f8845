"""The picture of attention under its roofs: TFLOP/s over floating-point operations per byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.ticker import LogLocator, NullFormatter

from fpsgen.bench.attention.record import AttentionRecord, Line
from fpsgen.report.attention import name_of, points_of, roofs_of
from fpsgen.report.pictures.drawing import SOFT, canvas, png, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = "osD^vP*X"  # for those who see no colours


def draw(record: AttentionRecord) -> dict[str, bytes]:
    """Pictures by name: roof-1, roof-2 … of the shapes in which anything was timed."""
    cases = enumerate(record.cases, 1)
    drawn = ((number, points_of(case), roofs_of(record.card, case.head_dim)) for number, case in cases)
    return {f"roof-{number}": _roofline(points, roofs) for number, points, roofs in drawn if points and roofs}


def _roofline(points: list[Line], roofs: dict[str, float]) -> bytes:
    """Every contender with a colour and a mark, joined from density to density."""
    figure = canvas(4.9)
    axes = figure.subplots()
    memory, top = roofs["memory"], max(roofs.values())
    intensities = [top / memory, *(line.intensity or 0 for line in points)]
    low, high = min(intensities) / 6, max(intensities) * 2
    least = min(memory * low, *(line.tflops or 0 for line in points))
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(least / 1.5, top * 1.9),
             xlabel="FLOP per byte that must be moved", ylabel="TFLOP/s of the pairs computed")  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True)
    _roofs(axes, roofs, low, high)
    families = list(dict.fromkeys(line.variant or line.name for line in points))
    for name in dict.fromkeys(map(name_of, points)):
        series = sorted((line for line in points if name_of(line) == name), key=lambda line: line.intensity or 0)
        number, hollow = families.index(series[0].variant or series[0].name) % len(_MARKS), series[0].kind == "together"
        style = ":" if series[0].top else "--" if hollow else "-"
        places = [line.intensity or 0 for line in series], [line.tflops or 0 for line in series]
        axes.plot(*places, f"C{number}{_MARKS[number]}", label=written(name, 50), linewidth=0.9,
                  linestyle=style, fillstyle="none" if hollow else "full")  # fmt: skip
    for density in {line.density for line in points}:
        lowest = min((line for line in points if line.density == density), key=lambda line: line.tflops or 0)
        axes.annotate(f"{density:.2g}", (lowest.intensity or 0, lowest.tflops or 0), (0, -8), ha="center", va="top",
                      textcoords="offset points", fontsize=7.5)  # fmt: skip
    figure.legend(loc="outside right upper")
    return png(figure)


def _roofs(axes: Axes, roofs: dict[str, float], low: float, high: float) -> None:
    """Flat roofs from where memory allows them, and memory's slope; those of one height share a label."""
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "fontsize": 8, "color": SOFT}
    memory, top = roofs["memory"], max(roofs.values())
    axes.plot([low, top / memory], [memory * low, top], color=SOFT)
    axes.annotate(f"memory: {memory:.2f} TB/s", (low * 1.6, memory * low * 1.6), (9, -3), **beside)
    levels: dict[int, list[str]] = {}
    for name, level in roofs.items():
        if name != "memory":
            levels.setdefault(round(level), []).append(name)
    for height, names in levels.items():
        axes.plot([height / memory, high], [height, height], color=SOFT)
        axes.annotate(f"{', '.join(names)}: {height} TFLOP/s", (height / memory, height), (14, 3), **beside)
