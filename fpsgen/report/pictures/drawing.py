"""What all pictures share: type, colours, PNG files in memory, frames beside each other."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fpsgen.report import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fpsgen.metrics import Pair

DPI = 192  # two pixels of a picture for each of the page: sharp on dense screens
WIDTH = 8.8  # inches, of a picture as wide as the page
INK, SOFT = "#1b1f24", "#5b6470"
# Of Okabe and Ito, which the colour-blind tell apart.
BLUE, VERMILION, GREEN, ORANGE, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#b8bec6"
SERIES = (BLUE, ORANGE, GREEN, PINK, VERMILION, "#56b4e9", INK, "#8a6d00")
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9,
    "text.parse_math": False,  # a name may hold dollars
    "text.color": INK,
    "axes.edgecolor": "#9aa1ab",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e8e8e4",
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.facecolor": "white",
}

SHOWN_FRAMES = 6
AMPLIFIED = 4
HEADING = 52  # pixels above a row of frames
_FRAME_WIDTH = 320  # pixels at most
_GAP = 12  # pixels

_Given = ParamSpec("_Given")
_Drawn = TypeVar("_Drawn")


def styled(draw: Callable[_Given, _Drawn]) -> Callable[_Given, _Drawn]:
    """Our settings inside: a user's matplotlibrc may ask for LaTeX or another size; it is back afterwards."""

    @functools.wraps(draw)
    def drawn(*args: _Given.args, **named: _Given.kwargs) -> _Drawn:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*args, **named)

    return drawn


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches, that makes room for what is put around its axes."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def legend(figure: Figure, axes: Axes, columns: int) -> None:
    """Above the axes: what has a label in them, each once."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns, handlelength=1.4)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # no version: bytes stay the same
    return buffer.getvalue()


def written(name: object, most: int = 28) -> str:
    """A name from outside as a picture can have it: only letters that the font has, and not too many."""
    told = "".join(letter if letter.isprintable() and ord(letter) < 0x250 else "?" for letter in str(name))
    return told if len(told) <= most else f"{told[: most - 1]}…"


@styled
def frames(pair: Pair) -> bytes:
    """Three rows of frames from first to last: the reference, ours, and how they differ, amplified."""
    if pair.exact.shape != pair.ours.shape or pair.exact.ndim != 4 or not pair.exact.size:
        raise ValueError(f"a pair of clips of shapes {pair.exact.shape} and {pair.ours.shape}")
    chosen = np.unique(np.linspace(0, len(pair.exact) - 1, SHOWN_FRAMES).round().astype(int))
    exact, ours = pair.exact[chosen], pair.ours[chosen]
    difference = np.minimum(np.abs(ours.astype(int) - exact) * AMPLIFIED, 255)
    rows = [sized(exact), sized(ours), sized(difference)]
    _, high, wide, _ = rows[0].shape
    width, height = len(chosen) * (wide + _GAP) - _GAP, 3 * (HEADING + high)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    exact_name, our_name = map(written, pair.names)
    headings = (
        exact_name,
        our_name if pair.psnr is None else f"{our_name}, PSNR {words.decibels(pair.psnr)}",
        f"|difference| {words.TIMES} {AMPLIFIED}",
    )
    for row, (shown, heading) in enumerate(zip(rows, headings, strict=True)):
        top = height - row * (HEADING + high)
        line = (top - HEADING + 18) / height
        figure.text(0, line, heading, va="center", fontsize=8.5)
        for column, (number, frame) in enumerate(zip(chosen, shown, strict=True)):
            left = column * (wide + _GAP)
            figure.figimage(frame, left, top - HEADING - high, origin="upper")  # pixel for pixel: axes would blur
            if row == 0 and (column or wide > 260):
                place = {"x": (left + wide) / width, "y": line, "ha": "right", "va": "center"}
                figure.text(s=f"frame {number + 1}", fontsize=7, color=SOFT, **place)
    return png(figure)


def sized(frames: np.ndarray) -> np.ndarray:
    """Frames [n, height, width, 3] at most `_FRAME_WIDTH` wide: whole pixels repeated, or averaged in squares."""
    _, height, width, _ = frames.shape
    if width <= _FRAME_WIDTH:
        times = _FRAME_WIDTH // width
        return frames.astype(np.uint8).repeat(times, axis=1).repeat(times, axis=2)
    by = min(-(-width // _FRAME_WIDTH), height)
    high, wide = height // by, width // by
    squares = frames[:, : high * by, : wide * by].reshape(len(frames), high, by, wide, by, 3)
    return squares.mean(axis=(2, 4)).round().astype(np.uint8)
