"""How a video was made, read from its own comment, which `video` writes and `request` fills."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from fpsgen import ffmpeg, files
from fpsgen.errors import UsageError, reason
from fpsgen.ffmpeg import FfmpegError
from fpsgen.printable import printable

HINT = "take an mp4 or webm file that fpsgen made"
_LIMIT = 20  # seconds; a video of an hour takes less than one
_MOST = 16 << 20  # bytes of a comment; that of a preset with a thousand phases of forty layers is smaller


def read(path: Path) -> dict[str, Any]:
    """What the comment of an mp4, mov, webm or mkv file says. UsageError where the file cannot be read, is no such
    video, or has no comment of fpsgen's. Values are not checked: whoever uses one does."""
    name = printable(path)
    demuxer = _demuxer(path)
    # Whatever a file contains, it names no other place. With the demuxer named, nothing else reads it.
    given = ["-nostdin", "-protocol_whitelist", "file", "-f", demuxer, "-i", f"file:{path.absolute()}"]
    with files.temporary_folder("comment") as folder:
        told = folder / "comment"
        try:
            ffmpeg.run([*given, "-map_chapters", "-1", "-f", "ffmetadata", "-y", str(told)], b"", _LIMIT)
            with told.open("rb") as file:
                text = file.read(_MOST + 1)
        except (FfmpegError, OSError) as fault:
            raise UsageError(
                f"{name} cannot be read: it is a damaged video ({printable(reason(fault))})", HINT
            ) from None
    comment = _comment(text.decode("utf-8", "replace"))
    if len(text) > _MOST or comment is None:
        _refuse(name)
    try:
        made = json.loads(comment)
    except (ValueError, RecursionError):
        _refuse(name)
    if not (isinstance(made, dict) and isinstance(made.get("fpsgen"), str)):
        _refuse(name)
    return made


def _refuse(name: str) -> NoReturn:
    raise UsageError(f"{name} does not say that fpsgen made it", HINT)


def _demuxer(path: Path) -> str:
    """What ffmpeg calls the format of a file, by its first bytes."""
    name = printable(path)
    try:
        with files.open_regular(path) as file:
            start = file.read(12)
    except (OSError, ValueError) as fault:  # ValueError: a null character
        told = "there is no such file" if isinstance(fault, FileNotFoundError) else reason(fault)
        told = "it is a folder" if path.is_dir() else told
        raise UsageError(f"{name} cannot be read: {told}", HINT) from None
    if start[4:8] == b"ftyp":
        return "mov"
    if start.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if start.startswith(b"GIF8"):
        raise UsageError(f"{name} is a gif, which has no place to say how it was made", HINT)
    raise UsageError(f"{name} is {'no video that fpsgen makes' if start else 'empty'}", HINT)


def _comment(text: str) -> str | None:
    """The comment of the whole file in ffmpeg's ffmetadata: lines KEY=VALUE, in which a backslash is before each =, ;,
    #, backslash and end of line; sections of streams follow."""
    for line in re.findall(r"(?:[^\\\n]|\\.)+", text, re.DOTALL):
        if line.startswith("["):
            return None
        key, _, value = line.partition("=")
        if key.lower() == "comment":
            return re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return None
