"""Clips on a page: a video of both, frames, what a PSNR looks like."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import levels
from fpsgen import assets
from fpsgen.metrics import Pair, mean_square, psnr
from fpsgen.report.pictures import drawing
from tests.tools import bench_records
from tests.tools.reports import Page, clip, frames_of, pair, write


def shown(*pairs: Pair) -> Page:
    """A page with these clips; of its pictures those of clips alone."""
    with tempfile.TemporaryDirectory() as folder:
        [path, *_] = write(bench_records.cold_only(), pairs, Path(folder) / "r.html")
        page = Page(path.read_text(encoding="utf-8"))
    page.images = [image for image in page.images if image["alt"].startswith("Frames")]
    return page


def test_both_clips_are_one_video_which_cannot_drift_apart(tmp_path: Path) -> None:
    given = pair()
    [video] = shown(given).videos
    assert {"autoplay", "muted", "loop", "playsinline", "controls"} <= set(video)
    assert video["poster"].startswith("data:image/jpeg;base64,")
    frames = frames_of(video, tmp_path / "v.mp4")
    sides = drawing.sized(given.exact), drawing.sized(given.ours)
    wide = sides[0].shape[2]
    assert frames.shape[:2] == sides[0].shape[:2]
    assert (str(frames.shape[2]), str(frames.shape[1])) == (video["width"], video["height"])
    for got, sent in zip((frames[:, :, :wide], frames[:, :, -wide:]), sides, strict=True):
        # What an encoder leaves; the sides differ from each other by 32 dB, and from the frame before by 30.
        assert psnr(mean_square(got, sent)) > 38


@pytest.mark.parametrize("shape", [(1, 16, 18), (3, 481, 833), (2, 400, 101)])
def test_any_size_becomes_a_video(shape: tuple[int, int, int], tmp_path: Path) -> None:
    count, height, width = shape
    [video] = shown(pair(count=count, height=height, width=width)).videos
    frames = frames_of(video, tmp_path / "v.mp4")
    assert len(frames) == count
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0


def test_without_an_encoder_there_are_frames_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    page = shown(pair("a dog"))
    assert (len(page.videos), len(page.images)) == (0, 1)
    assert "a dog" in page.words


def test_which_clip_it_is_is_said() -> None:
    one = Pair("a cat", 31.5, clip(), clip(noise=9), ("bf16", "fast"), "clip 17 of 24, the one furthest from bf16")
    same = Pair("a dog", math.inf, clip(), clip())
    told = shown(one, same).words
    for fact in ("a cat", "clip 17 of 24", "31.5 dB", "a dog", "∞ dB"):
        assert fact in told


def test_what_a_psnr_looks_like_is_shown_with_true_frames() -> None:
    """Made by benchmarks/levels.py with the pocket model as it is, in descending order."""
    told = json.loads(levels.PLACE.with_suffix(".json").read_text(encoding="utf-8"))
    card = json.loads((assets.folder("pocket") / "pocket.json").read_text(encoding="utf-8"))
    assert told["pocket"] == {"version": card["version"], "sha256": card["sha256"]}, "python -m benchmarks.levels anew"
    found = [one["psnr"] for one in told["presets"]]
    assert np.abs(np.array(found) - [36, 30, 24]).max() < 1.5
    [image] = shown(pair()).levels
    assert all(f"{value:.1f} dB" in image["alt"] for value in found)
    assert shown().levels == []
