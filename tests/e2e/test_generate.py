"""`fpsgen generate` through its front door: every option changes what it says it changes."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fpsgen import pipeline
from fpsgen.cli import app
from fpsgen.cli.options import Dtype, choose_dtype, parse_device
from tests.videos import read


def invoke(*args: object, input: str | None = None) -> Any:
    return CliRunner().invoke(app, ["generate", *map(str, args)], input=input)


class Runner:
    """Runs `generate` on a small model with short defaults; options given replace them."""

    def __init__(self, folder: Path, directory: Path):
        self.folder, self.directory, self.count = folder, directory, 0

    def __call__(self, prompt: str = "a cat surfing", **options: object) -> dict:
        self.count += 1
        settings: dict[str, object] = {
            "res": "96x64", "frames": 5, "steps": 2, "seed": 1, "model": self.folder,
            "output": self.directory / f"{self.count}.mp4",
        } | options  # fmt: skip
        args = [part for key, value in settings.items() if value is not None for part in (f"--{key}", value)]
        result = invoke(prompt, *args, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def frames(self, prompt: str = "a cat surfing", **options: object) -> np.ndarray:
        return read(self(prompt, **options)["output"])[1]


@pytest.fixture
def run(wan_folder: Path, tmp_path: Path) -> Runner:
    return Runner(wan_folder, tmp_path)


@pytest.fixture
def pocket(pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets the small test pocket stand in for the real one, and works in an empty folder."""
    monkeypatch.setattr("fpsgen.assets.folder", lambda name: pocket_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_same_seed_same_video_other_seed_other_video(run: Runner) -> None:
    first, again, other = (hashlib.sha256(run.frames(seed=seed)).hexdigest() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_prompt_matters(run: Runner) -> None:
    assert (run.frames("a cat surfing") != run.frames("a red dog sleeping")).any()


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", 3), ("guidance", 2.0), ("shift", 2.0), ("negative", "red dog"), ("dtype", "bf16")],
)
def test_option_changes_the_picture(run: Runner, option: str, value: object) -> None:
    assert (run.frames() != run.frames(**{option: value})).any()


def test_steps_frames_and_size_are_what_was_asked(run: Runner) -> None:
    report = run(steps=3, frames=9, res="64x96")
    meta, frames = read(report["output"])
    assert len(report["timings"]["steps"]) == 3
    assert len(frames) == 9
    assert meta["size"] == (64, 96)


def test_guidance_of_one_runs_one_branch(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    predict = pipeline.predict
    monkeypatch.setattr(pipeline, "predict", lambda *a: seen.append(len(a[3][0][0][0]) * len(a[3])) or predict(*a))
    run(guidance=1)
    assert set(seen) == {1}
    seen.clear()
    run(guidance=3)
    assert set(seen) == {2}


def test_branches_run_one_after_the_other_when_memory_is_short(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    together = run.frames()
    monkeypatch.setattr("fpsgen.memory.free_bytes", lambda device: 0)
    apart = run.frames()
    # The same arithmetic in another order; the encoder may turn a last bit into a level or two.
    assert np.abs(together.astype(int) - apart).max() <= 4


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_output_formats(run: Runner, tmp_path: Path, suffix: str) -> None:
    report = run(output=tmp_path / f"clip{suffix}")
    assert report["output"] == str(tmp_path / f"clip{suffix}")
    assert len(read(report["output"])[1]) == 5


def test_report_and_phases(run: Runner) -> None:
    report = run(seed=11)
    assert report["prompt"] == "a cat surfing"
    assert report["seed"] == 11
    assert report["device"] == "cpu"
    timings = report["timings"]
    phases = sum(timings[name] for name in ("load", "text", "denoise", "decode", "encode"))
    assert phases <= timings["total"] + 0.01
    assert phases >= 0.9 * timings["total"]
    assert timings["peak_memory_bytes"] > 50e6


def test_verbose_says_what_was_chosen(wan_folder: Path, tmp_path: Path) -> None:
    args = ("cat", "--model", wan_folder, "--res", "32x32", "--frames", 1, "--steps", 1, "-o", tmp_path / "a.mp4")
    quiet, loud = invoke(*args), invoke(*args, "--verbose")
    assert "guidance branches run" in loud.stderr
    assert "guidance branches run" not in quiet.stderr
    assert quiet.stdout.strip() == str(tmp_path / "a.mp4")
    for word in ("load", "text", "denoise", "decode", "encode", "total", "memory"):
        assert word in quiet.stderr


def test_device_is_checked(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(device="cpu")["device"] == "cpu"

    def refused(device: str) -> str:
        result = invoke("cat", "--device", device, "--model", run.folder)
        assert result.exit_code == 2
        return " ".join(result.stderr.split())

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cpu" in refused("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "counted 0 to 1" in refused("cuda:3")
    assert "fpsgen runs on cpu and cuda" in refused("meta")


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device, dtype in ((False, "cpu", torch.float32), (True, "cuda", torch.bfloat16)):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        chosen = parse_device(None)
        assert str(chosen) == device
        assert choose_dtype(None, chosen) == dtype
        assert choose_dtype(Dtype.FP32, chosen) == torch.float32


def test_without_weights_a_gpu_owner_is_told_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("fpsgen.wan.hub.on_disk", lambda key: None)
    for res, repository in (("480p", "Wan2.1-T2V-1.3B"), ("720p", "Wan2.1-T2V-14B")):
        result = invoke("cat", "--res", res)
        assert result.exit_code == 2
        assert f"hf download Wan-AI/{repository}-Diffusers" in result.stderr
        assert "--model pocket" in result.stderr


def test_prompt_from_standard_input(wan_folder: Path, tmp_path: Path) -> None:
    args = ("--model", wan_folder, "--res", "32x32", "--frames", 1, "--steps", 1, "-o", tmp_path / "a.mp4", "--json")
    result = invoke("-", *args, input="a dog\n")
    assert json.loads(result.stdout)["prompt"] == "a dog"


def test_bare_command_uses_the_pocket_and_names_the_file(pocket: Path) -> None:
    result = invoke("A cat, surfing!")
    assert result.exit_code == 0, result.output
    assert "pocket model renders" in result.stderr
    (path,) = pocket.iterdir()
    assert path.name.startswith("a-cat-surfing-")
    meta, frames = read(path)
    assert meta["size"] == (96, 64)
    assert len(frames) == 9


def test_seed_is_random_unless_given(pocket: Path) -> None:
    seeds = {json.loads(invoke("a cat", "--model", "pocket", "--json").stdout)["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_pocket_renders_its_own_size_and_scales_up(pocket: Path) -> None:
    result = invoke("a cat surfing", "--res", "720p", "--model", "pocket", "-o", "cat.mp4")
    assert result.exit_code == 0, result.output
    assert "renders 96x64" in result.stderr
    assert "scaled to 1280x720" in result.stderr
    assert read("cat.mp4")[0]["size"] == (1280, 720)


def test_pocket_names_the_words_it_does_not_know(pocket: Path) -> None:
    result = invoke("a purple cat surfing [bold]", "--model", "pocket", "-o", "a.gif")
    assert result.exit_code == 0, result.output
    assert "prompt left out: purple, bold. The pocket model knows a, cat, dog, surfing" in " ".join(
        result.stderr.split()
    )
    result = invoke("a cat", "--negative", "ugly cat's", "--model", "pocket", "-o", "a.gif")
    assert "negative prompt left out: ugly, cat's." in " ".join(result.stderr.split())


@pytest.mark.parametrize("text", ["[/]", r"\[/]", "[bold]", r"C:\[a] b"])
def test_what_users_type_is_no_markup(text: str) -> None:
    result = invoke("cat", "--model", text)
    assert result.exit_code == 2
    assert f"there is no model {text}" in " ".join(result.stderr.split())


def test_values_that_are_not_finite_make_no_video(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipeline, "predict", lambda transformer, latents, *_: latents * float("nan"))
    result = invoke(
        "cat", "--model", run.folder, "--res", "32x32", "--frames", 1, "--steps", 2, "-o", tmp_path / "a.mp4"
    )
    assert result.exit_code == 1
    assert "not finite" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def interrupted(frames: torch.Tensor) -> np.ndarray:
        calls.append(frames)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return np.zeros((frames.shape[2], 64, 96, 3), np.uint8)

    monkeypatch.setattr("fpsgen.wan.vae.to_uint8", interrupted)
    result = invoke(
        "cat", "--model", run.folder, "--res", "96x64", "--frames", 9, "--steps", 1, "-o", tmp_path / "a.mp4"
    )
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "says", "fix"),
    [
        (["--res", "potato"], "is not a size", "480p, 720p"),
        (["--res", "1920x1080"], "multiples of 16", "1920x1088"),
        (["--frames", "80"], "4n + 1", "77 or 81"),
        (["--steps", "0"], "1 to 1000", "--steps 30"),
        (["--guidance", "nan"], "0 or more", "--guidance 5"),
        (["--shift", "0"], "above 0", "--shift 5"),
        (["--seed", "-1"], "must be 0 to", "leave --seed out"),
        (["-o", "clip.avi"], "no video name", ".mp4, .webm, .gif"),
        (["-o", "nowhere/clip.mp4"], "does not exist", "mkdir -p nowhere"),
        (["--device", "tpu9"], "no device", "cpu, cuda"),
    ],
)
def test_bad_input_is_one_sentence_and_a_fix(run: Runner, args: list[str], says: str, fix: str) -> None:
    result = invoke("cat", "--model", run.folder, *args)
    assert result.exit_code == 2
    errors = " ".join(result.stderr.split())
    assert says in errors
    assert fix in errors
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("prompt", "says"), [("", "prompt is empty"), ("  \n ", "prompt is empty"), ("a" * 5001, "5001")]
)
def test_empty_and_endless_prompts_are_refused(prompt: str, says: str) -> None:
    result = invoke(prompt)
    assert result.exit_code == 2
    assert says in result.stderr


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fpsgen.wan.hub.on_disk", lambda key: None)
    result = invoke("cat", "--model", "14b")
    assert result.exit_code == 2
    assert "hf download Wan-AI/Wan2.1-T2V-14B-Diffusers" in result.stderr
    result = invoke("cat", "--model", "2b")
    assert result.exit_code == 2
    assert "pocket, 1.3b, 14b" in result.stderr
    (tmp_path / "transformer").mkdir()
    result = invoke("cat", "--model", tmp_path)
    assert result.exit_code == 2
    assert "lacks vae, text_encoder, tokenizer" in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["take:1.mp4", "x" * 240 + ".mp4", "-dash.mp4", "ünï 猫.mp4", "100%d.mp4"])
def test_odd_file_names(run: Runner, tmp_path: Path, name: str) -> None:
    run(output=tmp_path / name, res="32x32", frames=1, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_file_remembers_how_it_was_made(run: Runner) -> None:
    report = run(seed=5, steps=2)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", report["output"], "-f", "ffmetadata", "-"]
    told = subprocess.run(command, capture_output=True, check=True).stdout.decode().replace("\\", "")
    for part in ('"prompt": "a cat surfing"', '"seed": 5', '"steps": 2', '"dtype": "float32"', '"denoise":'):
        assert part in told


def test_a_failure_while_drawing_leaves_nothing(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: object, task: int, **fields: object) -> None:
        if fields.get("rate") == "frames":
            raise OSError("the terminal is gone")

    monkeypatch.setattr("rich.progress.Progress.update", fail)
    result = invoke(
        "cat", "--model", run.folder, "--res", "32x32", "--frames", 5, "--steps", 1, "-o", tmp_path / "a.mp4"
    )
    assert result.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_progress_is_logged_where_no_bar_is_drawn(wan_folder: Path, tmp_path: Path) -> None:
    args = ("cat", "--model", wan_folder, "--res", "32x32", "--frames", 1, "--steps", 20, "-o", tmp_path / "a.mp4")
    lines = [line for line in invoke(*args).stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 10
    assert lines[-1].startswith("step 20 of 20")
    assert "step" not in invoke(*args, "--json").stderr


def test_progress_is_drawn_on_a_terminal(wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    args = ("cat", "--model", wan_folder, "--res", "32x32", "--frames", 5, "--steps", 3, "-o", tmp_path / "a.mp4")
    drawn = invoke(*args).stderr
    for part in ("denoise", "3/3", "s/step", "decode", "5/5", "frames"):
        assert part in drawn
    assert "step 3 of 3" not in drawn


def test_errors_in_json(run: Runner) -> None:
    result = invoke("cat", "--model", run.folder, "--frames", 80, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["hint"] == "try --frames 77 or 81"
