"""A contact sheet: videos below each other, a few frames of each side by side, to choose among seeds by eye."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen import comment, ffmpeg, files, formats, images
from fpsgen.errors import UsageError, option, reason
from fpsgen.ffmpeg import FfmpegError
from fpsgen.printable import printable

if TYPE_CHECKING:
    from PIL.Image import Image

HEIGHT = 180  # pixels of a frame
_WIDEST = 8 * HEIGHT  # of a frame: what is flatter is less high
_NARROWEST = 200  # of a sheet: a label is read
_MOST_FRAMES = 3000  # of a video that are looked at: two minutes
_GAP, _LETTERS, _PAPER, _INK = 8, 16, "#181818", "#e8e8e8"
_HINT = "name videos, or folders of videos or of PNG frames"


@dataclass(frozen=True)
class Strip:
    """A row. frames: how many the video has; seed: None where the file does not tell."""

    path: Path
    frames: int
    seed: int | None
    label: str
    pictures: Sequence[Image]


def rows(path: Path) -> list[Path]:
    """The videos of a folder that has no frames, in the order of the numbers in their names; else the path alone."""
    with contextlib.suppress(OSError):  # told by `read`
        if path.is_dir() and not frames_in(path):
            videos = (one for one in path.iterdir() if one.suffix.lower() in formats.FORMATS.keys() - {".png"})
            return sorted(videos, key=_in_order) or [path]
    return [path]


def _in_order(path: Path) -> list[tuple[str, int]]:
    """Sorts cat-2 before cat-10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]{0,30})", path.name)]


def frames_in(folder: Path) -> list[Path]:
    """The frames of a video that is a folder; none where it is another one, or a file."""
    return sorted(one for one in folder.glob("*.png") if one.stem.isdigit())


def read(path: Path, columns: int) -> Strip:
    """Up to `columns` frames of a video, evenly spaced from the first to the last. UsageError where it cannot be read,
    is a folder without frames, or is damaged."""
    name = printable(path)
    try:
        if not path.exists():
            raise UsageError(f"{name}: there is no such file", _HINT)
        if path.is_dir():
            if not (paths := frames_in(path)):
                raise UsageError(f"{name} is a folder without videos or frames", _HINT)
            pictures = [_thumbnail(one) for one in spread(paths, columns)]
            count = len(paths)
        elif path.suffix.lower() == ".png":
            pictures, count = [_thumbnail(path)], 1
        elif not path.is_file():  # a pipe may keep ffmpeg waiting
            raise UsageError(f"{name} is not a regular file", _HINT)
        else:
            pictures, count = _decoded(path, columns)
    except OSError as fault:
        raise UsageError(f"{name} cannot be read: {reason(fault)}", _HINT) from None
    seed, told = _told(path)
    return Strip(path, count, seed, told, pictures)


def spread(items: Sequence[Path], count: int) -> Iterator[Path]:
    """`count` of the items, or all if there are fewer: evenly spaced, with the first and the last; of one, the middle
    one."""
    if count == 1 < len(items):
        yield items[len(items) // 2]
        return
    most = min(count, len(items))
    yield from (items[round(number * (len(items) - 1) / max(most - 1, 1))] for number in range(most))


def _decoded(path: Path, columns: int) -> tuple[list[Image], int]:
    # Whatever a file contains, it names no other place; and what is damaged is not concealed.
    given = ["-nostdin", "-xerror", "-protocol_whitelist", "file", "-i", f"file:{path.absolute()}"]
    width, height = f"max(1,min({HEIGHT}*dar,{_WIDEST}))", f"max(1,min({HEIGHT},{_WIDEST}/dar))"
    scaled = f"scale=w='{width}':h='{height}':flags={formats.QUALITY},setsar=1"
    made = ["-map", "0:v:0", "-vf", scaled, "-frames:v", str(_MOST_FRAMES), "-fps_mode", "passthrough"]
    with files.temporary_folder("sheet") as folder:
        try:
            ffmpeg.run([*given, *made, "-f", "image2", "-y", str(folder / "%06d.bmp")], b"")
        except FfmpegError as fault:
            told = "the disk of temporary files is full" if fault.full else f"ffmpeg cannot decode it: {fault}"
            raise UsageError(f"{printable(path)}: {told}", _HINT) from None
        paths = sorted(folder.iterdir())
        if not paths:
            raise UsageError(f"{printable(path)} has no frames", _HINT)
        return [_thumbnail(one) for one in spread(paths, columns)], len(paths)


def _thumbnail(path: Path) -> Image:
    from PIL.Image import Resampling

    picture = images.read(path)
    scale = min(HEIGHT / picture.height, _WIDEST / picture.width)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture if picture.size == size else picture.resize(size, Resampling.LANCZOS)


def _told(path: Path) -> tuple[int | None, str]:
    """The seed of a video, and its label: its name, and what its comment says, where it has one."""
    try:
        made: dict[str, Any] = comment.read(path)
    except UsageError:
        made = {}
    seed, prompt = made.get("seed"), made.get("prompt")
    told = [path.resolve().name]
    told += [f"seed {seed}"] if isinstance(seed, int) else []
    told += [prompt] if isinstance(prompt, str) else []
    return (seed if isinstance(seed, int) else None), printable("   ".join(told), 400)


def draw(strips: Sequence[Strip]) -> Image:
    """All rows on one page, as wide as the widest of them. UsageError where it would be too large to look at."""
    from PIL import Image, ImageDraw, ImageFont

    line = _LETTERS + _GAP
    width = max(sum(one.width + _GAP for one in strip.pictures) for strip in strips) + _GAP
    width = max(width, _NARROWEST)
    height = len(strips) * (line + HEIGHT + _GAP) + _GAP
    if width * height > images.MOST_PIXELS:
        told = f"the sheet would have {width}x{height} pixels, more than {images.MOST_PIXELS // 10**6} million"
        raise UsageError(told, hint=f"use fewer videos, or fewer {option('columns')}")
    page = Image.new("RGB", (width, height), _PAPER)
    pen, letters = ImageDraw.Draw(page), ImageFont.load_default(_LETTERS)
    for row, strip in enumerate(strips):
        top, left = _GAP + row * (line + HEIGHT + _GAP), _GAP
        label = strip.label
        while pen.textlength(label, letters) > width - 2 * _GAP:
            label = label[: int(len(label) * 0.95) - 1].rstrip("…") + "…"
        pen.text((left, top), label, _INK, letters)
        for picture in strip.pictures:
            page.paste(picture, (left, top + line))
            left += picture.width + _GAP
    return page
