"""Legal video sizes, and the shapes of their latents."""

from __future__ import annotations

import re

from fpsgen.errors import UsageError, option
from fpsgen.wan.config import WAN_1_3B

NAMED = {"480p": (832, 480), "720p": (1280, 720)}
MULTIPLE = 16  # pixels: 8 by the VAE, 2 by the patch
TEMPORAL, SPATIAL = 4, 8  # pixels per latent along time, and along height and width, in Wan2.1's VAE
LARGEST = 4096
MOST_FRAMES = 4 * 1023 + 1  # Wan2.1's rotary table has 1024 positions in time


def latent_shape(frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a video; frames are 4n + 1."""
    return (frames - 1) // TEMPORAL + 1, height // SPATIAL, width // SPATIAL


def family_of(dim: int) -> str:
    """Which of Wan2.1's two a model is taken for, by the width of its transformer: 1.3B up to its width, 14B above."""
    return "1.3b" if dim <= WAN_1_3B.dim else "14b"


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


def check_frames(frames: int) -> None:
    """Refuse frame counts that the VAE cannot make; it makes 1 frame, then 4 at a time."""
    if frames > MOST_FRAMES:
        told = f"{option('frames')}: at most {MOST_FRAMES}, where Wan2.1's positions end"
        raise UsageError(told, hint=f"try {option('frames', 81)}")
    if frames < 1 or frames % 4 != 1:
        low = max(1, (frames - 1) // 4 * 4 + 1)
        near = "1" if frames < 1 else f"{low} or {low + 4}"
        told = f"{option('frames', frames)}: the number must be 4n + 1 (1, 5, 9, …)"
        raise UsageError(told, hint=f"try {option('frames', near)}")
