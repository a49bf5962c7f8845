"""`fpsgen train prepare`: what it makes, what it tells, and what it refuses before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fpsgen.train import data
from fpsgen.train.data import Data
from fpsgen.weights.models import open_folder
from tests.tools.cli import told
from tests.tools.disk import fill_disk
from tests.tools.training_data import film, prepare, tree


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with two prompts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat surfing\na red dog\n")
    return tmp_path


def refused(*args: object) -> str:
    """What is said, in one line and a hint; no file is made or changed."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    result = prepare(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert "inside fpsgen" not in result.output
    assert "hint: " in result.stderr
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()} == before
    return " ".join(result.stderr.split())


FROM_MODEL = ("--from-model", "--prompts", "prompts.txt", "-o", "data")


def test_from_the_model(pocket_folder: Path) -> None:
    found = told(prepare(pocket_folder, *FROM_MODEL, "--count", 3, "--teacher", 2, "--json"), "train prepare")
    assert found == {"folder": "data", "samples": 3, "skipped": []}
    made = Data.open(Path("data"))
    made.check(open_folder(pocket_folder, "small"))
    assert [origin.prompt for origin in made.index.origins] == ["a cat surfing", "a red dog", "a cat surfing"]
    assert [origin.seed for origin in made.index.origins] == [0, 1, 2]
    taught = made.sample(2).taught
    assert taught is not None
    assert taught.velocities.shape == (2, *made.sample(2).latents.shape)


def test_more_of_the_same(pocket_folder: Path) -> None:
    """A larger count goes on where the folder ends; the samples are those of one run."""
    for count in (1, 4):
        result = prepare(pocket_folder, *FROM_MODEL, "--seed", 2**64 - 1, "--count", count)
        assert result.exit_code == 0, result.output
    assert result.stdout.startswith("4 samples in data")
    whole = ["--from-model", "--prompts", "prompts.txt", "-o", "whole", "--seed", 2**64 - 1, "--count", 4]
    assert prepare(pocket_folder, *whole).exit_code == 0
    parts, one = Data.open(Path("data")), Data.open(Path("whole"))
    for number in range(4):  # alike but for last bits, which depend on how many run side by side
        assert torch.allclose(parts.sample(number).latents, one.sample(number).latents, atol=1e-5)


def test_settings_of_the_clips(pocket_folder: Path) -> None:
    given = ("--steps", 3, "--frames", 5, "--guidance", 1, "--shift", 4, "--dtype", "fp32", "--device", "cpu")
    assert prepare(pocket_folder, *FROM_MODEL, "--count", 1, *given).exit_code == 0
    made = Data.open(Path("data"))
    assert (made.index.frames, made.index.size, len(made)) == (5, (96, 64), 1)
    assert {"steps": 3, "guidance": 1.0, "shift": 4.0}.items() <= made.index.made.items()


def test_from_videos(pocket_folder: Path) -> None:
    Path("videos").mkdir()
    for name in ("a", "b"):
        film(Path("videos") / f"{name}.mp4", frames=24)
        (Path("videos") / f"{name}.txt").write_text("a cat surfing")
    film(Path("videos") / "silent.mp4", frames=24)
    (Path("videos") / "broken.mp4").write_text("nothing")
    (Path("videos") / "broken.txt").write_text("a cat surfing")
    result = prepare(pocket_folder, "--videos", "videos", "-o", "data")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "2 samples in data; 2 of 4 videos skipped"
    assert all(f"{name}.mp4 is skipped" in result.stderr for name in ("silent", "broken"))
    found = told(prepare(pocket_folder, "--videos", "videos", "-o", "data", "--json"), "train prepare")
    assert found == {"folder": "data", "samples": 2, "skipped": ["broken.mp4", "silent.mp4"]}


@pytest.mark.parametrize(
    "args",
    [("-o", "data"), ("--from-model", "-o", "data"), FROM_MODEL[:-2], (*FROM_MODEL, "--videos", "."),
     (*FROM_MODEL, "--count", "0"), (*FROM_MODEL, "--count", "9" * 20),
    (*FROM_MODEL, "--teacher", "-1"), (*FROM_MODEL, "--steps", "0"),
     (*FROM_MODEL, "--frames", "8"), (*FROM_MODEL, "--res", "128x64"), (*FROM_MODEL, "--seed", "-1"),
     (*FROM_MODEL, "--device", "tpu"), ("--videos", "nowhere", "-o", "data"), ("--videos", ".", "-o", "data"),
     ("--videos", ".", "-o", "data", "--prompts", "prompts.txt"), ("--videos", ".", "-o", "data", "--seed", "3"),
     ("--videos", ".", "-o", "data", "--teacher", "1"), ("--from-model", "--prompts", "nowhere.txt", "-o", "data"),
     ("--from-model", "--prompts", "empty.txt", "-o", "data")],
    ids=" ".join,
)  # fmt: skip
def test_wrong_options(pocket_folder: Path, loads: list[str], args: tuple[str, ...]) -> None:
    Path("empty.txt").write_text("# nothing\n")
    refused(pocket_folder, *args)
    assert not Path("data").exists()


def test_clips_of_a_model_with_a_lora(pocket_folder: Path) -> None:
    pairs = {
        f"diffusion_model.blocks.0.self_attn.q.lora_{half}.weight": 0.3 * torch.ones(shape)
        for half, shape in (("A", (2, 64)), ("B", (64, 2)))
    }
    save_file(pairs, "style.safetensors")
    words = (pocket_folder, "--from-model", "--prompts", "prompts.txt", "--count", "1")
    for folder, more in (("plain", ()), ("styled", ("--lora", "style.safetensors:0.5"))):
        assert prepare(*words, "-o", folder, *more).exit_code == 0
    plain, styled = Data.open(Path("plain")), Data.open(Path("styled"))
    assert not plain.sample(0).latents.equal(styled.sample(0).latents)
    assert [each["scale"] for each in styled.index.made["loras"]] == [0.5]
    assert "holds data of another run: loras" in refused(*words, "-o", "plain", "--lora", "style.safetensors")
    told = refused(*words, "-o", "more", "--lora", "style.safetensors", "--teacher", "1")
    assert "leave one of them out" in told


def test_other_steps_than_a_model_for_few_steps_has(wan_folder: Path, loads: list[str]) -> None:
    Path("lightx2v-4step").symlink_to(wan_folder)
    told = refused("lightx2v-4step", "--from-model", "--prompts", "prompts.txt", "--steps", "2", "-o", "data")
    assert "--steps 2: the solver lightx2v has 4 steps" in told
    assert "another --solver" in told
    assert not loads


def test_a_solver_that_is_named(wan_folder: Path) -> None:
    Path("lightx2v-4step").symlink_to(wan_folder)
    words = (
        "lightx2v-4step",
        "--from-model",
        "--prompts",
        "prompts.txt",
        "--count",
        "1",
        "--res",
        "48x32",
        "--frames",
        "1",
    )
    result = prepare(*words, "--solver", "euler", "--steps", "2", "-o", "data")
    assert result.exit_code == 0, result.output
    assert "lightx2v is used" not in result.output
    assert Data.open(Path("data")).index.sampling["solver"] == "euler"


def test_folders_that_cannot_be_written(pocket_folder: Path, loads: list[str]) -> None:
    Path("other").mkdir()
    Path("other/thesis.txt").write_text("years")
    Path("file").write_text("")
    for place in ("other", "file", "file/below"):
        assert place in refused(pocket_folder, *FROM_MODEL[:-1], place)
    if os.geteuid():
        Path("locked").mkdir(mode=0o500)
        assert "locked" in refused(pocket_folder, *FROM_MODEL[:-1], "locked")


def test_a_full_disk(pocket_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_MOST", 1)
    assert prepare(pocket_folder, *FROM_MODEL, "--count", 1).exit_code == 0
    before = tree(Path("data"))
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, ".safetensors")
        assert "No space left on device" in refused(pocket_folder, *FROM_MODEL, "--count", 2)
    assert tree(Path("data")) == before
    assert prepare(pocket_folder, *FROM_MODEL, "--count", 2).exit_code == 0


def test_stopped_by_its_user(pocket_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fpsgen.train.prepare.encode_prompts", stop)
        result = prepare(pocket_folder, *FROM_MODEL)
    assert result.exit_code == 130
    assert "stopped" in result.stderr
    assert prepare(pocket_folder, *FROM_MODEL).exit_code == 0
