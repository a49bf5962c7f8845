"""The instrument itself, on the real pocket model: equal work measures equal, worse work worse, slower work slower."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fpsgen import assets, pipeline
from fpsgen.attention import reference
from tests.tools.bench import EXACT, HALVES, Bench

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(assets.folder("pocket"), tmp_path)


def test_a_preset_equal_to_dense_is_as_fast_and_identical(bench: Bench) -> None:
    # Fourteen passes are seven of A B B A.
    record = bench(preset=bench.preset(EXACT), compare="sdpa", pairs=14, steps=6)
    told = record["contenders"][0]
    assert told["fidelity"]["identical"]
    assert told["speedup"]["total"]["median"] == pytest.approx(1, abs=0.05)
    assert told["speedup"]["denoise"]["median"] == pytest.approx(1, abs=0.05)


def test_diffusers_makes_the_same_video_and_is_not_faster(bench: Bench) -> None:
    record = bench(preset="bf16", compare="diffusers", pairs=8, steps=None)
    told = record["contenders"][0]
    assert told["fidelity"]["identical"] or told["fidelity"]["psnr"] >= 50
    # As far as trials of the same work differ.
    assert told["speedup"]["denoise"]["median"] >= 0.95
    assert told["speedup"]["total"]["median"] >= 0.95


def test_a_broken_plan_loses_quality(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = bench.preset(HALVES.replace("[2, 1, 1]", "[4, 3, 3]"))  # the pocket's grid has other tiles
    sound = bench(preset=preset, compare="bf16", pairs=0, steps=None)["contenders"][0]["fidelity"]
    real = reference.attention
    # Every query tile gets what its neighbour should have had.
    monkeypatch.setattr(reference, "attention", lambda q, k, v, plan: real(q, k, v, plan).roll(8, dims=1))
    broken = bench(preset=preset, compare="bf16", pairs=0, steps=None)["contenders"][0]["fidelity"]
    assert broken["latent_error"] > 2 * sound["latent_error"]
    assert broken["psnr"] < sound["psnr"] - 1


@pytest.mark.parametrize("phase", ["load", "text", "denoise", "decode", "encode"])
def test_a_sleep_appears_in_its_phase_and_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    def slowed(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def slow(*given: object, **named: object) -> object:
            time.sleep(3 / calls[phase])
            return real(*given, **named)

        monkeypatch.setattr(owner, name, slow)

    calls = {"load": 1, "text": 2, "denoise": 4, "decode": 7, "encode": 7}
    preset = bench.preset(EXACT)
    before = bench(preset=preset, compare="sdpa", pairs=2, steps=4)["contenders"][0]["median"]
    owners = {
        "load": (pipeline, "load_transformer"),
        "text": (pipeline.TextEncoder, "encode"),
        "denoise": (pipeline, "predict"),
        "decode": (pipeline.wan_vae, "to_uint8"),
        "encode": (pipeline.VideoWriter, "write"),
    }
    slowed(*owners[phase])
    after = bench(preset=preset, compare="sdpa", pairs=2, steps=4)["contenders"][0]["median"]
    grown = {name: after[name] - before[name] for name in ("load", "text", "denoise", "decode", "encode")}
    assert grown.pop(phase) == pytest.approx(3, abs=0.6)
    assert all(abs(seconds) < 0.6 for seconds in grown.values())
