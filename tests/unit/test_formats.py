"""Frames, stills and files for editing; what fits which format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fpsgen import formats
from fpsgen.errors import RenderError, UsageError
from fpsgen.formats import Encoding
from fpsgen.video import VideoWriter, check_path
from tests.tools.videos import read, said

TOLD = {"prompt": 'a "cat"; = # 猫\\', "half": "\udcff", "seed": 7}


def noise(count: int = 3, height: int = 64, width: int = 96) -> np.ndarray:
    """What no lossy codec gives back, in all colours."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def write(path: Path, frames: np.ndarray, told: dict | None = None, **more: object) -> VideoWriter:
    size = frames.shape[2], frames.shape[1]
    with VideoWriter(path, size, 16, **more) as writer:  # type: ignore[arg-type]
        writer.write(frames[:1])
        writer.write(frames[1:])
        assert writer.finish(told) is None
    return writer


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


@pytest.mark.parametrize("told", [None, TOLD])
def test_an_mkv_is_bit_for_bit_the_frames(tmp_path: Path, told: dict | None) -> None:
    sent = noise(9)
    write(tmp_path / "v.mkv", sent, told, key_frame=3)
    assert np.array_equal(read(tmp_path / "v.mkv")[1], sent)
    assert "bgr0(pc, gbr/smpte170m/smpte170m" in said(tmp_path / "v.mkv")


@pytest.mark.parametrize("name", ["frames", "take.1", "100%d", "猫"])
def test_a_folder_has_the_frames_bit_for_bit_and_what_a_comment_says(tmp_path: Path, name: str) -> None:
    sent, folder = noise(), tmp_path / name
    check_path(folder, folder=True)
    assert list(tmp_path.iterdir()) == []
    assert write(folder, sent, TOLD).path == folder
    assert sorted(path.name for path in folder.iterdir()) == ["0001.png", "0002.png", "0003.png", "video.json"]
    assert np.array_equal(pictures(folder), sent)
    assert json.loads((folder / "video.json").read_text(encoding="utf-8")) == TOLD
    assert list(tmp_path.iterdir()) == [folder]


def test_frames_are_scaled_as_a_video_is(tmp_path: Path) -> None:
    write(tmp_path / "frames", noise(1), scale_to=(192, 128))
    assert pictures(tmp_path / "frames").shape == (1, 128, 192, 3)


def test_a_still_is_the_frame_and_tells_how_it_was_made(tmp_path: Path) -> None:
    sent = noise(1)
    write(tmp_path / "a%03d.png", sent, TOLD)
    with Image.open(tmp_path / "a%03d.png") as image:
        assert np.array_equal(np.asarray(image), sent[0])
        assert json.loads(image.info["comment"]) == TOLD
    assert len(list(tmp_path.iterdir())) == 1


def test_an_abandoned_folder_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with VideoWriter(tmp_path / "frames", (96, 64), 16) as writer:
            writer.write(noise())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir(mode=0o700)
    check_path(folder, folder=True)
    write(folder, noise())
    assert (folder / "0003.png").is_file()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_has_something_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, says in (("frames", "other files in it"), ("file", "not a folder"), ("absent/frames", "does not exist")):
        with pytest.raises(UsageError, match=says):
            check_path(tmp_path / name, folder=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match="is the folder you are in"):
        check_path(Path("."), folder=True)


def test_what_came_into_the_folder_meanwhile_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    with VideoWriter(folder, (96, 64), 16) as writer:
        writer.write(noise())
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
        writer.finish(TOLD)
    assert writer.path == tmp_path / "frames-2"
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert len(list(writer.path.iterdir())) == 4


def test_frames_that_cannot_be_placed_end_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    with VideoWriter(tmp_path / "deep" / "frames", (96, 64), 16) as writer:
        writer.write(noise())
        (tmp_path / "deep").rename(tmp_path / "moved")
        with pytest.raises(RenderError, match="folder is gone"):
            writer.finish()


@pytest.mark.parametrize(("name", "folder"), [("v.mp4", True), ("a.png", True), ("v", False), ("v.avi", False)])
def test_names_and_slashes_agree(tmp_path: Path, name: str, folder: bool) -> None:
    with pytest.raises(UsageError):
        check_path(tmp_path / name, folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_larger_crf_makes_a_smaller_file(tmp_path: Path, suffix: str) -> None:
    for crf in (None, 40):
        write(tmp_path / f"{crf}{suffix}", noise(), crf=crf)
    usual, coarse = ((tmp_path / f"{crf}{suffix}").stat().st_size for crf in (None, 40))
    assert coarse < 0.7 * usual


@pytest.mark.parametrize(
    ("encoding", "name", "says"),
    [
        (Encoding(crf=0), "v.mp4", "crf=0: must be 1 to 51 for .mp4"),
        (Encoding(crf=52), "v.MP4", "must be 1 to 51"),
        (Encoding(crf=64), "v.webm", "crf=64: must be 0 to 63 for .webm"),
        *((Encoding(crf=18), name, "has one quality") for name in ("v.gif", "v.mov", "v.mkv", "a.png", "frames")),
        (Encoding(fps=60), "v.gif", "at most 50 frames a second, not 60"),
        (Encoding(), "a.png", "room for one frame, and the video has 5"),
    ],
)
def test_what_does_not_fit_is_refused(encoding: Encoding, name: str, says: str) -> None:
    encoding.check()
    with pytest.raises(UsageError, match=says) as refused:
        encoding.check_fits(Path(name), frames=5)
    assert refused.value.hint


def test_what_fits_is_not_refused() -> None:
    for name in ("v.mp4", "v.webm"):
        Encoding(crf=20, fps=120).check_fits(Path(name), 5, 16)
    for name in ("v.gif", "v.mov", "v.mkv", "frames"):
        Encoding(fps=50).check_fits(Path(name), 5, 16)
    Encoding().check_fits(Path("a.png"), 1, 16)


@pytest.mark.parametrize("fps", [0, -1, 121])
def test_numbers_that_mean_nothing_are_refused(fps: int) -> None:
    with pytest.raises(UsageError, match="1 to 120"):
        Encoding(fps=fps).check()


def test_prores_is_what_editors_read(tmp_path: Path) -> None:
    write(tmp_path / "v.mov", noise())
    assert "prores (HQ) (apch" in said(tmp_path / "v.mov")
    assert formats.of(tmp_path / "V.MOV").words == "ProRes 422 HQ"
