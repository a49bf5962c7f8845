"""`fpsgen generate` through the Hopper kernels' sources, a CPU standing in for the card."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import imageio_ffmpeg
import numpy as np
import pytest

from fpsgen.attention import hopper
from tests.kernels import host
from tests.tools.cli import invoke

# The pocket model's 7 x 6 x 10 tokens in 2 x 2 x 2 tiles of 32 to 60; with lists of one tile a step takes seconds here.
PRESET = """
format = 1
tile = [4, 3, 5]

[[phase]]
sigma = [1.0, 0.0]
window = [1, 1, 1]
qk = "int8"
pv = "fp8"
"""


def frames(path: Path) -> np.ndarray:
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(raw, np.uint8).reshape(height, width, 3) for raw in reader]).astype(float)


def test_a_video_by_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    preset = tmp_path / "one.toml"
    preset.write_text(PRESET)

    def generate(name: str) -> tuple[dict, np.ndarray, str]:
        given = (
            "a cat surfing",
            "--model",
            "pocket",
            "--steps",
            "1",
            "--guidance",
            "1",
            "--seed",
            "1",
            "--preset",
            str(preset),
        )
        result = invoke(*given, "-o", str(tmp_path / name), "--json", "--verbose")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout), frames(tmp_path / name), result.stderr

    with host.on_this_machine():
        report, ours, told = generate("kernels.mp4")
        assert report["attention"]["backends"] == ["hopper"]
        assert "by hopper" in told
        assert "compiled sm90_attention, sm90_prologue" in told
        with mock.patch.object(hopper, "attention", side_effect=host.emulated) as called:
            again, theirs, told = generate("emulator.mp4")
    assert called.call_count == 6 * len(again["timings"]["steps"])  # layers
    assert "compiled" not in told  # found in the cache
    assert again["timings"]["compile"] < report["timings"]["compile"] / 2
    # Sums in another order put a code here and there on the other side of a tie, and H.264 adds its own.
    noise = ((ours - theirs) ** 2).mean()
    assert 10 * np.log10(255**2 / noise) > 40
