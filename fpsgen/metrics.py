"""How far a video is from another of the same noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

MOST_PSNR = 100.0
_SHOWN = 2  # clips on a page, besides the worst

_RADIUS, _SIGMA = 5, 1.5  # of SSIM's window, pixels
_STABILISERS = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # (K1 L)² and (K2 L)² for 8 bits


@dataclass(frozen=True)
class Pair:
    """One clip twice, from the same noise: by the reference and by what is compared with it.

    psnr: in dB, None where not measured. exact, ours: uint8 [frames, height, width, 3]. names: what made them, in this
    order. which: which of several clips it is, in words.
    """

    prompt: str
    psnr: float | None
    exact: np.ndarray
    ours: np.ndarray
    names: tuple[str, str] = ("bf16", "this schedule")
    which: str = ""


def shown_clips(psnr: Sequence[float], reference: str) -> Iterator[tuple[int, str]]:
    """The first clips of many and the one furthest from the reference: the number of each, and its `Pair.which`."""
    worst = min(range(len(psnr)), key=psnr.__getitem__)
    for number in sorted({*range(min(_SHOWN, len(psnr))), worst}):
        furthest = f", the one furthest from {reference}" if number == worst and len(psnr) > 1 else ""
        yield number, f"clip {number + 1} of {len(psnr)}{furthest}"


def latent_error(ours: Tensor, exact: Tensor) -> float:
    """1 - cosine of two latents of one shape; 0 where they are the same, 1 where one is zero and has no direction. In
    float64: it may be far below 1e-7."""
    import torch

    a, b = ours.double().flatten(), exact.double().flatten()
    if torch.equal(a, b):
        return 0.0
    if not (a.any() and b.any()):
        return 1.0
    apart = a / a.norm() - b / b.norm()
    return float(apart.square().sum() / 2)


def psnr(mean_square: float) -> float:
    """dB, of the mean squared difference of 8-bit frames; MOST_PSNR where there is next to none, so that a mean over
    clips stays a number."""
    return MOST_PSNR if mean_square == 0 else min(MOST_PSNR, 10 * math.log10(255**2 / mean_square))


def mean_square(ours: np.ndarray, exact: np.ndarray) -> float:
    """The mean squared difference of two arrays of uint8 frames of one shape."""
    # Frame by frame: as floats, a clip takes gigabytes. Squares are whole numbers, so that their order does not matter.
    pairs = zip(ours, exact, strict=True)
    total = sum(int(np.sum((a.astype(np.int32) - b) ** 2, dtype=np.int64)) for a, b in pairs)
    return total / ours.size


def mean_ci95(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half its 95 % confidence interval by Student's t; None for one value, which has no interval."""
    array = np.asarray(values, dtype=np.float64)
    mean, count = float(array.mean()), len(array)
    return mean, student_t95(count - 1) * float(array.std(ddof=1)) / count**0.5 if count > 1 else None


def student_t95(freedom: int) -> float:
    """What Student's t of so many degrees of freedom stays within, up or down, with a probability of 95 %."""
    # For t = √freedom tan(angle), the density is proportional to cos(angle)^(freedom - 1): integrated by trapezia.
    angle = np.linspace(0, math.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    within = np.append(0, np.cumsum(density[1:] + density[:-1]))
    return math.sqrt(freedom) * math.tan(np.interp(0.95, within / within[-1], angle))


def ssim(ours: np.ndarray, exact: np.ndarray) -> float:
    """Structural similarity of two arrays of uint8 frames [frames, height, width, channels]: Wang, Bovik, Sheikh and
    Simoncelli (2004), a Gaussian window of 11 pixels and sigma 1.5, of each channel, mean over all.

    Where the window lies inside the frame alone, which no padding can flatter. ValueError where it lies nowhere inside.
    """
    if ours.shape != exact.shape or min(ours.shape[1:3]) < 2 * _RADIUS + 1:
        raise ValueError(f"SSIM of frames {ours.shape} and {exact.shape}: one shape, sides of 11 pixels at least")
    # Frame by frame: as floats, a clip takes gigabytes.
    return float(np.mean([_ssim_frame(a, b) for a, b in zip(ours, exact, strict=True)]))


def _ssim_frame(ours: np.ndarray, exact: np.ndarray) -> float:
    import torch

    x, y = (torch.from_numpy(frame).permute(2, 0, 1).double() for frame in (ours, exact))
    planes = torch.stack([x, y, x * x, y * y, x * y])
    mean_x, mean_y, square_x, square_y, product = _smooth(_smooth(planes, 2), 3)
    c1, c2 = _STABILISERS
    likeness = (2 * mean_x * mean_y + c1) * (2 * (product - mean_x * mean_y) + c2)
    energy = (mean_x**2 + mean_y**2 + c1) * (square_x - mean_x**2 + square_y - mean_y**2 + c2)
    return float((likeness / energy).mean())


def _smooth(planes: Tensor, dim: int) -> Tensor:
    """Each mean under the window along one dimension. By shifts: in float64 a convolution takes ten times as long."""
    import torch

    weights = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / (2 * _SIGMA**2))
    length = planes.shape[dim] - 2 * _RADIUS
    total = torch.zeros_like(planes.narrow(dim, 0, length))
    for shift, weight in enumerate(weights / weights.sum()):
        total.add_(planes.narrow(dim, shift, length), alpha=float(weight))
    return total
