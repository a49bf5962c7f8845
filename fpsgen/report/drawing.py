"""What all pictures share: type, colours, sizes, PNG files in memory, frames beside each other.

The same record gives the same bytes. Figures are laid out in inches by hand: the margins then do not depend on how long
a label is, and what is placed by measuring text stays where it was measured.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fpsgen.report import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fpsgen.metrics import Pair

SCALE = 2  # pixels of a picture for each pixel of the page: sharp on dense screens
DPI = 96 * SCALE
WIDTH = 8.8  # inches, of a picture as wide as the page
INK, SOFT = "#1b1f24", "#5b6470"
# Of Okabe and Ito, which the colour-blind tell apart.
BLUE, VERMILION, GREEN, ORANGE, PINK, GREY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#b8bec6"
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#9aa1ab",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "savefig.facecolor": "white",
}

SHOWN_FRAMES = 6
AMPLIFIED = 4
HEADING = 52  # pixels above a row of frames
_FRAME_WIDTH = 320  # pixels at most
_GAP = 12  # pixels


@contextmanager
def styled() -> Iterator[None]:
    """Our settings inside: a user's matplotlibrc may ask for LaTeX or another size; it is back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def inches(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes in a figure, placed in inches from its upper left corner."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # no version: bytes stay the same
    return buffer.getvalue()


def written(name: object, most: int = 28) -> str:
    """A name from outside as a picture can have it: only letters that the font has, and not too many."""
    told = "".join(letter if letter.isprintable() and ord(letter) < 0x250 else "?" for letter in str(name))
    return told if len(told) <= most else f"{told[: most - 1]}…"


def frames(pair: Pair) -> bytes:
    """Three rows of frames from first to last: the reference, ours, and how they differ, amplified."""
    if pair.exact.shape != pair.ours.shape or pair.exact.ndim != 4 or not pair.exact.size:
        raise ValueError(f"a pair of clips of shapes {pair.exact.shape} and {pair.ours.shape}")
    count = len(pair.exact)
    chosen = np.unique(np.linspace(0, count - 1, SHOWN_FRAMES).round().astype(int))
    exact, ours = pair.exact[chosen], pair.ours[chosen]
    difference = np.abs(ours.astype(int) - exact) * AMPLIFIED
    rows = [sized(exact), sized(ours), sized(np.minimum(difference, 255))]
    _, high, wide, _ = rows[0].shape
    width, height = len(chosen) * (wide + _GAP) - _GAP, 3 * (HEADING + high)
    figure = canvas(width / DPI, height / DPI)
    names = [written(name) for name in pair.names]
    told = names[1] if pair.psnr is None else f"{names[1]}, PSNR {words.decibels(pair.psnr)}"
    for row, heading in enumerate((names[0], told, f"|difference| {words.TIMES} {AMPLIFIED}")):
        top = height - row * (HEADING + high)
        line = (top - HEADING + 18) / height
        figure.text(0, line, heading, va="center", fontsize=8.5, parse_math=False)
        for column, frame in enumerate(rows[row]):
            # figimage: pixel for pixel, where axes would blur.
            figure.figimage(frame, column * (wide + _GAP), top - HEADING - high, origin="upper")
            if row == 0 and (column or wide > 260):
                figure.text((column * (wide + _GAP) + wide) / width, line, f"frame {chosen[column] + 1}", ha="right",
                            va="center", fontsize=7, color=SOFT)  # fmt: skip
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
