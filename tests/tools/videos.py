"""Reading back what was written; shared by the tests that look into a file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def read(path: Path | str) -> tuple[dict, np.ndarray]:
    """What ffmpeg says of a video, and its frames, uint8 [n, height, width, 3]."""
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def metadata(path: Path | str) -> dict:
    """How a file says that it was made: the JSON in its comment."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "ffmetadata", "-"]
    text = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    line = next(line for line in text.replace("\\\n", "\n").splitlines() if line.lower().startswith("comment="))
    unescaped = []
    characters = iter(line.split("=", 1)[1])
    for character in characters:  # ffmetadata escapes =, ;, # and \ by a backslash
        unescaped.append(next(characters) if character == "\\" else character)
    return json.loads("".join(unescaped))
