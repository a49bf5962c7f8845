"""Previews on a CUDA device are those of the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.gpu


def picture(device: str, latents: torch.Tensor, linear: bool) -> np.ndarray:
    from fpsgen.preview import Previews  # collected where safetensors is not
    from fpsgen.weights import models

    previews, plan = Previews(1), SimpleNamespace(target=SimpleNamespace(device=torch.device(device)))
    made: Any = plan
    made.request = SimpleNamespace(settings=SimpleNamespace(stride=8))
    made.model = models.find("pocket")
    if linear:
        previews._map, previews._ready = torch.linspace(-0.3, 0.3, 17 * 3).view(17, 3), True
    return previews.picture(made, latents.to(device)).astype(int)


@pytest.mark.parametrize("linear", [False, True])
def test_previews_are_those_of_the_cpu(linear: bool) -> None:
    """Within 2 levels, as a mean: convolutions on a GPU may be in TF32, and a picture is rounded twice."""
    latents = torch.randn(1, 16, 7, 12, 20, generator=torch.Generator().manual_seed(0))
    assert np.abs(picture("cuda", latents, linear) - picture("cpu", latents, linear)).mean() < 2
