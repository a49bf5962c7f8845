"""Videos to train on: found in a folder with their captions, and decoded by ffmpeg."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpsgen import ffmpeg, files
from fpsgen.errors import UsageError, option, reason
from fpsgen.ffmpeg import FfmpegError
from fpsgen.files import open_regular
from fpsgen.formats import QUALITY
from fpsgen.printable import printable
from fpsgen.settings import Settings

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
CAPTIONS = "captions.jsonl"
_LINE = 'write an object on each line, such as {"file": "cat.mp4", "caption": "a cat surfing"}'


class SkippedError(Exception):
    """Why a video cannot be used."""


@dataclass(frozen=True)
class SourceVideo:
    """source: the file's path in its folder; captions: one or more, or none for a video that cannot be used."""

    path: Path
    source: str
    captions: tuple[str, ...]


def find(folder: Path) -> list[SourceVideo]:
    """All videos in a folder and in those below it, by name. UsageError where there is none with a caption.

    Captions are those that captions.jsonl has for the file, else what is in the .txt file of the same name beside it.
    """
    name = option("videos", printable(folder, 100))
    try:
        if not folder.is_dir():
            raise UsageError(f"{name}: there is no such folder", hint="name a folder of videos")
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        listed = _listed(folder / CAPTIONS)
        sources = [path.relative_to(folder).as_posix() for path in paths]
        videos = [
            SourceVideo(path, source, listed.get(source) or _beside(path))
            for path, source in zip(paths, sources, strict=True)
        ]
    except OSError as fault:
        raise UsageError(f"{name} cannot be read: {reason(fault)}", hint="name another folder of videos") from None
    if not any(video.captions for video in videos):
        told = f"{name} has {len(videos)} videos, none with a caption" if videos else f"{name} has no videos"
        hint = f"write captions beside the videos, as in cat.txt for cat.mp4, or all of them in {CAPTIONS}"
        raise UsageError(told, hint if videos else f"name a folder of videos ({', '.join(SUFFIXES)})")
    if lost := [source for source in listed if source not in sources]:
        told = f"{printable(folder / CAPTIONS)} names a video that is not there: {printable(lost[0])}"
        raise UsageError(told, hint="correct the path, which begins in the folder, or remove the line")
    return videos


def _listed(path: Path) -> dict[str, tuple[str, ...]]:
    """The captions of each file that captions.jsonl names; UsageError that names the line that is wrong."""
    found: dict[str, tuple[str, ...]] = {}
    lines = _text(path).split("\n") if path.exists() else []  # JSON may contain what else ends a line, as U+2028
    for number, line in enumerate(lines, 1):
        try:
            told: Any = json.loads(line) if line.strip() else None
            if told is not None:
                every = told["captions"] if "captions" in told else [told["caption"]]
                if not isinstance(every, list):
                    raise TypeError  # a text would be taken for a list of letters
                found[str(told["file"])] = tuple(text for one in every if (text := _one_line(one)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UsageError(f"{printable(path)}, line {number} has no file and caption", hint=_LINE) from None
    return found


def _beside(path: Path) -> tuple[str, ...]:
    own = path.with_suffix(".txt")
    caption = _one_line(_text(own)) if own.exists() else ""
    return (caption,) if caption else ()


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{printable(path)} is not UTF-8 text", hint="save it as UTF-8") from None


def _one_line(text: str) -> str:
    """A caption as it is kept; lone surrogates, which JSON can escape, are no text."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def frames(video: SourceVideo, settings: Settings, scratch: Path) -> np.ndarray:
    """The first frames of a video, uint8 [frames, height, width, 3], in the settings' size and frame rate: scaled to
    cover the size, and cropped around the centre.

    scratch: a folder for the decoded frames. SkippedError where the video is damaged or too short, UsageError where the
    disk is full.
    """
    if not video.captions:
        raise SkippedError("it has no caption")
    width, height, count = settings.width, settings.height, settings.frames
    cover = f"scale={width}:{height}:force_original_aspect_ratio=increase:flags={QUALITY},crop={width}:{height}"
    filters = f"fps={settings.fps},scale=iw*sar:ih,setsar=1,{cover}"  # pixels are made square first
    # Whatever a file contains, it names no other place; and what is damaged is not concealed.
    given = ["-nostdin", "-xerror", "-protocol_whitelist", "file", "-i", f"file:{video.path.absolute()}"]
    made = ["-map", "0:v:0", "-vf", filters, "-frames:v", str(count), "-f", "rawvideo", "-pix_fmt", "rgb24"]
    with files.refused(scratch, "make room there", "output"), files.beside(scratch / "frames") as raw:
        try:
            ffmpeg.run([*given, *made, "-y", str(raw)], b"")
        except FfmpegError as fault:
            if fault.full:
                raise OSError(str(fault)) from None
            raise SkippedError(f"ffmpeg cannot decode it: {fault}") from None
        pixels = np.fromfile(raw, np.uint8)
    found = len(pixels) // (width * height * 3)
    if found < count:
        raise SkippedError(f"it has {found} frames at {settings.fps} a second, fewer than {count}")
    return pixels.reshape(count, height, width, 3)
