"""`fpsgen generate` into formats, folders and stills."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fpsgen import video
from tests.tools.cli import Runner, invoke, told
from tests.tools.videos import metadata, read


def test_frames_in_a_folder_are_those_of_the_lossless_video(run: Runner, tmp_path: Path) -> None:
    folder, last = tmp_path / "frames", tmp_path / "last.png"
    made = run(output=f"{folder}/")
    lossless = run(output=tmp_path / "v.mkv", **{"last-frame-to": last})
    assert made["output"] == str(folder)
    frames = np.stack([np.asarray(Image.open(folder / f"{number:04}.png")) for number in range(1, 6)])
    assert np.array_equal(read(tmp_path / "v.mkv")[1], frames)
    assert np.array_equal(np.asarray(Image.open(last)), frames[-1])
    about = json.loads((folder / "video.json").read_text(encoding="utf-8"))
    assert about | {"timings": None, "output": str(folder)} == made | {"timings": None}
    assert metadata(tmp_path / "v.mkv")["crf"] is lossless["crf"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "last.png", "v.mkv"]


def test_frame_rate_and_quality_are_the_user_s(run: Runner, tmp_path: Path) -> None:
    made = run(crf=30, fps=24)
    assert (made["crf"], made["fps"]) == (30, 24)
    assert read(made["output"])[0]["fps"] == 24
    assert metadata(made["output"])["crf"] == 30


def test_a_still_is_a_video_of_one_frame(run: Runner, tmp_path: Path) -> None:
    made = run(frames=1, output=tmp_path / "a.png")
    with Image.open(made["output"]) as image:
        assert image.size == (96, 64)
        assert json.loads(image.info["comment"])["frames"] == 1


def test_previews_change_no_bit_of_the_video(pocket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Path] = []
    monkeypatch.setattr(video, "write_picture", lambda pixels, path, fault: shown.append(path))
    for name, more in (("without.mkv", []), ("with.mkv", ["--preview", "1"])):
        args = ["--model", "pocket", "--seed", "3", "--frames", "5", "--steps", "3", "-o", name, *more]
        told(invoke("a cat surfing", *args, "--json"))
    assert shown == [Path("with.preview.png")] * 2
    assert np.array_equal(read("with.mkv")[1], read("without.mkv")[1])
    assert sorted(path.name for path in pocket.iterdir()) == ["with.mkv", "without.mkv"]


@pytest.mark.parametrize(
    ("args", "says", "fix"),
    [
        (["-o", "a.png"], "a.png has room for one frame, and the video has 5", "--frames 1"),
        (["-o", "a.gif", "--crf", "20"], "--crf 20: a.gif, GIF, has one quality", "leave --crf out"),
        (["--crf", "60", "-o", "a.mp4"], "--crf 60: must be 1 to 51 for .mp4", "leave it out for 10"),
        (["--preview", "0"], "--preview 0: must be at least 1", "--preview 5"),
        (["--fps", "0"], "--fps 0: must be 1 to 120", "--fps 16"),
        (["-o", "full/"], "-o full is a folder with other files in it", "full/video.mp4"),
        (["-o", "full"], "-o full is a folder with other files in it", "full/video.mp4"),
        (["-o", "file/"], "-o file is not a folder", "another place"),
        (["-o", "clip.mp4/"], '"clip.mp4" is the name of a video', "clip/"),
        (["--last-frame-to", "last.jpg"], "--last-frame-to last.jpg: a last frame is a .png file", "last.png"),
        (["--last-frame-to", "none/last.png"], "does not exist", "mkdir -p none"),
        (["--last-frame-to", "a.png", "-o", "./a.png", "--frames", "1"], "is where the video goes", "last.png"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "file").write_text("")
    result = invoke("cat", "--model", run.folder, "--res", "96x64", "--frames", "5", *args)
    assert result.exit_code == 2
    errors = " ".join(result.stderr.split())
    assert says in errors
    assert fix in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_a_last_frame_that_cannot_be_written_costs_no_video(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", refused)
    last = tmp_path / "last.png"
    args = ["--res", "96x64", "--frames", "5", "--steps", "1", "--last-frame-to", last, "-o", tmp_path / "v.mp4"]
    result = invoke("cat", "--model", run.folder, *args, "--json")
    assert "is complete, but not its last frame: No space left" in told(result, code=1)["error"]
    assert len(read(tmp_path / "v.mp4")[1]) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
