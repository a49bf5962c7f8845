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


def fake_ffmpeg(folder: Path, script: str) -> str:
    """A shell script to stand in ffmpeg's place, which is $FFMPEG in it; for IMAGEIO_FFMPEG_EXE."""
    path = folder / "fake-ffmpeg"
    path.write_text(f"#!/bin/sh\nFFMPEG='{imageio_ffmpeg.get_ffmpeg_exe()}'\n{script}\n")
    path.chmod(0o755)
    return str(path)


def said(path: Path | str) -> str:
    """ffmpeg's line about the video in a file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)]
    lines = subprocess.run(command, capture_output=True, check=False).stderr.decode().splitlines()
    return next(line for line in lines if "Video:" in line)


def yuv(path: Path | str, size: tuple[int, int]) -> np.ndarray:
    """The first frame of a yuv420p video as it is stored, float64 [height, width, 3]; colours over 2x2 pixels."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-frames:v", "1", "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "yuv420p", "-"], capture_output=True, check=True).stdout
    (width, height), every = size, np.frombuffer(raw, np.uint8).astype(float)
    luma, rest = every[: width * height].reshape(height, width), every[width * height :]
    colours = rest.reshape(2, height // 2, width // 2).repeat(2, 1).repeat(2, 2)
    return np.stack([luma, *colours], -1)


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
