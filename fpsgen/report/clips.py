"""Pairs of clips on a page: a small video of both, frames from first to last, and what a PSNR looks like."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.image
import numpy as np

from fpsgen import video
from fpsgen.errors import FpsgenError
from fpsgen.metrics import Pair
from fpsgen.report import drawing, html, words

_GAP = 12  # pixels between the two sides of a video
_LEVELS = Path(__file__).with_name(
    "levels.png"
)  # made by benchmarks/levels.py, which says in levels.json what it shows


def draw(pairs: Sequence[Pair]) -> dict[str, bytes]:
    """Pictures by name: frames-1, frames-2 …"""
    with drawing.styled():
        return {f"frames-{number}": drawing.frames(pair) for number, pair in enumerate(pairs, 1)}


def section(pairs: Sequence[Pair], drawn: Mapping[str, bytes], fps: int) -> str:
    """Everything that the page shows of its clips; nothing where there are none. drawn: by `draw`."""
    if not pairs:
        return ""
    parts = [
        "<h2>Clips side by side</h2>\n<p>Both clips of a pair have the same prompt and the same noise. The third row "
        f"of frames is their absolute difference times {drawing.AMPLIFIED}: it is black where they agree.</p>\n"
    ]
    for number, pair in enumerate(pairs, 1):
        near = "" if pair.psnr is None else f"PSNR {words.decibels(pair.psnr)}"
        about = ", ".join(html.text(part) for part in (pair.which, near) if part)
        caption = f'<span class="prompt">{html.prompt(pair.prompt)}</span>{f" — {about}" if about else ""}'
        if film := _film(pair, fps, caption):
            parts.append(film)
            caption = "Frames of this clip, from first to last"
        alt = f"Frames {number}: {', '.join(pair.names)} and their difference, of “{pair.prompt}”"
        parts.append(html.figure(drawn[f"frames-{number}"], alt, caption))
    return "".join([*parts, levels()])


def _film(pair: Pair, fps: int, caption: str) -> str:
    """Both clips as one video, so that they cannot drift apart; nothing where it cannot be encoded here."""
    frames = beside(pair)
    count, height, width, _ = frames.shape
    if (data := encoded(frames, fps)) is None:
        return ""
    poster = io.BytesIO()
    matplotlib.image.imsave(poster, frames[count // 2], format="jpeg", pil_kwargs={"quality": 85})
    sides = "".join(f"<span>{html.prompt(name)}</span>" for name in pair.names)
    label = f"Video: {pair.names[0]} on the left, {pair.names[1]} on the right"
    return (
        f'<figure class="film" style="max-width: {width}px">\n<figcaption>{caption}</figcaption>\n'
        f'<div class="sides">{sides}</div>\n<video autoplay muted loop playsinline controls width="{width}" '
        f'height="{height}" aria-label="{html.text(label)}" poster="{html.data("image/jpeg", poster.getvalue())}" '
        f'src="{html.data("video/mp4", data)}"></video>\n</figure>\n'
    )


def beside(pair: Pair) -> np.ndarray:
    """uint8 [frames, height, width, 3]: the first side, a white gap, the second; sides are even, as mp4 needs them."""
    sides = [drawing.sized(clip) for clip in (pair.exact, pair.ours)]
    gap = np.full((*sides[0].shape[:2], _GAP, 3), 255, np.uint8)
    whole = np.concatenate([sides[0], gap, sides[1]], axis=2)
    return whole[:, : whole.shape[1] // 2 * 2, : whole.shape[2] // 2 * 2]


def encoded(frames: np.ndarray, fps: int) -> bytes | None:
    """An mp4; None where ffmpeg is missing or fails, for the page has the frames as well."""
    try:
        with tempfile.TemporaryDirectory(prefix="fpsgen-report-") as folder:
            path = Path(folder) / "pair.mp4"
            with video.VideoWriter(path, (frames.shape[2], frames.shape[1]), fps) as writer:
                writer.write(frames)
                writer.finish()
            return path.read_bytes()
    except (FpsgenError, OSError):
        return None


def levels() -> str:
    """What a PSNR looks like: one frame of the pocket model, in bf16 and by presets that come to different PSNRs."""
    told = json.loads(_LEVELS.with_suffix(".json").read_text(encoding="utf-8"))
    columns = [told["baseline"], *(f"{words.decibels(one['psnr'])} ({one['preset']})" for one in told["presets"])]
    shown = ", ".join(columns)
    return "<h3>What a PSNR looks like</h3>\n" + html.figure(
        _LEVELS.read_bytes(),
        f"What a PSNR looks like: {shown}",
        f"A clip of the pocket model, “{html.text(told['prompt'])}” (seed {told['seed']}), frame {told['frame']} of "
        f"{told['frames']}. From left to right: {html.text(shown)}. The PSNR is that of the whole clip against "
        f"{html.text(told['baseline'])}; higher is closer.",
    )
