"""What is written is what is read."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from fpsgen.presets import Layers, Phase, Preset, file
from tests.tools.presets import random_preset


@pytest.mark.parametrize("seed", range(150))
def test_a_preset_survives_its_file(seed: int) -> None:
    preset = random_preset(seed)
    assert file.parse(file.text(preset).encode(), preset.name) == preset


@pytest.mark.parametrize("seed", range(20))
def test_lines_point_at_what_is_seen(seed: int) -> None:
    """Where a setting has its own window, density, top or heads, at that line; else at its table, or its phase's."""
    text = file.text(random_preset(seed))
    lines = text.split("\n")
    preset = file.parse(text.encode(), "random")
    for phase in preset.phases:
        for own in (phase, *phase.layers):
            assert own.line
            there = lines[own.line - 1]
            assert re.match(r"(window|density|top|heads) = |\[\[phase(\.layers)?\]\]", there)
            if own.density is not None and there.startswith("density"):
                assert float(there.split(" = ")[1]) == own.density
            if own.heads and there.startswith("heads"):
                assert own.heads in there


def test_layers_that_do_what_their_phase_does_can_be_read_again() -> None:
    phase = Phase(sigma=(1.0, 0.0), layers=(Layers(at=(0,)),))
    preset = Preset(name="same", phases=(phase,))
    assert file.parse(file.text(preset).encode(), "same") == preset


def test_as_dict_is_json_and_says_what_is_used() -> None:
    for seed in range(20):
        preset = random_preset(seed)
        told = json.loads(json.dumps(file.as_dict(preset)))
        assert [phase["sigma"] for phase in told["phases"]] == [list(phase.sigma) for phase in preset.phases]
        for phase, own in zip(told["phases"], preset.phases, strict=True):
            assert phase.get("density") == own.density
            assert phase.get("heads", "") == own.heads
            assert (phase.get("top"), phase.get("rest", "drop")) == (own.top, own.rest)
            assert len(phase.get("layers", [])) == len(own.layers)
        assert ("measured" in told) == (preset.measured is not None)


@pytest.mark.parametrize("seed", range(60))
def test_a_preset_survives_a_video_s_comment(seed: int) -> None:
    preset = random_preset(seed)
    told = json.loads(json.dumps(file.as_dict(preset)))
    assert file.from_dict(told) == replace(preset, about="")


def test_ranges() -> None:
    assert file.ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert file.ranges([3]) == "3"


def test_names_do_not_matter_to_what_is_written() -> None:
    preset = random_preset(3)
    assert file.text(replace(preset, name="other")) == file.text(preset)
