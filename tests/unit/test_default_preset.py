"""Which preset runs where none is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fpsgen.attention import door
from fpsgen.attention.plan import AttentionPlan
from fpsgen.request import Request, resolve
from fpsgen.target import Target
from fpsgen.weights import models
from fpsgen.weights.models import Model

SIZES = {"480p": (832, 480), "720p": (1280, 720)}


def default_preset(model: Model, size: str, device: torch.device) -> str:
    """The name of what runs where none is named."""
    width, height = SIZES[size]
    request = Request("", model.defaults.override(width=width, height=height), 0, Path(), preset=None)
    return resolve(request, model, Target(device, torch.bfloat16, torch.bfloat16)).preset.name


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
    assert default_preset(model, size, cuda) == f"{key}-{size}-quality"
    monkeypatch.setattr(door, "choose", choice("reference"))
    assert default_preset(model, size, cuda) == "bf16"


def test_bf16_on_a_cpu() -> None:
    model = models.find("pocket")
    target = Target(torch.device("cpu"), torch.float32, torch.float32)
    assert resolve(Request("", model.defaults, 0, Path(), None), model, target).preset.name == "bf16"
