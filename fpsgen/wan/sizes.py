"""Legal video sizes, and Wan2.1's defaults per model: the one table of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from fpsgen.errors import UsageError, option
from fpsgen.wan.config import WAN_1_3B

NAMED = {"480p": (832, 480), "720p": (1280, 720)}
MULTIPLE = 16  # pixels: 8 by the VAE, 2 by the patch
TEMPORAL, SPATIAL = 4, 8  # pixels per latent along time, and along height and width, in Wan2.1's VAE
LARGEST = 4096
MOST_FRAMES = 4 * 1023 + 1  # Wan2.1's rotary table has 1024 positions in time

# Wan2.1 `wan/configs/shared_config.py`, `sample_neg_prompt` (Apache-2.0); the model was tuned with it.
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"  # noqa: RUF001
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"  # noqa: RUF001
    "杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)


@dataclass(frozen=True)
class Defaults:
    """What `generate` takes where the user says nothing."""

    width: int
    height: int
    frames: int
    fps: int
    steps: int
    guidance: float
    shift: float
    negative: str

    def override(self, **given: Any) -> Defaults:
        """These, but for every keyword that is not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


# Wan2.1 `generate.py` and README: 50 steps, 81 frames, shift 5 and guidance 5; for 1.3B the README
# advises guidance 6 and shift 8. They do not depend on the video's size: `generate.py` lowers the shift at 480p
# for image-to-video alone.
DEFAULTS = {
    "1.3b": Defaults(832, 480, 81, 16, 50, guidance=6.0, shift=8.0, negative=WAN_NEGATIVE),
    "14b": Defaults(1280, 720, 81, 16, 50, guidance=5.0, shift=5.0, negative=WAN_NEGATIVE),
}


def latent_shape(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a video; frames are 4n + 1."""
    return (frames - 1) // TEMPORAL + 1, height // SPATIAL, width // SPATIAL


def family_of(dim: int) -> str:
    """Which of Wan2.1's two a model is taken for, by the width of its transformer: 1.3B up to its width, 14B above."""
    return "1.3b" if dim <= WAN_1_3B.dim else "14b"


def defaults_of(dim: int) -> Defaults:
    """Defaults of a model by the width of its transformer."""
    return DEFAULTS[family_of(dim)]


def named_size(width: int, height: int) -> str:
    """480p or 720p: the one whose settings a size takes."""
    return "480p" if width * height <= NAMED["480p"][0] * NAMED["480p"][1] else "720p"


def parse_resolution(text: str) -> tuple[int, int]:
    """Width and height of "480p", "720p" or "WxH"."""
    if text.lower() in NAMED:
        return NAMED[text.lower()]
    match = re.fullmatch(r"(\d{1,9})\s*[xX*×]\s*(\d{1,9})", text.strip())  # noqa: RUF001
    if not match:
        raise UsageError(f"{option('res', text)} is not a size", hint="use 480p, 720p or WIDTHxHEIGHT such as 832x480")
    width, height = int(match[1]), int(match[2])
    if not (MULTIPLE <= width <= LARGEST and MULTIPLE <= height <= LARGEST):
        told = f"{option('res', text)}: each side must be {MULTIPLE} to {LARGEST} pixels"
        raise UsageError(told, hint=f"try {option('res', '832x480')}")
    return width, height


def check_model_size(width: int, height: int) -> None:
    """Refuse what the model cannot render, and name the nearest size that it can."""
    if width % MULTIPLE or height % MULTIPLE:
        near = "x".join(str(max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)) for side in (width, height))
        raise UsageError(
            f"{width}x{height}: both sides must be multiples of {MULTIPLE}", hint=f"try {option('res', near)}"
        )


def check_scaled_size(width: int, height: int) -> None:
    """Refuse an output size that video encoders cannot take."""
    if width % 2 or height % 2:
        near = f"{width + width % 2}x{height + height % 2}"
        raise UsageError(f"{width}x{height}: both sides must be even", hint=f"try {option('res', near)}")


def check_settings(frames: int | None, steps: int | None, guidance: float | None, shift: float | None) -> None:
    """Refuse numbers that mean nothing; None is none."""
    if frames is not None:
        check_frames(frames)
    for field, value, low, high, usual in (
        ("steps", steps, 1, 1000, 50),
        ("guidance", guidance, 0, 100, 5),
        ("shift", shift, 0.01, 100, 5),
    ):
        if value is not None and not low <= value <= high:
            raise UsageError(f"{option(field, value)}: must be {low} to {high}", hint=f"try {option(field, usual)}")


def check_frames(frames: int) -> None:
    """Refuse frame counts that the VAE cannot make; it makes 1 frame, then 4 at a time."""
    if frames > MOST_FRAMES:
        told = f"{option('frames')}: at most {MOST_FRAMES}, where Wan2.1's positions end"
        raise UsageError(told, hint=f"try {option('frames', 81)}")
    if frames < 1 or frames % 4 != 1:
        low = max(1, (frames - 1) // 4 * 4 + 1)
        near = "1" if frames < 1 else f"{low} or {low + 4}"
        raise UsageError(f"{option('frames', frames)}: the count must be 4n + 1", hint=f"try {option('frames', near)}")
