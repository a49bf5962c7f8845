"""The pictures of the report, as PNG files in memory: the same record gives the same bytes.

Figures are laid out in inches by hand: the margins then do not depend on how long a label is, and what is placed by
measuring text stays where it was measured.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from fpsgen.report import frontier, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from fpsgen.report import Pair

SCALE = 2  # pixels of a picture for each pixel of the page: sharp on dense screens
DPI = 96 * SCALE
INK, SOFT, ZERO = "#1b1f24", "#5b6470", "#f3f2ee"
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
_FRAME_WIDTH = 320  # pixels at most
_GAP, _HEADING = 12, 52  # pixels


def draw(record: dict[str, Any], frames: Sequence[Pair]) -> dict[str, bytes]:
    """All pictures by name: error, density, frontier, frames-1, frames-2 …"""
    # A user's matplotlibrc may ask for LaTeX or another size; the context puts it back afterwards.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        drawn = {"error": _error(record), "density": _density(record), "frontier": _frontier(record)}
        for number, pair in enumerate(frames, 1):
            drawn[f"frames-{number}"] = _frames(pair)
    return drawn


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # no version: bytes stay the same
    return buffer.getvalue()


def _frontier(record: dict[str, Any]) -> bytes:
    figure = Figure(figsize=(8.8, 5.2), dpi=DPI)
    FigureCanvasAgg(figure)
    frontier.draw(figure, record["frontier"])
    return _png(figure)


def _is_narrow(record: dict[str, Any]) -> bool:
    """Whether there are too many phases for cells as wide as their words."""
    return len(record["phases"]) > 16


def _grid(record: dict[str, Any]) -> tuple[Figure, Axes, Axes]:
    """A figure with axes for phases by layers and axes for a colour bar, the same for all maps of a record."""
    phases, layers = record["phases"], record["layers"]
    upright = _is_narrow(record)
    cell = (0.4, 0.3) if upright else (0.68, 0.2)
    left, top, bottom, right = 0.5, 0.12, 1.45 if upright else 0.7, 1.2
    # Few phases or layers get larger cells.
    wide = max(cell[0] * len(phases), 5.2)
    high = max(cell[1] * layers, 1.7)
    figure = Figure(figsize=(left + wide + right, top + high + bottom), dpi=DPI)
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
    tall = min(high, 3.2)
    bar = figure.add_axes(((left + wide + 0.2) / width, (bottom + high - tall) / height, 0.14 / width, tall / height))
    axes.set_xlim(-0.5, len(phases) - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    joint = ", " if upright else "\n"
    labels = [f"{words.sigmas(phase)}{joint}{words.steps(phase)}" for phase in phases]
    axes.set_xticks(range(len(phases)), labels, fontsize=7.5, rotation=90 if upright else 0)
    every = 1 if layers <= 48 else 5
    axes.set_yticks(range(0, layers, every), [str(layer) for layer in range(0, layers, every)], fontsize=7.5)
    axes.tick_params(length=0)
    axes.set_xlabel("phase: noise level sigma, and the steps in it", labelpad=8)
    axes.set_ylabel("layer")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes, bar


def _cells(axes: Axes, values: np.ndarray, colours: str, norm: Normalize) -> AxesImage:
    """Values [phases, layers] as cells with white lines between them."""
    colour_map = matplotlib.colormaps[colours].with_extremes(bad=ZERO)
    image = axes.imshow(values.T, cmap=colour_map, norm=norm, aspect="auto", interpolation="nearest")
    phases, layers = values.shape
    axes.vlines(np.arange(1, phases) - 0.5, -0.5, layers - 0.5, color="white", linewidth=1.0)
    axes.hlines(np.arange(1, layers) - 0.5, -0.5, phases - 0.5, color="white", linewidth=0.6)
    return image


def _error(record: dict[str, Any]) -> bytes:
    error = np.array(record["error"], dtype=float).reshape(len(record["phases"]), record["layers"])
    error[~(error > 0)] = np.nan  # a logarithm has no place for them; rounding can leave zeros just below zero
    figure, axes, bar = _grid(record)
    high = float(np.nanmax(error)) if np.isfinite(error).any() else 1.0
    low = float(np.nanmin(error)) if np.isfinite(error).any() else 1.0
    # Five powers of ten at most, or a few stray cells would take all colours; at least one, or noise would.
    least = min(max(low, high / 1e5), high / 10)
    image = _cells(axes, error, "viridis_r", LogNorm(least, high))
    for phase, layer in np.argwhere(np.isnan(error)):
        axes.text(phase, layer, "0", ha="center", va="center", fontsize=6.5, color=SOFT)
    colours = figure.colorbar(image, cax=bar, extend="min" if low < least else "neither")
    colours.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.power(value)))
    colours.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_visible(bool(np.isfinite(error).any()))  # no scale where there is nothing to read on it
    colours.set_label("error (1 \N{MINUS SIGN} cosine)")
    colours.outline.set_visible(False)
    return _png(figure)


def _density(record: dict[str, Any]) -> bytes:
    phases, layers = len(record["phases"]), record["layers"]
    density = np.array(record["density"], dtype=float).reshape(phases, layers)
    narrow = _is_narrow(record)
    figure, axes, bar = _grid(record)
    image = _cells(axes, density, "Blues", Normalize(0, 1))
    size = 8 if phases <= 8 and layers <= 12 else 6.5
    for phase in range(phases):
        for layer in range(layers):
            value, precision = density[phase, layer], str(record["precision"][phase][layer])
            colour = "white" if value > 0.55 else INK
            told = f"{value:.2f}{chr(10) if narrow else '  '}{precision}"
            bold = "bold" if precision == "bf16" else "normal"
            axes.text(phase, layer, told, ha="center", va="center", fontsize=size, color=colour, weight=bold)
            if precision == "bf16":
                frame = (phase - 0.46, layer - 0.4)
                axes.add_patch(Rectangle(frame, 0.92, 0.8, fill=False, edgecolor=colour, linewidth=0.9))
    colours = figure.colorbar(image, cax=bar)
    colours.ax.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    colours.set_label("density")
    colours.outline.set_visible(False)
    return _png(figure)


def _frames(pair: Pair) -> bytes:
    """Three rows of frames from first to last: BF16, the schedule, and how they differ, amplified."""
    if pair.bf16.shape != pair.ours.shape or pair.bf16.ndim != 4 or not pair.bf16.size:
        raise ValueError(f"a pair of clips of shapes {pair.bf16.shape} and {pair.ours.shape}")
    count = len(pair.bf16)
    chosen = np.unique(np.linspace(0, count - 1, SHOWN_FRAMES).round().astype(int))
    reference, ours = pair.bf16[chosen], pair.ours[chosen]
    difference = np.abs(ours.astype(int) - reference) * AMPLIFIED
    rows = [_sized(reference), _sized(ours), _sized(np.minimum(difference, 255))]
    _, high, wide, _ = rows[0].shape
    width, height = len(chosen) * (wide + _GAP) - _GAP, 3 * (_HEADING + high)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    told = "this schedule" if pair.psnr is None else f"this schedule, PSNR {words.decibels(pair.psnr)}"
    for row, heading in enumerate(("BF16", told, f"|difference| {words.TIMES} {AMPLIFIED}")):
        top = height - row * (_HEADING + high)
        line = (top - _HEADING + 18) / height
        figure.text(0, line, heading, va="center", fontsize=8.5, parse_math=False)
        for column, frame in enumerate(rows[row]):
            # figimage: pixel for pixel, where axes would blur.
            figure.figimage(frame, column * (wide + _GAP), top - _HEADING - high, origin="upper")
            if row == 0 and (column or wide > 260):
                figure.text((column * (wide + _GAP) + wide) / width, line, f"frame {chosen[column] + 1}", ha="right",
                            va="center", fontsize=7, color=SOFT)  # fmt: skip
    return _png(figure)


def _sized(frames: np.ndarray) -> np.ndarray:
    """Frames [n, height, width, 3] at most `_FRAME_WIDTH` wide: whole pixels repeated, or averaged in squares."""
    _, height, width, _ = frames.shape
    if width <= _FRAME_WIDTH:
        times = _FRAME_WIDTH // width
        return frames.astype(np.uint8).repeat(times, axis=1).repeat(times, axis=2)
    by = min(-(-width // _FRAME_WIDTH), height)
    high, wide = height // by, width // by
    squares = frames[:, : high * by, : wide * by].reshape(len(frames), high, by, wide, by, 3)
    return squares.mean(axis=(2, 4)).round().astype(np.uint8)
