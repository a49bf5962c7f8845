"""Files: complete or absent, of the right size, in every format."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from fpsgen.errors import RenderError, UsageError
from fpsgen.video import VideoWriter, check_path
from tests.tools.videos import metadata, read


def frames(count: int = 9, height: int = 64, width: int = 96) -> np.ndarray:
    """Bars that move: something to encode."""
    x = np.arange(width)
    bars = [((x + 4 * t) // 8 % 2 * 200 + 20).astype(np.uint8) for t in range(count)]
    return np.stack([np.broadcast_to(bar[None, :, None], (height, width, 3)) for bar in bars]).copy()


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_frames_come_back(tmp_path: Path, suffix: str) -> None:
    path, sent = tmp_path / f"v{suffix}", frames()
    with VideoWriter(path, (96, 64), fps=16) as writer:
        writer.write(sent[:1])
        writer.write(sent[1:])
        writer.finish()
    meta, got = read(path)
    assert got.shape == sent.shape
    assert meta["fps"] == pytest.approx(16, rel=0.05)  # gif keeps time in hundredths of a second
    assert np.abs(got.astype(int) - sent).mean() < 6  # lossy, but the same picture
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("target", [(192, 128), (1280, 720), (720, 1280), (100, 100)], ids=str)
def test_scaling_gives_the_size_asked_for(tmp_path: Path, target: tuple[int, int]) -> None:
    with VideoWriter(tmp_path / "v.mp4", (96, 64), fps=16, scale_to=target) as writer:
        writer.write(frames(2))
        writer.finish()
    meta, _ = read(tmp_path / "v.mp4")
    assert meta["size"] == target


def test_scaling_keeps_shapes(tmp_path: Path) -> None:
    """A square stays square whether the rest is cropped away or padded."""
    picture = np.zeros((1, 96, 160, 3), np.uint8)
    picture[:, 32:64, 64:96] = 255
    for target in ((1280, 720), (400, 800)):
        with VideoWriter(tmp_path / "v.mp4", (160, 96), fps=8, scale_to=target) as writer:
            writer.write(picture)
            writer.finish()
        _, got = read(tmp_path / "v.mp4")
        lit = got[0, ..., 0] > 128
        wide, high = lit.any(0).sum(), lit.any(1).sum()
        assert wide == pytest.approx(high, rel=0.03)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_metadata_is_stored(tmp_path: Path, suffix: str) -> None:
    told = {"prompt": 'a "cat"; surfing = fun, 猫\\', "seed": 7}
    with VideoWriter(tmp_path / f"v{suffix}", (96, 64), fps=16) as writer:
        writer.write(frames(2))
        writer.finish(told)
    assert len(read(tmp_path / f"v{suffix}")[1]) == 2
    assert metadata(tmp_path / f"v{suffix}") == told


def test_an_abandoned_video_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with VideoWriter(tmp_path / "v.mp4", (96, 64), fps=16) as writer:
            writer.write(frames(2))
            raise KeyboardInterrupt

    (tmp_path / "v.mp4").write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
    assert (tmp_path / "v.mp4").read_bytes() == b"older"


def test_lost_frames_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda path: (1, 0.1))
    with VideoWriter(tmp_path / "v.mp4", (96, 64), fps=16) as writer:
        writer.write(frames(2))
        with pytest.raises(RenderError, match="1 of 2"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["v.avi", "v", "absent/v.mp4"])
def test_impossible_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        check_path(tmp_path / name)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UsageError, match="folder"):
        check_path(tmp_path / "folder.mp4")
