"""How near a clip is to the reference's, of the same prompt and noise."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from fpsgen import metrics
from fpsgen.bench.perceptual import Lpips
from fpsgen.bench.record import Fidelity
from fpsgen.sampling import zero_nonfinite

# Final latents, and frames, uint8 [frames, height, width, 3].
MadeClip = tuple[Tensor, np.ndarray]


def between(ours: MadeClip, reference: MadeClip, lpips: Lpips | None = None) -> Fidelity:
    """Measure how near `ours` is to the reference. lpips: from `perceptual.load`.

    ValueError where shapes differ, or frames are smaller than SSIM's window of 11 pixels.
    """
    (latents, frames), (exact, exact_frames) = ours, reference
    if latents.shape != exact.shape:
        raise ValueError(f"latents of shapes {tuple(latents.shape)} and {tuple(exact.shape)}")
    error = metrics.latent_error(zero_nonfinite(latents).cpu(), exact.cpu())
    similar = metrics.ssim(frames, exact_frames)
    identical = np.array_equal(frames, exact_frames)
    psnr = None if identical else metrics.psnr(metrics.mean_square(frames, exact_frames))
    perceived = None if lpips is None else lpips(frames, exact_frames)
    return Fidelity(identical, 1 - error, error, psnr, similar, perceived, count_nonfinite(latents))


def count_nonfinite(values: Tensor) -> int:
    """How many values are NaN or infinite."""
    return int((~values.isfinite()).sum())
