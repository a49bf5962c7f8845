"""How a video was made, read from where `video` has written it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from fpsgen import ffmpeg, files, formats
from fpsgen.errors import UsageError, reason
from fpsgen.ffmpeg import FfmpegError
from fpsgen.printable import printable

HINT = "take a file that fpsgen made: a video that is no gif, a .png, or a folder of frames"
_LIMIT = 20  # seconds; a video of an hour takes less than one
_MOST = 16 << 20  # bytes of a comment; that of a preset with a thousand phases of forty layers is smaller


def read(path: Path) -> dict[str, Any]:
    """What the comment of a video says, that of a .png, or what lies in a folder of frames. UsageError where it cannot
    be read, or is not fpsgen's. Values are not checked: whoever uses one does."""
    name = printable(path)
    try:
        made = json.loads(_in_folder(path) if os.path.isdir(path) else _in_file(path))
    except (ValueError, RecursionError):
        made = None
    if not (isinstance(made, dict) and isinstance(made.get("fpsgen"), str)):
        raise UsageError(f"{name} does not say that fpsgen made it", HINT)
    return made


def _in_folder(path: Path) -> bytes:
    try:
        with files.open_regular(path / formats.TOLD) as file:
            return file.read(_MOST)
    except OSError as fault:
        told = f"it is a folder without {formats.TOLD}" if isinstance(fault, FileNotFoundError) else reason(fault)
        raise UsageError(f"{printable(path)} cannot be read: {told}", HINT) from None


def _in_file(path: Path) -> str:
    """The comment, empty where there is none."""
    demuxer = _demuxer(path)
    return _in_picture(path) if demuxer == "png" else _in_video(path, demuxer)


def _in_picture(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            return str(image.info.get("comment", ""))
    except Exception as fault:  # whatever comes of damaged files
        told = f"{printable(path)} cannot be read: it is a damaged image ({printable(reason(fault), 100)})"
        raise UsageError(told, HINT) from None


def _in_video(path: Path, demuxer: str) -> str:
    name = printable(path)
    # Whatever a file contains, it names no other place. With the demuxer named, nothing else reads it.
    given = ["-nostdin", "-protocol_whitelist", "file", "-f", demuxer, "-i", f"file:{path.absolute()}"]
    with files.temporary_folder("comment") as folder:
        told = folder / "comment"
        try:
            ffmpeg.run([*given, "-map_chapters", "-1", "-f", "ffmetadata", "-y", str(told)], b"", _LIMIT)
            with told.open("rb") as file:
                text = file.read(_MOST)
        except (FfmpegError, OSError) as fault:
            raise UsageError(
                f"{name} cannot be read: it is a damaged video ({printable(reason(fault))})", HINT
            ) from None
    return _comment(text.decode("utf-8", "replace"))


def _demuxer(path: Path) -> str:
    """What ffmpeg calls the format of a file, or "png", by its first bytes."""
    name = printable(path)
    try:
        with files.open_regular(path) as file:
            start = file.read(12)
    except (OSError, ValueError) as fault:  # ValueError: a null character
        told = "there is no such file" if isinstance(fault, FileNotFoundError) else reason(fault)
        raise UsageError(f"{name} cannot be read: {told}", HINT) from None
    if start[4:8] == b"ftyp":
        return "mov"
    if start.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if start.startswith(b"\x89PNG"):
        return "png"
    if start.startswith(b"GIF8"):
        raise UsageError(f"{name} is a gif, which has no place to say how it was made", HINT)
    raise UsageError(f"{name} is {'no video that fpsgen makes' if start else 'empty'}", HINT)


def _comment(text: str) -> str:
    """The comment of the whole file in ffmpeg's ffmetadata: lines KEY=VALUE, in which a backslash is before each =, ;,
    #, backslash and end of line; sections of streams follow."""
    for line in re.findall(r"(?:[^\\\n]|\\.)+", text, re.DOTALL):
        if line.startswith("["):
            break
        key, _, value = line.partition("=")
        if key.lower() == "comment":
            return re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return ""
