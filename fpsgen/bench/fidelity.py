"""How near a clip is to the reference's, of the same prompt and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fpsgen import metrics

if TYPE_CHECKING:
    from fpsgen.bench.perceptual import Lpips

# Final latents, and frames, uint8 [frames, height, width, 3].
Clip = tuple[Tensor, np.ndarray]


@dataclass(frozen=True)
class Fidelity:
    """How near one clip is to another.

    identical: whether all frames are the same; psnr, in dB, is then infinite, which is None here. latent_error: 1 -
    latent_cosine, with the digits that the latter loses. lpips: mean over frames; None where it could not be measured.
    nonfinite: how many of our latents are NaN or infinite; they are taken for 0 in latent_cosine and latent_error.
    """

    identical: bool
    latent_cosine: float
    latent_error: float
    psnr: float | None
    ssim: float
    lpips: float | None
    nonfinite: int


def between(ours: Clip, reference: Clip, lpips: Lpips | None = None) -> Fidelity:
    """What is measured of `ours`. lpips: from `perceptual.load`.

    ValueError where shapes differ, or frames are smaller than SSIM's window of 11 pixels.
    """
    (latents, frames), (exact, exact_frames) = ours, reference
    if latents.shape != exact.shape:
        raise ValueError(f"latents of shapes {tuple(latents.shape)} and {tuple(exact.shape)}")
    nonfinite = int((~latents.isfinite()).sum())
    if nonfinite:
        latents = latents.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    error = metrics.latent_error(latents.cpu(), exact.cpu())
    similar = metrics.ssim(frames, exact_frames)
    identical = bool(np.array_equal(frames, exact_frames))
    return Fidelity(
        identical=identical,
        latent_cosine=1 - error,
        latent_error=error,
        psnr=None if identical else metrics.psnr(metrics.mean_square(frames, exact_frames)),
        ssim=similar,
        lpips=lpips(frames, exact_frames) if lpips is not None else None,
        nonfinite=nonfinite,
    )
