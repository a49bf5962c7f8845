"""Legal video sizes, and the shapes of their latents."""

from __future__ import annotations

import re

from fpsgen.errors import UsageError, option

NAMED = {"480p": (832, 480), "720p": (1280, 720)}
PATCH = 2  # latents per token along height and width
TEMPORAL = 4  # frames per latent
STRIDE = 8  # pixels per latent along height and width, in Wan2.1's VAE
LARGEST = 4096
MOST_FRAMES = 4 * 1023 + 1  # Wan2.1's rotary table has 1024 positions in time


def latent_shape(frames: int, height: int, width: int, stride: int = STRIDE) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a video; frames are 4n + 1. stride: of the VAE, in pixels."""
    return (frames - 1) // TEMPORAL + 1, height // stride, width // stride


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
    least = PATCH * STRIDE
    if not (least <= width <= LARGEST and least <= height <= LARGEST):
        told = f"{option('res', text)}: each side must be {least} to {LARGEST} pixels"
        raise UsageError(told, hint=f"try {option('res', '832x480')}")
    return width, height


def of_area(image: tuple[int, int], area: tuple[int, int], stride: int = STRIDE) -> tuple[int, int]:
    """Width and height with an image's proportions and the area of another size, both rounded down to what a model
    renders (Wan2.1 `wan/image2video.py`). UsageError where a side would be too short or too long."""
    proportion, pixels, multiple = image[1] / image[0], area[0] * area[1], PATCH * stride
    width, height = (
        int(side**0.5 + 1e-6) // multiple * multiple for side in (pixels / proportion, pixels * proportion)
    )
    if not (multiple <= width <= LARGEST and multiple <= height <= LARGEST):
        told = f"the image of {image[0]}x{image[1]} pixels is too narrow for a video of its proportions"
        raise UsageError(told, hint=f"give a size, to which it is cropped: {option('res', f'{area[0]}x{area[1]}')}")
    return width, height


def check_model_size(width: int, height: int, stride: int = STRIDE) -> None:
    """Refuse what the model cannot render, and name the nearest size that it can. stride: of its VAE, in pixels."""
    multiple = PATCH * stride
    if width % multiple or height % multiple:
        near = "x".join(str(max(multiple, round(side / multiple) * multiple)) for side in (width, height))
        raise UsageError(
            f"{width}x{height}: both sides must be multiples of {multiple}", hint=f"try {option('res', near)}"
        )


def of_model(width: int, height: int, stride: int) -> tuple[int, int]:
    """A named size, both sides rounded down to what a model renders (720p is 1280x704 in Wan2.2's 5B); others as they
    are."""
    if (width, height) not in NAMED.values():
        return width, height
    multiple = PATCH * stride
    return width // multiple * multiple, height // multiple * multiple


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
