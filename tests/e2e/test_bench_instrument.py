"""The instrument itself, on the real pocket model: equal work measures equal, worse work worse, slower work slower."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fpsgen import assets, experts, pipeline
from fpsgen.attention import reference
from fpsgen.bench.contenders import VideoContender
from fpsgen.pipeline import Event
from fpsgen.sampling import Denoiser
from fpsgen.timing import STAGES
from fpsgen.wan.text_encoder import TextEncoder
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


OWNERS = {
    "load": (experts, "load_transformer"),
    "text": (TextEncoder, "encode"),
    "denoise": (Denoiser, "velocity"),
    "decode": (pipeline.wan_vae, "to_uint8"),
    "encode": (pipeline.VideoWriter, "write"),
}


@pytest.mark.parametrize("phase", OWNERS)
def test_a_sleep_appears_in_its_phase_and_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    """Of two contenders that do the same one sleeps; they run in turn, so that a slow minute slows both."""
    slept, slow = 0.0, False
    owner, name = OWNERS[phase]
    real, run = getattr(owner, name), VideoContender.run

    def sleeping(*given: object, **named: object) -> object:
        nonlocal slept
        if slow:
            begin = time.perf_counter()
            time.sleep(0.5)
            slept += time.perf_counter() - begin
        return real(*given, **named)

    def watched(self: VideoContender, *given: Any) -> Iterator[Event]:
        nonlocal slow
        slow = self.name == "sdpa"
        try:
            yield from run(self, *given)
        finally:
            slow = False

    monkeypatch.setattr(owner, name, sleeping)
    monkeypatch.setattr(VideoContender, "run", watched)
    passes = 14
    record = bench(preset=bench.preset(EXACT), compare="sdpa", pairs=passes, frames=5, steps=2)
    plain, slowed = (told["median"] for told in record["contenders"])
    each = slept / (passes + 1)  # the cold run sleeps, too
    grown = {name: slowed[name] - plain[name] for name in STAGES}
    assert each >= 0.5
    # Medians of the same second's work differ by a tenth of one on a busy machine.
    assert grown.pop(phase) == pytest.approx(each, abs=0.15)
    assert max(map(abs, grown.values())) < 0.15
    assert slowed["total"] - plain["total"] == pytest.approx(each, abs=0.25)
