"""`fpsgen presets show` says how many steps of dense attention cost the same as a preset."""

from __future__ import annotations

from pathlib import Path

import pytest

from fpsgen.presets import cost
from fpsgen.wan.config import WAN_14B
from fpsgen.wan.plan import Linears
from tests.tools.cli import told
from tests.tools.presets import SMALL, presets


def test_the_number_of_dense_steps_that_cost_the_same(small: Path) -> None:
    report = told(presets("show", small, "--json"))
    # By hand: what a dense step in INT8 costs, and linear layers as in Wan2.1 14B at 720p: 6 x 5120² + 2 x 5120 x 13824
    # weights for each token, beside 2 x 5120 x 75600 of attention, at 0.8 x 989 and 470 TFLOPS.
    once, linear = 470 / 882 + 9 * 470 / 12 / 75600, (6 * 5120 + 2 * 13824) / (2 * 75600) * 470 / (0.8 * 989)
    assert report["dense_steps"] == {
        "qk": "int8", "pv": "fp8", "attention": pytest.approx(20 * report["cost"] / once),
        "video": pytest.approx(20 * (report["cost"] + linear) / (once + linear)),
    }  # fmt: skip
    (line,) = (line for line in presets("show", small).stdout.splitlines() if line.startswith("steps   "))
    shown = [f"{report['dense_steps'][key]:.1f}" for key in ("attention", "video")]
    assert [word for word in line.split() if word.count(".") == 1] == shown
    assert told(presets("show", small, "--steps", 40, "--json"))["dense_steps"]["attention"] > 30  # of 40


def test_a_preset_that_costs_more_than_all_dense_steps(small: Path) -> None:
    """Its first half is not rounded, which costs nearly twice as much as INT8."""
    halves = '[[phase]]\nsigma = [1.0, 0.5]\n[[phase]]\nsigma = [0.5, 0.0]\nqk = "int8"\npv = "fp8"\n'
    small.write_text(f'format = 1\nmodel = "pocket"\n{halves}')
    assert told(presets("show", small, "--json"))["dense_steps"]["attention"] > 20
    (line,) = (line for line in presets("show", small).stdout.splitlines() if line.startswith("steps   "))
    assert "all 20 steps with dense attention (qk int8, pv fp8) cost less" in line


def test_dense_steps_have_the_precision_of_the_preset(small: Path) -> None:
    """bf16 is as expensive as itself. A preset that rounds nothing is compared with steps that round nothing."""
    exact = told(presets("show", "bf16", "--model", "pocket", "--json"))["dense_steps"]
    assert exact == {"qk": "bf16", "pv": "bf16", "attention": pytest.approx(20), "video": pytest.approx(20)}
    assert "steps   " not in presets("show", "bf16").stdout
    small.write_text(SMALL.replace('qk = "int8"\npv = "fp8"\n', ""))
    report = told(presets("show", small, "--json"))
    assert report["dense_steps"]["qk"] == "bf16"
    assert report["dense_steps"]["attention"] == pytest.approx(20 * report["density"])
    small.write_text(SMALL.replace("int8", "fp8"))
    assert told(presets("show", small, "--json"))["dense_steps"]["qk"] == "int8"


def test_linear_layers_are_those_of_the_model(small: Path) -> None:
    """By hand, for Wan2.1 1.3B at 480p: 32,760 tokens, and 6 x 1536² + 2 x 1536 x 8960 weights for each."""
    small.write_text('format = 1\nmodel = "1.3b"\n[[phase]]\nsigma = [1.0, 0.0]\ndensity = 0.5\n')
    report = told(presets("show", small, "--res", "480p", "--json"))
    dense, linear = report["dense_steps"], (6 * 1536 + 2 * 8960) / (2 * 32_760) * 470 / (0.8 * 989)
    assert dense["attention"] == pytest.approx(50 * report["cost"])
    assert dense["video"] == pytest.approx(50 * (report["cost"] + linear) / (1 + linear))


def test_linear_layers_in_8_bits_are_told_and_cost_less(small: Path) -> None:
    """Half of the steps have them in the FFN, half of the layers of those everywhere."""
    phases = '[[phase]]\nsigma = [1.0, 0.75]\n[[phase]]\nsigma = [0.75, 0.0]\nlinear = { ffn = "fp8" }\n'
    small.write_text(f'format = 1\nmodel = "pocket"\n{phases}[[phase.layers]]\nat = "3-5"\nlinear = "int8"\n')
    report = told(presets("show", small, "--json"))
    first, second = report["runs"]
    assert [own["linear"] for own in first["layers"]] == [{"attention": "16bit", "ffn": "16bit"}]
    rounded = [{"attention": "16bit", "ffn": "fp8"}, {"attention": "int8", "ffn": "int8"}]
    assert [own["linear"] for own in second["layers"]] == rounded
    share = (second["steps"][1] - second["steps"][0] + 1) / 20
    own = [cost.of_linear(WAN_14B, cost.STAND_IN_TOKENS, Linears(**one)) for one in rounded]
    exact = cost.of_linear(WAN_14B, cost.STAND_IN_TOKENS)
    assert report["linear_cost"] == pytest.approx(1 - share + share * sum(own) / 2 / exact)
    assert report["dense_steps"]["attention"] == pytest.approx(20)  # which is dense
    assert report["dense_steps"]["video"] == pytest.approx(20 * (1 + exact * report["linear_cost"]) / (1 + exact))
    lines = presets("show", small).stdout.splitlines()
    assert [line.count("linear") for line in lines if "bf16, linear" in line] == [1, 1]
    assert any(line.startswith("linear ") and f"{100 * report['linear_cost']:.1f} %" in line for line in lines)
    assert told(presets("show", "bf16", "--model", "pocket", "--json"))["linear_cost"] == 1
    assert not any(line.startswith("linear ") for line in presets("show", "bf16").stdout.splitlines())
