"""Pairs of clips on a page: a small video of both, frames from first to last, and what a PSNR looks like."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np

from fpsgen import video
from fpsgen.errors import FpsgenError
from fpsgen.metrics import Pair
from fpsgen.report import words
from fpsgen.report.pictures import drawing

_GAP = 12  # pixels between the two sides of a video
_LEVELS = Path(__file__).with_name("levels.png")  # by benchmarks/levels.py, which says in levels.json what it shows


def draw(pairs: Sequence[Pair]) -> dict[str, bytes]:
    """Pictures by name: frames-1, frames-2 …"""
    return {f"frames-{number}": drawing.frames(pair) for number, pair in enumerate(pairs, 1)}


def facts(pairs: Sequence[Pair], fps: int) -> dict[str, Any]:
    """What the template shows of them: each pair with its film; one frame by presets of different PSNRs."""
    films = [(pair, _film(beside(pair), fps)) for pair in pairs]
    levels = json.loads(_LEVELS.with_suffix(".json").read_text(encoding="utf-8"))
    columns = [levels["baseline"], *(f"{words.decibels(one['psnr'])} ({one['preset']})" for one in levels["presets"])]
    levels |= {"png": _LEVELS.read_bytes(), "shown": ", ".join(columns)}
    return {"films": films, "amplified": drawing.AMPLIFIED, "levels": levels}


def _film(frames: np.ndarray, fps: int) -> dict[str, Any] | None:
    """An mp4, its poster and size; None where ffmpeg is missing or fails, for the page has the frames as well."""
    try:
        with tempfile.TemporaryDirectory(prefix="fpsgen-report-") as folder:
            path = Path(folder) / "pair.mp4"
            with video.VideoWriter(path, (frames.shape[2], frames.shape[1]), fps) as writer:
                writer.write(frames)
                writer.finish()
            mp4 = path.read_bytes()
    except (FpsgenError, OSError):
        return None
    poster = io.BytesIO()
    matplotlib.image.imsave(poster, frames[len(frames) // 2], format="jpeg", pil_kwargs={"quality": 85})
    return {"mp4": mp4, "poster": poster.getvalue(), "height": frames.shape[1], "width": frames.shape[2]}


def beside(pair: Pair) -> np.ndarray:
    """uint8 [frames, height, width, 3]: both sides in one video, so that they cannot drift apart, and white
    between them; its sides are even, as mp4 needs them."""
    sides = [drawing.sized(clip) for clip in (pair.exact, pair.ours)]
    gap = np.full((*sides[0].shape[:2], _GAP, 3), 255, np.uint8)
    whole = np.concatenate([sides[0], gap, sides[1]], axis=2)
    return whole[:, : whole.shape[1] // 2 * 2, : whole.shape[2] // 2 * 2]
