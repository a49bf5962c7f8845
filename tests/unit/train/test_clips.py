"""Videos to train on: which are found, with which captions, and which frames they give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fpsgen.errors import UsageError
from fpsgen.train import clips
from fpsgen.train.clips import SkippedError, SourceVideo
from tests.tools.calibration import VIDEO  # 96x64, 9 frames, 8 a second
from tests.tools.training_data import film


def video(path: Path) -> SourceVideo:
    return SourceVideo(path, path.name, ("a cat",))


def test_captions_beside_and_in_one_file(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MP4", "deep/c.webm", "d.gif", "picture.png", "alone.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.txt").write_text("a cat\n surfing \n")
    (tmp_path / "d.txt").write_text("not this one")
    lines = [{"file": "deep/c.webm", "captions": ["one", " two "]}, {"file": "d.gif", "caption": "é"}]
    (tmp_path / "captions.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    assert {one.source: one.captions for one in clips.find(tmp_path)} == {
        "a.MP4": (), "alone.mov": (), "b.mp4": ("a cat surfing",), "d.gif": ("é",), "deep/c.webm": ("one", "two"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["{", "3", "[]", '{"file": "a.mp4"}', '{"caption": "x"}', '{"file": "a.mp4", "captions": 3}',
     '{"file": "a.mp4", "captions": [3]}', '{"file": "a.mp4", "captions": "a cat"}',
     '{"file": "a.mp4", "caption": null}', '{"file": "b.mp4", "caption": "x"}'],
)  # fmt: skip
def test_wrong_lines_are_named(tmp_path: Path, line: str) -> None:
    film(tmp_path / "a.mp4", frames=2)
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4", "caption": "x"}\n' + line)
    with pytest.raises(UsageError, match=r"line 2|b\.mp4"):
        clips.find(tmp_path)


def test_a_line_ends_where_json_says(tmp_path: Path) -> None:
    """Other characters that Python ends a line at are part of a caption."""
    film(tmp_path / "a.mp4", frames=2)
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4", "caption": "a\u2028cat\u0085surfing"}\r\n', "utf-8")
    assert clips.find(tmp_path)[0].captions == ("a cat surfing",)


def test_folders_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        clips.find(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no videos"):
        clips.find(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match="caption"):
        clips.find(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UsageError, match="UTF-8"):
        clips.find(tmp_path)


def test_the_first_frames_at_the_model_s_rate(tmp_path: Path) -> None:
    """A film of 16 frames a second that becomes brighter by 8 each: at 8 a second every other one is seen."""
    found = clips.frames(video(film(tmp_path / "a.mp4", frames=24)), VIDEO, tmp_path)
    assert found.shape == (9, 64, 96, 3)
    assert found.dtype == np.uint8
    steps = np.diff(found.mean((1, 2, 3)))
    assert np.allclose(steps, 16, atol=2)  # of what x264 makes of a plain frame
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"], "nothing stays"


def test_a_wide_film_is_cropped_around_its_centre(tmp_path: Path) -> None:
    """Red outer quarters of a film twice as wide are cut off; what is left covers the size."""
    found = clips.frames(video(film(tmp_path / "a.mp4", size=(384, 128), frames=24, red=0.24)), VIDEO, tmp_path)
    assert found.shape == (9, 64, 96, 3)
    assert np.ptp(found.astype(int), axis=3).max() < 40


def test_videos_of_no_use_are_skipped(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4", frames=24, noisy=True)
    content = bytearray(whole.read_bytes())
    cut, flipped, text = (tmp_path / f"{name}.mp4" for name in ("cut", "flipped", "text"))
    cut.write_bytes(content[: len(content) // 4])
    content[len(content) // 3 : len(content) // 3 + 200] = bytes(200)
    flipped.write_bytes(content)
    text.write_text("no film")
    list_of_others = tmp_path / "list.mp4"
    list_of_others.write_text(f"ffconcat version 1.0\nfile {whole}\n")
    short = film(tmp_path / "short.mp4", frames=16)
    assert clips.frames(video(whole), VIDEO, tmp_path).shape[0] == 9
    for path in (cut, flipped, text, list_of_others, short, tmp_path / "gone.mp4"):
        with pytest.raises(SkippedError) as why:
            clips.frames(video(path), VIDEO, tmp_path)
        assert "\n" not in str(why.value)
    with pytest.raises(SkippedError, match="caption"):
        clips.frames(SourceVideo(whole, "whole.mp4", ()), VIDEO, tmp_path)
