"""The picture of error against cost, with the few labels for which there is room."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

from fpsgen.report import words
from fpsgen.report.drawing import BLUE, INK, SOFT, VERMILION, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure

# Shapes are for those who see no colours.
KINDS = {
    "calibrated": ("calibrated", BLUE, "o", 5.0),
    "preset": ("shipped preset", VERMILION, "s", 6.5),
    "uniform": ("one plan everywhere", "#4d8f78", "^", 6.5),
}
_MOST_LABELS = 8
# Where a label may stand: offset in points, and which of its corners is there.
_PLACES = [
    (reach * across, reach * up, ha, va)
    for reach in (8, 20, 34)
    for across, up, ha, va in (
        (1, 0.4, "left", "bottom"), (1, -0.4, "left", "top"), (-1, -0.4, "right", "top"), (-1, 0.4, "right", "bottom"),
        (0, 1, "center", "bottom"), (0, -1, "center", "top"),
    )
]  # fmt: skip


def draw(figure: Figure, points: list[dict[str, Any]]) -> None:
    """Points as in the record: kind, name, cost, error, psnr, measured, chosen."""
    axes = figure.add_axes((0.115, 0.115, 0.865, 0.795))
    floor = _scales(axes, points)
    places = [(float(point["cost"]), max(float(point["error"]), floor)) for point in points]
    joined = _unbeaten([place for place, point in zip(places, points, strict=True) if point["kind"] == "calibrated"])
    axes.plot([x for x, _ in joined], [y for _, y in joined], color=KINDS["calibrated"][1], linewidth=1, alpha=0.45)
    for (x, y), point in zip(places, points, strict=True):
        _, colour, marker, size = KINDS[point["kind"]]
        face = colour if point["measured"] else "white"
        above = 3.5 if point["measured"] else 3  # a prediction must not hide what was measured
        # Not clipped: what lies on the floor or at no cost shows whole.
        axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=size, zorder=above, clip_on=False)
        if point["chosen"]:
            axes.plot(x, y, "o", color=INK, markerfacecolor="none", markersize=14, markeredgewidth=1.6, zorder=4,
                      clip_on=False)  # fmt: skip
    _legend(figure, axes, points)
    _labels(FigureCanvasAgg(figure).get_renderer(), axes, points, places, joined)


def _unbeaten(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The pairs of cost and error, by cost, that have less error than all cheaper ones."""
    kept: list[tuple[float, float]] = []
    for cost, error in sorted(places):
        if not kept or error < kept[-1][1]:
            kept.append((cost, error))
    return kept


def _scales(axes: Axes, points: list[dict[str, Any]]) -> float:
    """Cost from 0, error by powers of ten; returns where on that scale errors of 0 are drawn."""
    errors = [float(point["error"]) for point in points if point["error"] > 0]
    low, high = (min(errors), max(errors)) if errors else (1e-3, 1e-3)
    zeros = len(errors) < len(points)
    floor = low / (4 if zeros else 1.7)
    axes.set_yscale("log")
    axes.set_ylim(floor, max(high * 1.7, floor * 12))
    axes.set_xlim(0, max(1.0, *(float(point["cost"]) for point in points)) * 1.04)
    axes.axvline(1, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlabel("modelled cost of attention (dense BF16 on an H100 = 1)")
    axes.set_ylabel("error of the final latents (1 \N{MINUS SIGN} cosine)")
    axes.yaxis.set_label_coords(-0.105, 0.5)  # the same for short and long numbers
    axes.grid(True, color="#e8e8e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    _error_ticks(axes, floor, low, zeros)
    return floor


def _error_ticks(axes: Axes, floor: float, low: float, zeros: bool) -> None:
    """Powers of ten, and where these are few, also 2 and 5 times; the floor is 0 where errors of 0 are on it."""
    top = axes.get_ylim()[1]
    powers = range(math.floor(math.log10(floor)), math.ceil(math.log10(top)) + 1)
    leads = (1,) if math.log10(top / floor) > 2.5 else (1, 2, 5)
    ticks = [lead * 10.0**power for power in powers for lead in leads]
    ticks = [tick for tick in ticks if (low / 1.5 if zeros else floor) <= tick <= top]
    axes.set_yticks([floor, *ticks] if zeros else ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "0" if zeros and y <= floor else words.power(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)


def _legend(figure: Figure, axes: Axes, points: list[dict[str, Any]]) -> None:
    entries = []
    for kind, (told, colour, marker, size) in KINDS.items():
        if any(point["kind"] == kind for point in points):
            line = "-" if kind == "calibrated" else ""
            entries.append(Line2D([], [], color=colour, marker=marker, markersize=size, linestyle=line, linewidth=1,
                                  label=told))  # fmt: skip
    if not all(point["measured"] for point in points):
        entries.append(Line2D([], [], color=SOFT, marker="o", markerfacecolor="white", markersize=5, linestyle="",
                              label="hollow: predicted, not measured"))  # fmt: skip
    if any(point["chosen"] for point in points):
        entries.append(Line2D([], [], color=INK, marker="o", markerfacecolor="none", markersize=11,
                              markeredgewidth=1.6, linestyle="", label="chosen"))  # fmt: skip
    figure.legend(handles=entries, loc="upper left", bbox_to_anchor=(axes.get_position().x0 - 0.015, 1.0),
                  ncols=len(entries), fontsize=8, handletextpad=0.5, columnspacing=1.6)  # fmt: skip


def _labels(
    renderer: RendererAgg, axes: Axes, points: list[dict[str, Any]], places: list[tuple[float, float]],
    joined: list[tuple[float, float]],
) -> None:  # fmt: skip
    """Names beside points, the most important first; one without room is left out, but never the chosen one's."""
    order = {"preset": 1, "uniform": 2}
    named = [i for i, point in enumerate(points) if point["chosen"] or (point["name"] and point["kind"] in order)]
    # Uniform plans that cost about as much as the chosen schedule tell most.
    cost = next((point["cost"] for point in points if point["chosen"]), 0.0)
    named.sort(
        key=lambda i: (not points[i]["chosen"], order.get(points[i]["kind"], 0), abs(points[i]["cost"] - cost), i)
    )
    dots = axes.transData.transform(places)
    taken: list[Bbox] = []
    for start, end in pairwise(axes.transData.transform(joined) if joined else []):
        for x, y in np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / 8)):
            taken.append(Bbox.from_bounds(x - 2, y - 2, 4, 4))
    full = len(taken) + _MOST_LABELS
    for i in named:
        marks = [_around(dots[j], points[j], points[i]) for j in range(len(points)) if j != i]
        placed = _label(renderer, axes, points[i], places[i], taken + marks)
        if placed is not None:
            taken.append(placed.padded(4))
        if len(taken) == full:
            break


def _around(dot: np.ndarray, point: dict[str, Any], named: dict[str, Any]) -> Bbox:
    """What to keep free of another's name: the mark, and where both look alike also what is beside it."""
    across, up = (30, 18) if point["kind"] == named["kind"] != "calibrated" else (10, 10)
    if point["chosen"]:
        across, up = 30, 20
    return Bbox.from_extents(dot[0] - across, dot[1] - up, dot[0] + across, dot[1] + up)


def _label(
    renderer: RendererAgg, axes: Axes, point: dict[str, Any], place: tuple[float, float], taken: list[Bbox]
) -> Bbox | None:
    room = axes.bbox
    weight, colour = ("bold", INK) if point["chosen"] else ("normal", KINDS[point["kind"]][1])
    for number, (across, up, ha, va) in enumerate(_PLACES):
        text = axes.annotate(
            _told(point), place, (across, up), textcoords="offset points", ha=ha, va=va, fontsize=8, color=colour,
            weight=weight, parse_math=False, zorder=5,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 4} if number > 5 else None,
        )  # fmt: skip
        text.update_positions(renderer)
        box = text.get_window_extent(renderer)
        inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
        if inside and not any(box.overlaps(other) for other in taken):
            return box
        text.remove()
    if point["chosen"]:
        axes.annotate(_told(point), place, (0, 12), textcoords="offset points", ha="center", weight="bold", fontsize=8,
                      parse_math=False)  # fmt: skip
    return None


def _told(point: dict[str, Any]) -> str:
    """A point's name, and its PSNR where measured."""
    name = written(point["name"])
    quality = "" if point["psnr"] is None else words.decibels(point["psnr"])
    return ", ".join(part for part in (name or "chosen" * point["chosen"], quality) if part)
