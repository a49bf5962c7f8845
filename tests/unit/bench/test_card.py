"""What is known of a card, without one."""

from __future__ import annotations

import subprocess

import pytest
import torch

from fpsgen.bench import card


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
    ],
)
def test_names_of_cards(name: str, slug: str) -> None:
    assert card.slug(name) == slug


def test_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def smi(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(command[-1])
        known = not command[-1].startswith("--id")  # as where the UUID is not the host's
        return subprocess.CompletedProcess(command, 0 if known else 6, "1980, 2619, 121.50, [N/A]\n" if known else "")

    uuid = type("Properties", (), {"uuid": "1-2"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: uuid)
    monkeypatch.setattr(subprocess, "run", smi)
    found = card.state(torch.device("cuda", 0))
    assert found == {"clocks.sm": 1980.0, "clocks.mem": 2619.0, "power.draw": 121.5, "temperature.gpu": None}
    assert asked[0] == "--id=GPU-1-2"


def test_no_state_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"uuid": "1-2"}))
    monkeypatch.setattr(subprocess, "run", absent)
    assert card.state(torch.device("cuda", 0)) is None


def test_a_card_is_lost_once_it_raises_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert card.is_alive(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert card.is_alive(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert not card.is_alive(torch.device("cuda", 0))
