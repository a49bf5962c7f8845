"""How far a video is from another of the same noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MOST_PSNR = 100.0


def latent_error(ours: Tensor, exact: Tensor) -> float:
    """1 - cosine of two latents of one shape; 0 where they are the same. In float64: it may be far below 1e-7."""
    a, b = ours.double().flatten(), exact.double().flatten()
    if torch.equal(a, b):
        return 0.0
    apart = a / a.norm() - b / b.norm()
    return float(apart.square().sum() / 2)


def psnr(mean_square: float) -> float:
    """dB, of the mean squared difference of 8-bit frames; MOST_PSNR where there is next to none, so that a mean over
    clips stays a number."""
    return MOST_PSNR if mean_square == 0 else min(MOST_PSNR, 10 * math.log10(255**2 / mean_square))


def mean_square(ours: np.ndarray, exact: np.ndarray) -> float:
    """Of two arrays of uint8 frames of one shape."""
    # Frame by frame: as floats, a clip takes gigabytes. Squares are whole numbers, so that their order does not matter.
    pairs = zip(ours, exact, strict=True)
    total = sum(int(np.sum((a.astype(np.int32) - b) ** 2, dtype=np.int64)) for a, b in pairs)
    return total / ours.size


def mean_ci95(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and 1.96 of its standard errors; 0 of these for one value, of which nothing is known."""
    array = np.asarray(values, dtype=np.float64)
    spread = 1.96 * float(array.std(ddof=1)) / len(array) ** 0.5 if len(array) > 1 else 0.0
    return float(array.mean()), spread
