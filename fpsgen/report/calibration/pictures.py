"""The pictures of a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from fpsgen.report import clips, words
from fpsgen.report.calibration import frontier
from fpsgen.report.drawing import INK, SOFT, WIDTH, canvas, png, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from fpsgen.metrics import Pair

ZERO = "#f3f2ee"


def draw(record: dict[str, Any], pairs: Sequence[Pair]) -> dict[str, bytes]:
    """All pictures by name: error, density, frontier, frames-1, frames-2 …"""
    with styled():
        drawn = {"error": _error(record), "density": _density(record), "frontier": _frontier(record)}
    return drawn | clips.draw(pairs)


def _frontier(record: dict[str, Any]) -> bytes:
    figure = canvas(WIDTH, 5.2)
    frontier.draw(figure, record["frontier"])
    return png(figure)


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
    figure = canvas(left + wide + right, top + high + bottom)
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
    return png(figure)


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
    return png(figure)
