"""What a calibration measures quality by, from values by hand; `bench/test_fidelity` has SSIM and Student's t."""

from __future__ import annotations

import math

import pytest
import torch

from fpsgen import metrics


@pytest.mark.parametrize(
    ("ours", "exact", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([6.0, 8.0], [3.0, 4.0], 0.0),  # a cosine sees no length
        ([4.0, 0.0], [0.0, 3.0], 1.0),
        ([-3.0, -4.0], [3.0, 4.0], 2.0),
        ([1.0, 0.0], [1.0, 1.0], 1 - math.sqrt(0.5)),
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
    ],
)
def test_a_latent_error_is_one_less_the_cosine(ours: list[float], exact: list[float], error: float) -> None:
    assert metrics.latent_error(torch.tensor(ours), torch.tensor(exact)) == pytest.approx(error, abs=1e-15)


@pytest.mark.parametrize("angle", [1e-3, 1e-6])
def test_small_latent_errors_keep_their_digits(angle: float) -> None:
    """1 - cosine of an angle is half its square; taken as a difference in float64, 1e-12 / 2 has four digits left."""
    ours = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    error = metrics.latent_error(ours, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert error == pytest.approx(angle**2 / 2, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    ("mean_square", "decibel"),
    [(1.0, 48.1308), (255.0**2, 0.0), (650.25, 20.0), (0.0, 100.0), (1e-9, 100.0), (6.6e-6, 99.9354)],
)
def test_psnr_is_against_the_peak_of_8_bits(mean_square: float, decibel: float) -> None:
    assert metrics.psnr(mean_square) == pytest.approx(decibel, abs=1e-4)


def test_a_mean_and_its_interval() -> None:
    """Of 1, 2, 3 and 4 the standard deviation is √(5/3), that of their mean half of it; 3.182 is Student's t for 3
    degrees of freedom."""
    mean, half = metrics.mean_ci95([1, 2, 3, 4])
    assert (mean, half) == (2.5, pytest.approx(3.1824 * math.sqrt(5 / 3) / 2, rel=1e-4))
    assert metrics.mean_ci95([3.0]) == (3.0, None)
