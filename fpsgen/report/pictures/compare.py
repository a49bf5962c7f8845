"""The pictures of a comparison: seconds by stage, and what a step is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from fpsgen.bench.record import CompareContender, CompareRecord
from fpsgen.report import words
from fpsgen.report.compare import EXTRAPOLATED, PARTS, panels, parts_of, times_of
from fpsgen.report.pictures.drawing import GREY, INK, SOFT, canvas, legend, png, written
from fpsgen.timing import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = dict(zip(STAGES, (GREY, "C1", "C4", "C0", "C2", "C3"), strict=True))
_PARTS = dict(zip(PARTS, ("C0", "C1", GREY), strict=True)) | {"": "#e4e6e9"}
_DARK = ("C0", "C2", "C4")  # on which words are white


def draw(record: CompareRecord) -> dict[str, bytes]:
    """Pictures by name: stages, steps."""
    return {"stages": _bars(record), "steps": _steps(record.contenders)}


def _bars(record: CompareRecord) -> bytes:
    """One bar for each contender, in a panel for warm and one for cold runs."""
    shown = panels(record)
    figure = canvas(0.4 + len(shown) * (0.7 + 0.42 * len(record.contenders)))
    every = figure.subplots(len(shown), squeeze=False)[:, 0]
    for axes, (title, which) in zip(every, shown, strict=True):
        axes.set_title(f"{title}, seconds")
        _panel(axes, record, which)
    legend(figure, len(STAGES))
    return png(figure)


def _panel(axes: Axes, record: CompareRecord, which: str) -> None:
    every = [(one, times_of(one, which)) for one in record.contenders]
    rows, ends = range(len(every)), [0.0] * len(every)
    longest = max(times["total"] or 0.0 for _, times in every) or 1.0
    for stage, colour in _COLOURS.items():
        own = [times[stage] or 0.0 for _, times in every]
        if not any(own):
            continue
        guessed = record.extrapolated and stage in EXTRAPOLATED
        bars = axes.barh(rows, own, 0.6, left=ends, label=stage, color=colour, edgecolor="white", linewidth=0.6,
                         hatch="//////" if guessed else None)  # fmt: skip
        labels = [words.precise(value) if value > 0.06 * longest else "" for value in own]
        texts = axes.bar_label(
            bars, labels, label_type="center", fontsize=7.5, color="white" if colour in _DARK else INK
        )
        for text in texts if guessed else ():
            text.set_bbox({"facecolor": colour, "edgecolor": "none", "pad": 1.2})
        ends = [end + value for end, value in zip(ends, own, strict=True)]
    for row, (one, _) in enumerate(every):
        low, high = one.spread["total"]
        if which == "median" and low != high:
            axes.plot([low or 0.0, high or 0.0], [row, row], "|-", color=INK, markersize=6, linewidth=1)
    mark = "≈ " if record.extrapolated else ""
    labels = [f"{written(one.label)}\n{mark}{words.precise(times['total'])} s" for one, times in every]
    axes.set_yticks(rows, labels)
    axes.set_xlim(0, longest * 1.04)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")


def _steps(contenders: list[CompareContender]) -> bytes:
    """One panel each: steps to the right, seconds of a step upwards, by what these went to; an area is time."""
    columns = min(2, len(contenders))
    rows = -(-len(contenders) // columns)
    figure = canvas(0.4 + 2.4 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(contenders) :]:
        axes.set_visible(False)
    for axes, one in zip(grid.flat, contenders, strict=False):
        axes.set_title(written(one.label, 44))
        last = one.phases[-1].last
        for phase in one.phases:
            begin, count, top = phase.first - 1, phase.last - phase.first + 1, 0.0
            for part, seconds in parts_of(phase).items():
                axes.bar(begin, seconds, count, bottom=top, align="edge", color=_PARTS[part], edgecolor="white",
                         linewidth=0.5, label=PARTS.get(part, "not split"))  # fmt: skip
                top += seconds
            if phase.density is not None and count > 0.08 * last:
                axes.annotate(f"{phase.density:.2f}", (begin + count / 2, top), ha="center", va="bottom", fontsize=7,
                              color=SOFT)  # fmt: skip
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.15)
        axes.grid(True, axis="y")
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("seconds a step", fontsize=8)
    legend(figure, len(_PARTS))
    return png(figure)
