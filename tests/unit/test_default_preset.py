"""Which preset runs where none is named."""

from __future__ import annotations

import pytest
import torch

from fpsgen import pipeline
from fpsgen.attention import door
from fpsgen.attention.plan import AttentionPlan
from fpsgen.weights import models

SIZES = {"480p": (832, 480), "720p": (1280, 720)}


def choice(name: str):  # type: ignore[no-untyped-def]
    """As on a card whose 8-bit plans that backend runs."""

    def choose(device: torch.device, plan: AttentionPlan, head_dim: int) -> door.Choice:
        return door.Choice(name if plan.is_8bit else "dense", ())

    return choose


@pytest.mark.parametrize("key", ["1.3b", "14b"])
@pytest.mark.parametrize("size", list(SIZES))
def test_quality_where_our_kernels_run_it(key: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cuda = models.absent(key), torch.device("cuda")
    monkeypatch.setattr(door, "choose", choice("hopper"))
    assert pipeline.default_preset(model, *SIZES[size], 81, cuda).name == f"{key}-{size}-quality"
    monkeypatch.setattr(door, "choose", choice("reference"))
    assert pipeline.default_preset(model, *SIZES[size], 81, cuda).name == "bf16"


def test_bf16_on_a_cpu() -> None:
    assert pipeline.default_preset(models.find("pocket"), 160, 96, 25, torch.device("cpu")).name == "bf16"
