"""The pictures of a calibration: what an error each part leaves, what was chosen for it, error against cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import NullFormatter

from fpsgen.calibrate.record import CalibrationRecord, FrontierPoint
from fpsgen.report import words
from fpsgen.report.calibration import KINDS, unbeaten
from fpsgen.report.pictures.drawing import INK, SOFT, canvas, legend, png, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_DISTANCE = "1 \N{MINUS SIGN} cosine"
_MOST_WIDE = 16  # phases; with more, cells are narrower than their words
# Colour, shape, for those who see no colours, and size of each kind of schedule.
_LOOKS = {
    "calibrated": ("C0", "o", 25),
    "preset": ("C4", "s", 40),
    "uniform": ("C2", "^", 40),
    "dense": ("C3", "D", 30),
}


def draw(record: CalibrationRecord) -> dict[str, bytes]:
    """All pictures by name: error, density, frontier."""
    return {"error": _error(record), "density": _density(record), "frontier": _frontier(record.frontier)}


def _grid(
    record: CalibrationRecord, values: np.ndarray, colours: str, norm: Normalize
) -> tuple[Figure, Axes, AxesImage]:
    """A figure, and values [phases, layers] in it as cells with white lines between them."""
    phases, layers = values.shape
    narrow = phases > _MOST_WIDE
    figure = canvas(max(0.3 if narrow else 0.2, 1.6 / layers) * layers + (1.6 if narrow else 0.8),
                    max(0.4 if narrow else 0.68, 5.2 / phases) * phases + 1.7)  # fmt: skip
    axes = figure.subplots()
    colour_map = matplotlib.colormaps[colours].with_extremes(bad="#f3f2ee")
    image = axes.imshow(values.T, cmap=colour_map, norm=norm, aspect="auto", interpolation="nearest")
    axes.vlines(np.arange(1, phases) - 0.5, -0.5, layers - 0.5, color="white", linewidth=1.0)
    axes.hlines(np.arange(1, layers) - 0.5, -0.5, phases - 0.5, color="white", linewidth=0.6)
    joint = ", " if narrow else "\n"
    labels = [f"{words.sigmas(phase.sigma)}{joint}{words.span(phase.steps)}" for phase in record.phases]
    axes.set_xticks(range(phases), labels, rotation=90 if narrow else 0)
    axes.set_yticks(range(0, layers, 1 if layers <= 48 else 5))
    axes.tick_params(length=0, labelsize=7.5)
    axes.set(xlabel="phase: noise level sigma, and the steps in it", ylabel="layer")
    axes.spines[:].set_visible(False)
    return figure, axes, image


def _error(record: CalibrationRecord) -> bytes:
    error = np.array(record.error, dtype=float)
    error[~(error > 0)] = np.nan  # a logarithm has no place for them; rounding can leave zeros just below zero
    some = bool(np.isfinite(error).any())
    low, high = (float(np.nanmin(error)), float(np.nanmax(error))) if some else (0.1, 1.0)
    # Five powers of ten at most, or a few stray cells would take all colours; at least one, or noise would.
    least = min(max(low, high / 1e5), high / 10)
    figure, axes, image = _grid(record, error, "viridis_r", LogNorm(least, high))
    for phase, layer in np.argwhere(np.isnan(error)):
        axes.text(phase, layer, "0", ha="center", va="center", fontsize=6.5, color=SOFT)
    if some:
        bar = figure.colorbar(image, extend="min" if low < least else "neither", label=f"error ({_DISTANCE})")
        bar.ax.yaxis.set_major_formatter(lambda value, _: words.power(value))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return png(figure)


def _density(record: CalibrationRecord) -> bytes:
    density = np.array(record.density, dtype=float)
    figure, axes, image = _grid(record, density, "Blues", Normalize(0, 1))
    joint = "\n" if len(density) > _MOST_WIDE else "  "
    for (phase, layer), value in np.ndenumerate(density):
        precision = record.precision[phase][layer]
        dense = precision == "bf16"
        style: dict[str, Any] = {"color": "white" if value > 0.55 else INK, "weight": "bold" if dense else "normal"}
        box = {"boxstyle": "square,pad=0.25", "facecolor": "none", "edgecolor": style["color"]} if dense else None
        axes.text(phase, layer, f"{value:.2f}{joint}{precision}", ha="center", va="center", fontsize=7, bbox=box,
                  **style)  # fmt: skip
    figure.colorbar(image, label="density")
    return png(figure)


def _frontier(points: list[FrontierPoint]) -> bytes:
    figure = canvas(5.2)
    axes = figure.subplots()
    errors = [point.error for point in points if point.error > 0] or [1e-3]
    # Errors of 0 have their place below the least other one.
    axes.set_yscale("symlog", linthresh=min(errors) / 2, linscale=0.4, subs=[2, 5])
    least = 0 if min(point.error for point in points) <= 0 else min(errors) / 1.7
    axes.set(xlim=(0, max(1.0, *(point.cost for point in points)) * 1.04), ylim=(least, max(errors) * 1.7),
             xlabel="modelled cost of denoising (BF16 on an H100 = 1)",
             ylabel=f"error of the final latents ({_DISTANCE})")  # fmt: skip
    axes.yaxis.set_major_formatter(lambda value, _: words.power(value))
    if max(errors) < 300 * min(errors):  # few powers of ten
        axes.yaxis.set_minor_formatter(lambda value, _: words.power(value))
    axes.grid(True)
    axes.axvline(1, color=SOFT, linewidth=0.8, linestyle="--", zorder=1)
    joined = unbeaten(point for point in points if point.kind == "calibrated")
    axes.plot(*zip(*((point.cost, point.error) for point in joined), strict=True), "C0", linewidth=1, alpha=0.45)
    for kind, (colour, marker, size) in _LOOKS.items():
        for measured in (False, True):  # a prediction must not hide what was measured
            alike = [point for point in points if point.kind == kind and point.measured == measured]
            _marks(axes, alike, f"{KINDS[kind]}, {'measured' if measured else 'predicted'}", s=size, marker=marker,
                   edgecolors=colour, facecolors=colour if measured else "white", zorder=3 + measured)  # fmt: skip
    chosen = [point for point in points if point.chosen]
    _marks(axes, chosen, "chosen", s=190, marker="o", edgecolors=INK, facecolors="none", linewidths=1.6, zorder=5)
    for point in points:
        if point.chosen or point.kind in ("preset", "dense"):
            near = "" if point.psnr is None else f", {words.decibels(point.psnr)}"
            side: dict[str, Any] = {"xytext": (7, 5), "color": _LOOKS[point.kind][0]}
            if point.chosen:  # below what calibration offers
                side = {"xytext": (-11, -8), "ha": "right", "va": "top", "weight": "bold"}
            axes.annotate(f"{written(point.name or 'chosen')}{near}", (point.cost, max(point.error, 0)),
                          textcoords="offset points", fontsize=8, zorder=6, **side)  # fmt: skip
    legend(figure, 4)
    return png(figure)


def _marks(axes: Axes, points: list[FrontierPoint], label: str, **style: Any) -> None:
    """Not clipped: what has no error or no cost shows whole."""
    if points:
        axes.scatter([point.cost for point in points], [max(point.error, 0) for point in points], label=label,
                     clip_on=False, **style)  # fmt: skip
