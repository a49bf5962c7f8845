"""The pictures of a comparison: seconds by phase, and what a step is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.patches import Patch, Rectangle
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
from fpsgen.timing import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = dict(zip(STAGES, (GREY, ORANGE, VERMILION, BLUE, GREEN, PINK), strict=True))
PARTS = {"attention": BLUE, "linear": ORANGE, "rest": GREY}
_DARK = (BLUE, GREEN, VERMILION)  # on which words are white
_APART = 3.0  # times as long: then cold and warm runs have scales of their own, or the shorter ones could not be read
_LETTER = 0.068  # inches, of a letter at 7.5 points
GUESSED = "//////"  # hatched: extrapolated

Bars = tuple[str, list[tuple[str, dict[str, float | None], list[float] | None]]]


def bars(panels: Sequence[Bars], extrapolated: frozenset[str]) -> bytes:
    """One bar for each contender, in panels: a title, and of each its name, seconds by phase and total, and the
    spread of its total where there is one. extrapolated: those of these names that were not measured."""
    row, head, gap, foot, top = 0.47, 0.28, 0.14, 0.3, 0.34
    heights = [head + row * len(each) for _, each in panels]
    with styled():
        figure = canvas(WIDTH, top + sum(heights) + (gap + foot) * len(panels) - gap)
        shown = [name for name in STAGES if any(told[name] for _, each in panels for _, told, _ in each)]
        _legend(figure, [(name, COLOURS[name]) for name in shown], bool(extrapolated))
        for (title, each), height, most in zip(panels, heights, scales(panels), strict=True):
            axes = inches(figure, 0.06, top + head, WIDTH - 0.12, height - head)
            axes.set_xlim(0, most * 1.02)
            axes.set_ylim(len(each), 0)
            axes.set_title(f"{title}, seconds", loc="left", fontsize=9, weight="bold", pad=6, parse_math=False)
            _ticks(axes)
            for number, (name, told, spread) in enumerate(each):
                _bar(axes, number, name, told, spread, extrapolated)
            top += height + foot + gap
        return png(figure)


def scales(panels: Sequence[Bars]) -> list[float]:
    """How many seconds each panel reaches: all as many, unless short bars could then not be read."""
    longest = [
        max(max(told["total"] or 0.0, (spread or [0.0])[-1]) for _, told, spread in each) or 1.0 for _, each in panels
    ]
    return longest if max(longest) >= _APART * min(longest) else [max(longest)] * len(panels)


def _legend(figure: Figure, entries: Sequence[tuple[str, str]], guessed: bool) -> None:
    handles = [Patch(facecolor=colour, label=name) for name, colour in entries]
    if guessed:
        handles.append(Patch(facecolor="white", edgecolor=SOFT, hatch=GUESSED, label="hatched: extrapolated"))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.004, 1.0), ncols=len(handles), fontsize=8,
                  handlelength=1.1, handletextpad=0.5, columnspacing=1.5, borderpad=0.3)  # fmt: skip


def _ticks(axes: Axes) -> None:
    """Seconds along the bottom, with faint lines up; no frame."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(length=3, labelsize=7.5)
    axes.grid(True, axis="x", color="#e8e8e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _bar(
    axes: Axes, number: int, name: str, told: dict[str, float | None], spread: list[float] | None,
    extrapolated: frozenset[str],
) -> None:  # fmt: skip
    """The name and the total above, what has room inside."""
    above = axes.text(0, number + 0.36, written(name, 60), fontsize=8, va="bottom", parse_math=False)
    guess = "≈ " if "total" in extrapolated else ""
    axes.annotate(f"{guess}{words.precise(told['total'] or 0.0)} s", (1, 0), (6, 0), xycoords=above, va="bottom",
                  textcoords="offset points", fontsize=8, weight="bold")  # fmt: skip
    scale = WIDTH / axes.get_xlim()[1]  # inches of a second
    at = 0.0
    for phase in STAGES:
        if not (seconds := told[phase]):
            continue
        colour = COLOURS[phase]
        axes.add_patch(Rectangle((at, number + 0.4), seconds, 0.46, facecolor=colour, edgecolor="white",
                                 linewidth=0.6, hatch=GUESSED if phase in extrapolated else None))  # fmt: skip
        long, short = f"{phase} {words.precise(seconds)}", words.precise(seconds)
        label = next((text for text in (long, short) if len(text) * _LETTER < seconds * scale - 0.06), "")
        box = {"facecolor": colour, "edgecolor": "none", "pad": 1.2} if phase in extrapolated else None
        axes.text(at + seconds / 2, number + 0.63, label, ha="center", va="center", fontsize=7.5,
                  color="white" if colour in _DARK else INK, bbox=box if label else None)  # fmt: skip
        at += seconds
    if spread is not None and spread[1] > spread[0]:
        axes.plot(spread, [number + 0.63] * 2, color=INK, linewidth=1.1, solid_capstyle="butt")
        axes.plot(spread, [number + 0.63] * 2, "|", color=INK, markersize=7, markeredgewidth=1.1, linestyle="")


def split(contenders: Sequence[tuple[str, list[dict[str, Any]]]]) -> bytes:
    """One panel each: steps to the right, seconds of a step upwards, by what these went to; an area is time.

    Phases are the record's. All panels have one scale.
    """
    columns = 1 if len(contenders) == 1 else 2
    rows = math.ceil(len(contenders) / columns)
    left, high, head, foot, top = 0.58, 1.75, 0.34, 0.46, 0.32
    pitch = WIDTH / columns
    wide = pitch - left - 0.12
    most = max(phase["step"] for _, phases in contenders for phase in phases) * 1.16 or 1.0
    with styled():
        figure = canvas(WIDTH, top + rows * (head + high + foot))
        whole = any(phase["split"] is None for _, phases in contenders for phase in phases)
        _legend(figure, [*PARTS.items(), *([("not split", "#e4e6e9")] if whole else [])], False)
        for number, (name, phases) in enumerate(contenders):
            across, down = number % columns, number // columns
            axes = inches(figure, left + across * pitch, top + head + down * (head + high + foot), wide, high)
            axes.set_ylim(0, most)
            axes.set_xlim(0, max(phase["last"] for phase in phases))
            axes.set_title(written(name, 44), loc="left", fontsize=9, weight="bold", pad=8, parse_math=False)
            _panel(axes, phases, wide)
            if not across:
                axes.set_ylabel("seconds a step", fontsize=8)
            if number >= len(contenders) - columns:
                axes.set_xlabel("step", fontsize=8, labelpad=2)
        return png(figure)


def _panel(axes: Axes, phases: list[dict[str, Any]], wide: float) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3, labelsize=7.5)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(True, axis="y", color="#e8e8e4", linewidth=0.7)
    axes.set_axisbelow(True)
    steps = phases[-1]["last"]
    edges = sorted({0, *(phase["last"] for phase in phases)})
    room = steps * 0.24 / wide
    axes.set_xticks([edge for n, edge in enumerate(edges) if n == 0 or edge - edges[n - 1] >= room or edge == steps])
    for phase in phases:
        begin, count = phase["first"] - 1, phase["last"] - phase["first"] + 1
        at = 0.0
        for part, seconds in heights(phase).items():
            axes.add_patch(Rectangle((begin, at), count, seconds, facecolor=PARTS.get(part, "#e4e6e9"),
                                     edgecolor="white", linewidth=0.5))  # fmt: skip
            at += seconds
        if phase["density"] is not None and (across := count * wide / steps) > 0.3:
            told = f"{'density ' if across > 0.85 else ''}{round(phase['density'], 2):g}"
            axes.text(begin + count / 2, at, told, ha="center", va="bottom", fontsize=7, color=SOFT)


def heights(phase: dict[str, Any]) -> dict[str, float]:
    """Seconds of attention, linear layers and rest in a median step: shares of the step that was split, taken of it."""
    parts = phase["split"]
    if parts is None or not (whole := sum(parts[part] for part in PARTS)):
        return {"": phase["step"]}
    return {part: phase["step"] * parts[part] / whole for part in PARTS}
