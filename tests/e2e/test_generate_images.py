"""`fpsgen generate` with images: what it makes, at which size, and what it refuses before any weight loads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fpsgen import choices
from fpsgen.cli import app
from fpsgen.settings import WAN_NEGATIVE
from fpsgen.weights import models
from tests.tools.cli import calibrate, invoke, told
from tests.tools.image_pipeline import make_image_pipeline
from tests.tools.stopped import stopped
from tests.tools.videos import read


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in ("i2v-14b", "flf2v-14b", "2.2-i2v"):
        made[kind] = tmp_path_factory.mktemp(kind)
        make_image_pipeline(kind).save_pretrained(made[kind])
    return made


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Portrait, as a camera writes it: on its side, and a note to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path, exif=exif)
    return path


def short(model: Path, output: Path) -> list[object]:
    return ["a cat surfing", "--model", model, "--frames", 5, "--steps", 2, "--seed", 1, "-o", output]


@pytest.mark.parametrize("kind", ["i2v-14b", "2.2-i2v"])
def test_a_video_from_a_cropped_photo(folders: dict[str, Path], photo: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "a.mp4"
    result = told(invoke(*short(folders[kind], output), "--image", photo, "--res", "96x64", "--json"), "generate")
    sha256 = hashlib.sha256(photo.read_bytes()).hexdigest()
    assert result["image"] == {"name": "photo.jpg", "path": str(photo), "sha256": sha256}
    assert result["last_image"] is None
    assert read(output)[1].shape == (5, 64, 96, 3)
    no_shaking = "镜头晃动，"  # noqa: RUF001
    assert result["negative"] == (no_shaking if kind == "i2v-14b" else "") + WAN_NEGATIVE


def test_other_pixels_make_another_video(folders: dict[str, Path], photo: Path, tmp_path: Path) -> None:
    """The noise is the same; what differs is what the model sees."""
    other = tmp_path / "other.png"
    Image.new("RGB", (96, 64), "green").save(other)
    videos = []
    for number, image in enumerate((photo, other, photo)):
        output = tmp_path / f"{number}.mp4"
        assert invoke(*short(folders["i2v-14b"], output), "--image", image, "--res", "96x64").exit_code == 0
        videos.append(read(output)[1])
    assert np.array_equal(videos[0], videos[2])
    assert not np.array_equal(videos[0], videos[1])


def test_the_size_is_the_image_s_unless_both_sides_are_given() -> None:
    model, portrait = models.absent("i2v-720p"), (3000, 4000)
    assert choices.size_with(None, None, None, model) is None
    assert choices.size_with(portrait, None, None, model) == (816, 1104)
    assert choices.size_with(portrait, "480p", (832, 480), model) == (544, 720)
    assert choices.size_with(portrait, "832x480", (832, 480), model) == (832, 480)
    assert choices.size_with(portrait, None, None, models.absent("5b")) == (800, 1088)


def test_the_shift_of_image_to_video_depends_on_the_size() -> None:
    """Wan2.1's `generate.py`; no other model's does."""
    for name, size, shift in (
        ("i2v-720p", (1280, 720), 5), ("i2v-720p", (480, 832), 3), ("i2v-480p", None, 3), ("i2v-480p", (1280, 720), 5),
        ("flf2v", (832, 480), 16), ("2.2-i2v", (832, 480), 5), ("14b", (832, 480), 5),
    ):  # fmt: skip
        assert choices.settings_of(models.absent(name), size).shift == shift
    assert choices.settings_of(models.absent("i2v-480p"), None, shift=7.0).shift == 7
    assert choices.settings_of(models.absent("i2v-480p"), None, solver="lightx2v").shift == 5


def test_what_a_model_lacks_or_does_not_take_is_told_before_it_loads(
    folders: dict[str, Path], photo: Path, tmp_path: Path, loads: list[str], wan_folder: Path
) -> None:
    both = ["--image", photo, "--last-image", photo]
    for folder, options, says in (
        (folders["i2v-14b"], [], "begins a video with an image, and none is given"),
        (folders["2.2-i2v"], ["--last-image", photo], "begins a video with an image, and none is given"),
        (folders["i2v-14b"], both, "takes no last image"),
        (folders["flf2v-14b"], ["--image", photo], "no last one is given"),
        (folders["flf2v-14b"], [*both, "--frames", 1], "a video of one frame has no other end"),
        (wan_folder, ["--image", photo], "makes videos of text alone"),
        (wan_folder, ["--last-image", photo], "takes no last image"),
        (folders["i2v-14b"], ["--image", tmp_path], "cannot be read"),
        (folders["i2v-14b"], ["--image", tmp_path / "none.png"], "there is no such file"),
    ):
        result = invoke(*short(folder, tmp_path / "none.mp4"), "--res", "96x64", *options)
        assert result.exit_code == 2, result.output
        assert says in " ".join(result.output.split()), result.output
        assert "hint" in result.output
        assert not (tmp_path / "none.mp4").exists()
    assert loads == []


def test_a_video_does_not_replace_its_image(folders: dict[str, Path], tmp_path: Path, loads: list[str]) -> None:
    Image.new("RGB", (96, 64), "green").save(tmp_path / "a.gif")
    before = (tmp_path / "a.gif").read_bytes()
    for options in (["--image", tmp_path / "a.gif"], ["--last-image", tmp_path / "a.gif"]):
        result = invoke(*short(folders["2.2-i2v"], tmp_path / "." / "a.gif"), *options)
        assert result.exit_code == 2
        assert "a.gif is the image: the video would replace it" in " ".join(result.output.split())
    assert (tmp_path / "a.gif").read_bytes() == before
    assert loads == []


def test_what_has_no_image_to_give_says_so(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat")
    own, data = folders["i2v-14b"], ["-o", "none"]
    for result in (
        calibrate("--model", own, "--dry-run"),
        CliRunner().invoke(app, ["bench", "quality", "--model", str(folders["2.2-i2v"])]),
        CliRunner().invoke(app, ["train", "prepare", str(own), "--from-model", "--prompts", "prompts.txt", *data]),
        CliRunner().invoke(app, ["train", str(own), "--preset", "bf16", "--data", "data", *data]),
    ):
        assert result.exit_code == 2
        assert "begins videos with an image, and" in " ".join(result.output.split())


def test_a_preset_and_a_bench_take_images(folders: dict[str, Path], photo: Path, small: Path, tmp_path: Path) -> None:
    """Sparse attention as in text to video; contenders see the same image."""
    output = tmp_path / "a.mp4"
    phase = 'sigma = [1.0, 0.0]\nwindow = [1, 1, 1]\nqk = "int8"\npv = "fp8"\n'
    small.write_text(f'format = 1\nmodel = "14b"\ntile = [1, 2, 2]\n\n[[phase]]\n{phase}')
    given = ["--image", photo, "--res", "96x64"]
    result = told(invoke(*short(folders["i2v-14b"], output), *given, "--preset", small, "--json"), "generate")
    assert result["preset"]["name"] == "small.toml"
    assert result["attention"]["density"] < 1
    record = tmp_path / "bench.json"
    options = ["--model", folders["i2v-14b"], "--frames", 5, "--steps", 2, "--pairs", 0, "--no-report", "-o", record]
    benched = CliRunner().invoke(app, ["bench", *map(str, [*options, *given, "--preset", small])])
    assert benched.exit_code == 0, benched.output
    assert json.loads(record.read_text())["video"]["image"] == result["image"]
    refused = CliRunner().invoke(app, ["bench", "--random-weights", "i2v-14b"])
    assert refused.exit_code == 2
    assert "it begins with an image" in refused.output


def test_a_video_from_images_comes_again_from_its_comment(
    folders: dict[str, Path], photo: Path, tmp_path: Path
) -> None:
    """Also where an image has moved; another one in its place is told."""
    output = tmp_path / "a.mp4"
    Image.new("RGB", (32, 48), "blue").save(tmp_path / "last.png")
    given = "--image", photo, "--last-image", tmp_path / "last.png", "--res", "64x96"
    first = told(invoke(*short(folders["2.2-i2v"], output), *given, "--json"))
    (tmp_path / "elsewhere").mkdir()
    output = output.rename(tmp_path / "elsewhere" / "a.mp4")
    photo.rename(tmp_path / "elsewhere" / photo.name)
    result = invoke("--from", output, "-o", tmp_path / "b.mp4", "--json")
    again = told(result, "generate")
    assert "unlike" not in result.stderr
    assert again["image"]["path"] == str(tmp_path / "elsewhere" / photo.name)
    assert {"timings", "output", "image"} >= {key for key in first if first[key] != again[key] and key != "asked"}
    assert np.array_equal(read(output)[1], read(again["output"])[1])
    Image.new("RGB", (32, 48), "red").save(tmp_path / "last.png")
    result = invoke("--from", output, "--steps", 1, "-o", tmp_path / "c.mp4")
    assert "unlike a.mp4: the content of last.png" in " ".join(result.stderr.split())


@pytest.mark.parametrize("step", [1, 2])
def test_a_video_that_begins_with_an_image_goes_on(
    folders: dict[str, Path], photo: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """With its image; where all steps are done, nobody looks at that."""
    whole, path, folder = photo.with_name("whole.mp4"), photo.with_name("a.mp4"), folders["i2v-14b"]
    given = "--image", photo, "--res", "64x96"
    assert invoke(*short(folder, whole), *given).exit_code == 0
    stopped(step, *short(folder, path), *given)
    if step == 2:
        monkeypatch.setattr("fpsgen.conditioning.look", lambda *_: pytest.fail("it was looked at"))
    result = invoke(*short(folder, path), *given, "--resume")
    assert result.exit_code == 0, result.output
    assert (read(path)[1] == read(whole)[1]).all()
