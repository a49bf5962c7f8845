"""A video's comment, read back as it was written; what has none is refused in a sentence."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from fpsgen import comment
from fpsgen.errors import UsageError
from fpsgen.video import VideoWriter

AWKWARD = "a = b; # \\ \n[STREAM]\r\ncomment=no\t“猫” \U0001f408 \\\\n"


def video(path: Path, metadata: Any = None) -> Path:
    with VideoWriter(path, (48, 32), 16) as writer:
        writer.write(np.zeros((2, 32, 48, 3), np.uint8))
        assert writer.finish(metadata) is None
    return path


def commented(path: Path, text: str) -> Path:
    """A video with a comment that fpsgen did not write."""
    own = video(path.with_name(f"plain{path.suffix}"))
    more = ["-movflags", "use_metadata_tags"] if path.suffix in (".mp4", ".mov") else []
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(own), "-c", "copy", *more]
    subprocess.run([*command, "-metadata", f"comment={text}", "-y", str(path)], check=True)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_what_was_written_is_read(tmp_path: Path, suffix: str) -> None:
    told = {"fpsgen": "1", "prompt": AWKWARD, "seed": 2**64 - 1, "n": [1.5, None, True], AWKWARD: {"long": "x" * 10**5}}
    assert comment.read(video(tmp_path / f"take:1 %d {suffix}", told)) == told


def test_half_a_character_comes_back(tmp_path: Path) -> None:
    told = {"fpsgen": "1", "file": "\udce9.safetensors"}
    assert comment.read(video(tmp_path / "a.mp4", told)) == told


def test_a_mov_and_an_mkv_are_read(tmp_path: Path) -> None:
    for suffix in (".mov", ".mkv"):
        own = video(tmp_path / "plain.mp4")
        path = tmp_path / f"a{suffix}"
        more = ["-movflags", "use_metadata_tags"] if suffix == ".mov" else []
        told = ["-metadata", 'comment={"fpsgen": "1"}', *more, "-y", str(path)]
        subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(own), "-c", "copy", *told], check=True
        )
        assert comment.read(path) == {"fpsgen": "1"}


FOREIGN = [
    "holiday",
    "",
    "[]",
    '{"seed": 1}',
    '{"fpsgen": 1}',
    '{"fpsgen": "1"',
    "[" * 100_000,
    '{"fpsgen": "1", "seed": ' + "9" * 10_000 + "}",
]


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_a_comment_of_somebody_else_s_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"a\.mp4 does not say that fpsgen made it"):
        comment.read(commented(tmp_path / "a.mp4", text))


def test_a_video_without_a_comment_is_refused(tmp_path: Path) -> None:
    for suffix, says in ((".mp4", "does not say"), (".webm", "does not say"), (".gif", "is a gif")):
        with pytest.raises(UsageError, match=says):
            comment.read(video(tmp_path / f"a{suffix}"))


def test_a_folder_of_frames_says_it_beside_them(tmp_path: Path) -> None:
    told = {"fpsgen": "1", "prompt": AWKWARD}
    (tmp_path / "video.json").write_text(json.dumps(told))
    assert comment.read(tmp_path) == told
    (tmp_path / "video.json").write_text("[]")
    with pytest.raises(UsageError, match="does not say that fpsgen made it"):
        comment.read(tmp_path)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n")
    for name, says in (
        ("none.mp4", "there is no such file"), (".", "it is a folder without video.json"), ("empty.mp4", "is empty"),
        ("text.mp4", "is no video that"), ("list.mp4", "is no video that"), ("a\0b", "null"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            comment.read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_damaged_video_is_refused(tmp_path: Path, suffix: str) -> None:
    """Or read, where the damage is elsewhere."""
    told = {"fpsgen": "1", "prompt": "a cat"}
    whole, draw = video(tmp_path / f"a{suffix}", told).read_bytes(), random.Random(0)
    damaged = [whole[: draw.randrange(12, len(whole))] for _ in range(3)]
    damaged += [whole[:12] + draw.randbytes(500), whole[:40]]
    for number, data in enumerate(damaged):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(data)
        with contextlib.suppress(UsageError):
            assert comment.read(path) == told


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".png"])
def test_a_link_stays_one_wherever_it_leads(tmp_path: Path, suffix: str) -> None:
    """As into a store that calls its files by their content."""
    (tmp_path / "store").mkdir()
    (tmp_path / f"v{suffix}").symlink_to("store/5f2b")
    with VideoWriter(tmp_path / f"v{suffix}", (48, 32), 16) as writer:
        writer.write(np.zeros((1, 32, 48, 3), np.uint8))
        assert writer.finish({"fpsgen": "0.1.0"}) is None
    assert comment.read(tmp_path / f"v{suffix}") == {"fpsgen": "0.1.0"}
    assert os.readlink(tmp_path / f"v{suffix}") == "store/5f2b"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["5f2b"]
