"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO


def beside(path: Path) -> Path:
    """A free hidden name next to `path`, or to what it links to, of its suffix; short because names are limited,
    absolute because ffmpeg takes "take:1.mp4" for a protocol."""
    return path.resolve().with_name(f".fpsgen-{secrets.token_hex(6)}{path.suffix}")


def write_text(path: Path, text: str) -> None:
    """UTF-8, by one rename: whoever is killed meanwhile leaves what was there before. Folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = beside(path)
    try:
        whole.write_text(text, encoding="utf-8", errors="replace")
        whole.replace(path.resolve())  # a link stays one
    finally:
        whole.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_writable(path: Path) -> None:
    """OSError where nothing can be written next to `path`: permissions, read-only and special file systems; only
    trying tells."""
    probe = beside(path)
    probe.touch()
    probe.unlink()


def open_regular(path: Path) -> BinaryIO:
    """A file to read. OSError where it is none: a pipe or a device may keep its reader waiting, or never end."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def safe_name(name: str) -> str:
    """The last part of a model's or preset's name as part of a file's."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(name).name) or "model"


def shortened(path: Path) -> str:
    """A path, no longer than a sentence bears."""
    return str(path) if len(str(path)) <= 100 else f"{str(path)[:100]}…"
