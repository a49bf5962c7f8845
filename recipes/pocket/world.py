"""The sprite world: emoji sprites doing simple things in simple scenes.

It is the pocket model's whole universe. `render` draws one clip of a subject, a motion and a scene,
deterministic in its seed, at any size; `Clip.mask` says where the sprite is, which lets training weight
what matters and evaluation report sprite-region figures.

Motions are defined in pixels *per frame*, never per clip, so that a shorter clip is the beginning of a
longer one: training can start short.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Noto Color Emoji (SIL Open Font License 1.1), Debian package fonts-noto-color-emoji.
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_STRIKE = 109  # the only bitmap size in the font

# Chosen for colours and silhouettes that stay apart at 50 pixels.
SUBJECTS = {
    "cat": "🐱",
    "dog": "🐶",
    "frog": "🐸",
    "panda": "🐼",
    "penguin": "🐧",
    "robot": "🤖",
    "car": "🚗",
    "balloon": "🎈",
}
FACES_LEFT = {"car", "penguin"}  # drawn facing left: mirrored when moving right

WIDTH, HEIGHT, FRAMES = 160, 96, 25


@dataclass(frozen=True)
class Clip:
    """One rendered clip."""

    video: np.ndarray  # uint8 [frames, height, width, 3]
    mask: np.ndarray  # uint8 [frames, height, width], 255 where the sprite is opaque


def render(
    subject: str,
    motion: str,
    scene: str,
    seed: int,
    frames: int = FRAMES,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> Clip:
    """Draw one clip; the same arguments give the same pixels."""
    rng = np.random.default_rng([seed, *map(ord, subject + motion + scene)])
    video = _SCENE[scene](frames, height, width, rng)
    mask = np.zeros((frames, height, width), np.float32)
    _MOTION[motion](video, mask, subject, rng)
    to_bytes = lambda a: (np.clip(a, 0, 1) * 255 + 0.5).astype(np.uint8)  # noqa: E731
    return Clip(to_bytes(video), to_bytes(mask))


# --- sprites ---------------------------------------------------------------------------------------


@cache
def _sprite(subject: str) -> Image.Image:
    """The emoji, centred in a transparent square."""
    font = ImageFont.truetype(str(FONT), FONT_STRIKE)
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((80, 80), SUBJECTS[subject], font=font, embedded_color=True, anchor="mm")
    glyph = canvas.crop(canvas.getbbox())
    side = max(glyph.size) + 8
    square = Image.new("RGBA", (side, side))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square


@lru_cache(maxsize=512)
def _scaled(subject: str, size: int, mirrored: bool) -> Image.Image:
    image = _sprite(subject).resize((size, size), Image.Resampling.LANCZOS)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def draw_sprite(
    frame: np.ndarray,
    mask: np.ndarray,
    subject: str,
    x: float,
    y: float,
    size: float,
    angle: float = 0.0,
    mirrored: bool = False,
    squash: float = 1.0,
) -> None:
    """Blend the sprite into `frame` with its centre at (x, y), at sub-pixel position.

    PIL premultiplies RGBA inside `transform` and gives straight alpha back, so colours are multiplied
    by alpha exactly once, here.
    """
    height, width = frame.shape[:2]
    pixels = round(size * 1.1)
    image = _scaled(subject, pixels, mirrored)
    radius = int(size * 0.85) + 2
    left, top = int(x) - radius, int(y) - radius
    cos, sin, px, py = np.cos(angle), np.sin(angle), x - left, y - top
    half = pixels / 2
    affine = (
        cos, sin, half - cos * px - sin * py,
        -sin / squash, cos / squash, half + sin / squash * px - cos / squash * py,
    )  # fmt: skip
    patch = image.transform((2 * radius, 2 * radius), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    rgba = np.asarray(patch, np.float32) / 255
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * radius, width), min(top + 2 * radius, height)
    if x1 <= x0 or y1 <= y0:
        return
    rgba = rgba[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha = rgba[..., 3:]
    frame[y0:y1, x0:x1] = frame[y0:y1, x0:x1] * (1 - alpha) + rgba[..., :3] * alpha
    mask[y0:y1, x0:x1] = np.maximum(mask[y0:y1, x0:x1], alpha[..., 0])


# --- scenes: float32 [frames, height, width, 3] in 0..1 ---------------------------------------------


def _rgb(*colour: float) -> np.ndarray:
    return np.asarray(colour, np.float32) / 255


def _gradient(height: int, width: int, top: np.ndarray, bottom: np.ndarray, tint: np.ndarray) -> np.ndarray:
    t = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    return np.clip((top + tint) * (1 - t) + (bottom + tint) * t, 0, 1) * np.ones((1, width, 1), np.float32)


def _fill_below(frame: np.ndarray, edge: np.ndarray, colour: np.ndarray) -> None:
    """Paint everything below the curve y = edge[x], antialiased."""
    y = np.arange(frame.shape[0], dtype=np.float32)[:, None]
    alpha = np.clip(y + 0.5 - edge[None], 0, 1)[..., None]
    frame[:] = frame * (1 - alpha) + colour * alpha


def _disc(frame: np.ndarray, x: float, y: float, radius: float, colour: np.ndarray) -> None:
    yy, xx = np.mgrid[: frame.shape[0], : frame.shape[1]]
    alpha = np.clip(radius - np.hypot(xx - x, yy - y) + 0.5, 0, 1)[..., None].astype(np.float32)
    frame[:] = frame * (1 - alpha) + colour * alpha


def _tint(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-0.05, 0.05, 3).astype(np.float32)


def _sea(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    sky = _gradient(height, width, _rgb(110, 190, 250), _rgb(205, 235, 255), _tint(rng))
    unit, phase, x = height / 64, rng.uniform(0, 2 * np.pi), np.arange(width, dtype=np.float32)
    _disc(sky, rng.uniform(0.1, 0.9) * width, 11 * unit, 6.5 * unit, _rgb(255, 215, 60))
    video = np.empty((frames, height, width, 3), np.float32)
    for t in range(frames):
        video[t] = sky
        _fill_below(
            video[t], height * 0.56 + 1.5 * unit * np.sin(x / width * 11 + phase + t * 0.25), _rgb(40, 130, 205)
        )
        _fill_below(
            video[t], height * 0.74 + 2 * unit * np.sin(x / width * 9 + phase * 2 - t * 0.25), _rgb(22, 95, 175)
        )
    return video


def _city(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    image = _gradient(height, width, _rgb(250, 185, 140), _rgb(255, 225, 190), _tint(rng))
    shades = (_rgb(95, 95, 125), _rgb(122, 108, 132), _rgb(78, 84, 108))
    windows, street = _rgb(255, 225, 120), int(height * 0.84)
    left = -int(rng.integers(0, 12))
    while left < width:
        wide = int(rng.integers(20, 30))
        top = street - int(height * rng.uniform(0.28, 0.66))
        image[top:street, max(left, 0) : left + wide] = shades[rng.integers(3)]
        for y in range(top + 5, street - 6, 12):
            for x in range(left + 4, left + wide - 6, 9):
                image[y : y + 6, max(x, 0) : max(x + 4, 0)] = windows
        left += wide
    _fill_below(image, np.full(width, street, np.float32), _rgb(66, 66, 72))
    return np.repeat(image[None], frames, 0)


def _forest(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    image = _gradient(height, width, _rgb(165, 220, 240), _rgb(220, 245, 225), _tint(rng))
    x, shift = np.arange(width, dtype=np.float32), rng.uniform(0, 1)
    rows = ((6, _rgb(70, 145, 85), 0.50, 0.76, 0.0), (4, _rgb(28, 98, 50), 0.56, 0.84, 0.4))
    for count, colour, tall, base, offset in rows:
        ridge = 1 - 2 * np.abs((x / (width / count) + shift + offset) % 1 - 0.5)  # triangles in a row
        _fill_below(image, (height * base - ridge * height * tall).astype(np.float32), colour)
    _fill_below(image, np.full(width, height * 0.8, np.float32), _rgb(105, 170, 70))
    return np.repeat(image[None], frames, 0)


def _night(frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    image = _gradient(height, width, _rgb(10, 12, 48), _rgb(48, 40, 105), 0.6 * _tint(rng))
    unit, moon = height / 64, rng.uniform(0.1, 0.9) * width
    for _ in range(12):
        _disc(image, rng.uniform(2, width - 2), rng.uniform(2, height * 0.8), 1.4, _rgb(255, 255, 225))
    sky = image.copy()
    _disc(image, moon, 12 * unit, 8 * unit, _rgb(255, 245, 190))
    cut = np.zeros_like(image)
    _disc(cut, moon - 4 * unit, 10 * unit, 7 * unit, np.ones(3, np.float32))  # what makes it a crescent
    image = image * (1 - cut) + sky * cut
    _fill_below(
        image,
        (height * 0.9 + 2 * unit * np.sin(np.arange(width) / width * 7 + moon)).astype(np.float32),
        _rgb(20, 22, 40),
    )
    return np.repeat(image[None], frames, 0)


_SCENE = {"sea": _sea, "city": _city, "forest": _forest, "night": _night}


# --- motions: draw the sprite into the scene ---------------------------------------------------------


def _size(height: int, rng: np.random.Generator) -> float:
    return height * rng.uniform(0.5, 0.57)


def _travel(direction: int):
    def draw(video: np.ndarray, mask: np.ndarray, subject: str, rng: np.random.Generator) -> None:
        frames, height, width, _ = video.shape
        size, speed = _size(height, rng), rng.uniform(2.4, 2.9) * height / 96
        y, phase = height * 0.64 + rng.uniform(-3, 3), rng.uniform(0, 2 * np.pi)
        start = 0.5 * width - direction * rng.uniform(0.19, 0.31) * width
        mirrored = subject in FACES_LEFT and direction > 0
        for t in range(frames):
            bob = np.sin(phase + t * 0.7)
            draw_sprite(video[t], mask[t], subject, start + direction * speed * t, y + bob, size, 0.05 * bob,
                        mirrored)  # fmt: skip

    return draw


def _jump(video: np.ndarray, mask: np.ndarray, subject: str, rng: np.random.Generator) -> None:
    frames, height, width, _ = video.shape
    size, x, phase = _size(height, rng), width * rng.uniform(0.25, 0.75), rng.uniform(0, np.pi)
    for t in range(frames):
        up = abs(np.sin(phase + np.pi * t / 13))
        squash = 1 - 0.16 * max(0.0, 1 - up * 4)  # flattened while it touches the ground
        draw_sprite(
            video[t], mask[t], subject, x, height * (0.7 - 0.27 * up) + size * (1 - squash) / 2, size, squash=squash
        )


def _rise(video: np.ndarray, mask: np.ndarray, subject: str, rng: np.random.Generator) -> None:
    frames, height, width, _ = video.shape
    size, speed = _size(height, rng), rng.uniform(1.9, 2.3) * height / 96
    x, start, phase = width * rng.uniform(0.25, 0.75), height * rng.uniform(0.72, 0.8), rng.uniform(0, 2 * np.pi)
    for t in range(frames):
        draw_sprite(video[t], mask[t], subject, x + 1.5 * np.sin(phase + 0.4 * t), start - speed * t, size)


def _surf(video: np.ndarray, mask: np.ndarray, subject: str, rng: np.random.Generator) -> None:
    """The subject on a board, riding the front of a wave that travels with it."""
    frames, height, width, _ = video.shape
    unit, size, speed = height / 64, _size(height, rng) * 0.94, rng.uniform(1.3, 1.8) * height / 96
    start, phase = width * rng.uniform(0.3, 0.5), rng.uniform(0, 2 * np.pi)
    x = np.arange(width, dtype=np.float32)
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    for t in range(frames):
        rider, level = start + speed * t, height * 0.78 + 1.2 * unit * np.sin(0.35 * t + phase)
        crest = np.exp(-(((x - rider + width * 0.15) / (width * 0.15)) ** 2))
        edge = (level - height * 0.16 * crest + unit * np.sin(x / width * 12 + 0.35 * t + phase)).astype(np.float32)
        surface = float(np.interp(rider, x, edge))
        angle = 0.18 + 0.08 * np.sin(0.45 * t + phase)
        draw_sprite(video[t], mask[t], subject, rider, surface - size * 0.45, size, angle, subject in FACES_LEFT)
        along, across = xx - rider, yy - surface
        cos, sin = np.cos(angle), np.sin(angle)
        board = ((along * cos + across * sin) / (17 * unit)) ** 2 + ((across * cos - along * sin) / (2.8 * unit)) ** 2
        alpha = np.clip((1 - board) * 3, 0, 1)[..., None]
        video[t] = video[t] * (1 - alpha) + _rgb(255, 120, 60) * alpha
        _fill_below(video[t], edge + unit, _rgb(238, 250, 255))  # foam
        _fill_below(video[t], edge + 4 * unit, _rgb(30, 140, 200))


_MOTION = {"surf": _surf, "right": _travel(+1), "left": _travel(-1), "jump": _jump, "rise": _rise}


def contact_sheet(videos: list[np.ndarray], labels: list[str], columns: int = 5, scale: int = 1) -> Image.Image:
    """One row of evenly spaced frames per clip, captioned."""
    rows = []
    for video in videos:
        picks = np.linspace(0, len(video) - 1, columns).round().astype(int)
        rows.append(np.concatenate([video[i] for i in picks], axis=1))
    sheet = Image.fromarray(np.concatenate(rows))
    if scale != 1:
        sheet = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
    draw, step = ImageDraw.Draw(sheet), sheet.height // len(videos)
    for row, label in enumerate(labels):
        draw.rectangle((0, row * step, draw.textlength(label) + 6, row * step + 13), fill=(0, 0, 0))
        draw.text((3, row * step + 1), label, fill=(255, 255, 255))
    return sheet
