"""Frames of several videos on one picture; comments of stills and of folders of frames."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fpsgen import comment, sheet
from fpsgen.cli import app
from fpsgen.errors import UsageError
from fpsgen.video import VideoWriter
from tests.tools.cli import told

LEVELS = 20 + 10 * np.arange(9, dtype=np.uint8)  # the grey of each frame


def make(path: Path, seed: int | None = None, size: tuple[int, int] = (96, 64), count: int = 9) -> Path:
    """Frames that grow lighter."""
    frames = np.broadcast_to(LEVELS[:count, None, None, None], (count, size[1], size[0], 3))
    with VideoWriter(path, size, 16) as writer:
        writer.write(frames)
        writer.finish(None if seed is None else {"fpsgen": "1", "seed": seed, "prompt": "a [cat] 猫"})
    return path


@pytest.mark.parametrize("name", ["v.mp4", "v.gif", "v.mov", "v.mkv", "frames", "a.png"])
def test_frames_are_spread_from_the_first_to_the_last(tmp_path: Path, name: str) -> None:
    count = 1 if name == "a.png" else 9
    strip = sheet.read(make(tmp_path / name, seed=7, count=count), 3)
    assert (strip.frames, strip.seed) == (count, None if name == "v.gif" else 7)
    assert {one.size for one in strip.pictures} == {(270, 180)}
    shown = [np.asarray(one)[..., 1].mean() for one in strip.pictures]
    assert np.abs(np.array(shown) - LEVELS[[0, 4, 8]][: len(shown)]).max() <= 3  # YUV, a gif's palette
    assert len(shown) == min(3, count)
    assert "seed 7" in strip.label or name == "v.gif"


@pytest.mark.parametrize(("count", "numbers"), [(1, [4]), (2, [0, 8]), (5, [0, 2, 4, 6, 8]), (20, list(range(9)))])
def test_spread(count: int, numbers: list[int]) -> None:
    assert list(sheet.spread([Path(str(number)) for number in range(9)], count)) == [Path(str(n)) for n in numbers]


def test_the_sheet_has_a_row_for_each_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("one.mp4"), 1)
    make(Path("tall.mkv"), 2, size=(64, 96))
    make(Path("frames"))
    for name in ("sheet.png", "sheet-2.png"):
        result = CliRunner().invoke(app, ["sheet", "one.mp4", "tall.mkv", "frames/", "--columns", "4", "--json"])
        found = told(result, "sheet")
        assert found["output"] == name
    assert [(one["file"], one["frames"], one["seed"]) for one in found["videos"]] == [
        ("one.mp4", 9, 1), ("tall.mkv", 9, 2), ("frames", 9, None),
    ]  # fmt: skip
    page = np.asarray(Image.open("sheet.png")).astype(int)
    assert page.shape == (3 * (180 + 8 + 24) + 8, 4 * 278 + 8, 3)
    assert abs(page[100, 1000].mean() - LEVELS[8]) <= 3  # the last frame of the first row
    assert page[8:30].max() > 200  # letters


def test_a_folder_stands_for_the_videos_in_it(tmp_path: Path) -> None:
    for name in ("cat-10.mp4", "cat-2.mp4", "cat.webm", "sheet.png", "cat-3.mp4.unfinished", "notes.txt"):
        (tmp_path / name).touch()
    assert [one.name for one in sheet.rows(tmp_path)] == ["cat-2.mp4", "cat-10.mp4", "cat.webm"]
    assert sheet.rows(tmp_path / "cat-2.mp4") == [tmp_path / "cat-2.mp4"]
    (tmp_path / "0001.png").touch()  # a folder of frames
    assert sheet.rows(tmp_path) == [tmp_path]


@pytest.mark.parametrize(("size", "shown"), [((1, 1000), (1, 180)), ((3000, 2), (1440, 1)), ((2, 1080), (1, 180))])
def test_pictures_of_any_proportions_have_a_place(
    tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    """And a label that can be read, which was made shorter for ever where nothing of it fits."""
    path = tmp_path / ("a.png" if size[0] == 1 else "a.mkv")
    if path.suffix == ".png":
        Image.new("RGB", size).save(path)
    else:
        make(path, 7, size, count=2)
    strip = sheet.read(path, 2)
    assert {one.size for one in strip.pictures} == {shown}
    assert sheet.draw([strip]).width >= 200


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["absent.mp4"], "absent.mp4: there is no such file"),
        (["text.mp4"], "text.mp4: ffmpeg cannot decode it"),
        (["empty"], "empty is a folder without videos or frames"),
        (["v.mkv", "-o", "sheet.jpg"], "a sheet is a .png file"),
        (["v.mkv", "-o", "none/sheet.png"], "does not exist"),
        (["pipe.mp4"], "pipe.mp4 is not a regular file"),
        (["a.png", "-o", "a.png"], "is one of the videos"),
        (["frames", "-o", "frames/0003.png"], "is a frame of one of the videos"),
        (["v.mkv", "--columns", "0"], "--columns"),
        ([], "VIDEO"),
        (["v.mkv"] * 800, "more than 89 million"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:3]),
)
def test_what_cannot_be_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("a.png"), count=1)
    make(Path("v.mkv"))
    Path("text.mp4").write_text("no video")
    Path("empty").mkdir()
    make(Path("frames"), count=3)
    os.mkfifo("pipe.mp4")
    if len(args) > 100:  # not all of them are decoded
        strip = sheet.read(Path("v.mkv"), 5)
        monkeypatch.setattr(sheet, "read", lambda *_: strip)
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(app, ["sheet", *args])
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert sorted(tmp_path.iterdir()) == before


def test_stills_and_folders_tell_how_they_were_made(tmp_path: Path) -> None:
    for path in (make(tmp_path / "a.png", 7, count=1), make(tmp_path / "frames", 7)):
        assert comment.read(path) == {"fpsgen": "1", "seed": 7, "prompt": "a [cat] 猫"}
    make(tmp_path / "plain.png", count=1)
    (tmp_path / "frames" / "video.json").write_text(json.dumps([1]))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    for name in ("plain.png", "frames", "broken.png", "."):
        with pytest.raises(UsageError):
            comment.read(tmp_path / name)
