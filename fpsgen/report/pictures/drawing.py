"""What all pictures share: type, colours, PNG files in memory, frames beside each other."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from fpsgen.report import words

if TYPE_CHECKING:
    from matplotlib.artist import Artist

    from fpsgen.metrics import Pair

DPI = 192  # two pixels of a picture for each of the page: sharp on dense screens
WIDTH = 8.8  # inches, of a picture as wide as the page
INK, SOFT, GREY = "#1b1f24", "#5b6470", "#b8bec6"
_STYLE = Path(__file__).with_name("report.mplstyle")

SHOWN_FRAMES = 6
AMPLIFIED = 4
HEADING = 52  # pixels above a row of frames
_FRAME_WIDTH = 320  # pixels at most
_GAP = 12  # pixels


def styled() -> AbstractContextManager[None]:
    """Our settings inside: a user's matplotlibrc may ask for LaTeX or another size; it is back afterwards."""
    return matplotlib.style.context(["default", _STYLE])


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches, that makes room for what is put around its axes."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def legend(figure: Figure, columns: int) -> None:
    """Above all axes: what has a label in any of them, each once."""
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        for artist, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, artist)
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns, handlelength=1.4)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # no version: bytes stay the same
    return buffer.getvalue()


def written(name: object, most: int = 28) -> str:
    """A name from outside as a picture can have it: only letters that the font has, and not too many."""
    text = "".join(letter if letter.isprintable() and ord(letter) < 0x250 else "?" for letter in str(name))
    return text if len(text) <= most else f"{text[: most - 1]}…"


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
    near = "" if pair.psnr is None else f", PSNR {words.decibels(pair.psnr)}"
    headings = exact_name, f"{our_name}{near}", f"|difference| {words.TIMES} {AMPLIFIED}"
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
