"""What a video is made of: resolved once, and read back from its own comment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fpsgen import replay
from fpsgen.errors import UsageError
from fpsgen.presets import Preset, shipped
from fpsgen.request import Request, resolve
from fpsgen.target import Target
from fpsgen.wan import sizes
from fpsgen.weights import models
from tests.tools.cli import Runner
from tests.tools.videos import metadata

TARGET = Target(torch.device("cpu"), torch.float32, torch.bfloat16)
OUTPUT = Path("cat.mp4")


def read_back(request: Request, model: models.Model) -> Request:
    """Through the comment, as JSON has it; what `Written` carries says the same."""
    about = resolve(request, model, TARGET).about("0123456789abcdef")
    assert about["weights"] == "0123456789abcdef"
    again = request_of(json.loads(json.dumps(about)))
    assert request_of(about) == again
    return again


def request_of(about: dict[str, Any]) -> Request:
    told = replay.understood(OUTPUT, about)
    return Request(told.prompt, told.settings, told.seed, OUTPUT, told.preset, told.scale_to)


@pytest.mark.parametrize("name", ["bf16", *shipped.names()])
def test_a_comment_holds_the_whole_request(name: str) -> None:
    """Every shipped preset, with settings that are no defaults: what is read back computes the same."""
    preset = shipped.find(name)
    model = models.find("pocket") if preset.model == "pocket" else models.absent(preset.model or "14b")
    own = model.defaults.override(steps=7, guidance=1.0, solver="dpm++", sigmas="diffusers", negative="bad")
    width, height = sizes.of_model(*(shipped.size_of(preset) or (own.width, own.height)), own.stride)
    own = own.override(width=width, height=height)
    request = Request("a cat\n“surfing”", own, 2**64 - 1, OUTPUT, preset, scale_to=(640, 384))
    again = read_back(request, model)
    assert again.preset is not None
    assert replace(again, preset=preset) == request
    assert again.preset.model == preset.model
    assert resolve(again, model, TARGET).steps == resolve(request, model, TARGET).steps


def test_a_video_is_made_again_from_its_comment(run: Runner) -> None:
    first = metadata(run(steps=2, seed=5, preset="fast")["output"])
    request = request_of(first)
    assert (request.prompt, request.seed, request.settings.steps) == (first["prompt"], 5, 2)
    assert request.preset is not None
    assert request.preset.name == first["preset"]["name"]
    assert len(first["weights"]) == 16


@pytest.mark.parametrize("damage", [{"phases": []}, {"tile": [0, 1, 1]}, {"windows": {"a": [2]}}])
def test_a_comment_whose_preset_is_none_is_refused(damage: dict[str, Any]) -> None:
    about = resolve(Request("", models.find("pocket").defaults, 0, OUTPUT), models.find("pocket"), TARGET).about("")
    told = json.loads(json.dumps(about))
    told["preset"] |= damage
    with pytest.raises(UsageError, match="preset bf16"):
        request_of(told)


@pytest.mark.parametrize("seed", [1.5, True, "1", None, 2**64])
def test_a_comment_whose_seed_is_none_is_refused(seed: object) -> None:
    pocket = models.find("pocket")
    about = resolve(Request("", pocket.defaults, 0, OUTPUT), pocket, TARGET).about("")
    with pytest.raises(UsageError, match=r"does not tell how fpsgen made it|must be 0 to"):
        request_of(about | {"seed": seed})


def test_a_preset_is_resolved_once_for_a_video(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = Preset.plans
    monkeypatch.setattr(Preset, "plans", lambda self, *args: calls.append(self.name) or real(self, *args))
    run(steps=2, preset="fast")
    assert calls == ["1.3b-480p-fast"]


@pytest.mark.parametrize(
    "damage",
    [
        {"width": None},
        {"steps": "7"},
        {"seed": -1},
        {"guidance": float("nan")},
        {"solver": "ddim"},
        {"preset": 3},
        {"frames": 5.0},
        {"fps": True},
        {"fps": 10**6},
        {"scale_to": [640]},
        {"scale_to": [641, 384]},
        {"solver": []},
        {"scale_to": ["1x1", 1]},
        {"stride": 0},
        {"prompt": None},
        {"negative": 1},
        {"boundary": "x"},
        {"loras": None},
    ],
)
def test_a_damaged_comment_is_refused(damage: dict[str, Any]) -> None:
    model = models.find("pocket")
    about = json.loads(json.dumps(resolve(Request("", model.defaults, 0, OUTPUT), model, TARGET).about("")))
    request_of(about)
    with pytest.raises(UsageError):
        request_of(about | damage)
    with pytest.raises(UsageError):
        request_of({})


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"width": 8}, {"frames": 2}, {"solver": "ddim"}, {"sigmas": "karras"}, {"fps": 0}]
)
def test_settings_that_are_none_are_refused_before_anything_loads(wrong: dict[str, Any]) -> None:
    model = models.find("pocket")
    with pytest.raises(UsageError) as error:
        resolve(Request("", replace(model.defaults, **wrong), 0, OUTPUT), model, TARGET)
    assert next(iter(wrong)) in str(error.value) or "8x96" in str(error.value)
    with pytest.raises(UsageError):
        resolve(Request("", model.defaults, 2**64, OUTPUT), model, TARGET)
