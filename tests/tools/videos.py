"""Reading back what was written; shared by the tests that look into a file."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np


def read(path: Path | str) -> tuple[dict, np.ndarray]:
    """What ffmpeg says of a video, and its frames, uint8 [n, height, width, 3]."""
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])
