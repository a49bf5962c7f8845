"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import secrets
from pathlib import Path


def beside(path: Path) -> Path:
    """A free hidden name next to `path`, or to what it links to, of its suffix; short because names are limited,
    absolute because ffmpeg takes "take:1.mp4" for a protocol."""
    return path.resolve().with_name(f".fpsgen-{secrets.token_hex(6)}{path.suffix}")


def check_writable(path: Path) -> None:
    """OSError where nothing can be written next to `path`: permissions, read-only and special file systems; only
    trying tells."""
    probe = beside(path)
    probe.touch()
    probe.unlink()


def shortened(path: Path) -> str:
    """A path, no longer than a sentence bears."""
    return str(path) if len(str(path)) <= 100 else f"{str(path)[:100]}…"
