"""`fpsgen generate` when it cannot: one sentence, the fix, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fpsgen import pipeline
from fpsgen.cli import app
from fpsgen.sampling import Denoiser
from tests.tools.cli import Runner, invoke
from tests.tools.videos import fake_ffmpeg, read


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
    assert "the last GPU here is cuda:1" in refused("cuda:3")
    assert "fpsgen runs on cpu and cuda" in refused("meta")


def test_without_weights_a_gpu_owner_is_told_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("fpsgen.weights.hub.on_disk", lambda key: None)
    for res, name in (("480p", "1.3b"), ("720p", "14b")):
        result = invoke("cat", "--res", res)
        assert result.exit_code == 2
        assert f"fpsgen models pull {name}" in result.stderr
        assert "--model pocket" in result.stderr


@pytest.mark.parametrize("text", ["[/]", r"\[/]", "[bold]", r"C:\[a] b"])
def test_what_users_type_is_no_markup(text: str) -> None:
    result = invoke("cat", "--model", text)
    assert result.exit_code == 2
    assert f"there is no model {text}" in " ".join(result.stderr.split())


def test_values_that_are_not_finite_make_no_video(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Denoiser, "velocity", lambda denoiser, latents, *_: latents * float("nan"))
    result = invoke(
        "cat", "--model", run.folder, "--res", "32x32", "--frames", 1, "--steps", 2, "-o", tmp_path / "a.mp4"
    )
    assert result.exit_code == 1
    assert "not finite" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_vae_that_is_damaged_makes_no_video(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fpsgen.wan.vae.denormalise", lambda vae, latents: latents * float("nan"))
    result = invoke(
        "cat", "--model", run.folder, "--res", "32x32", "--frames", 1, "--steps", 1, "-o", tmp_path / "a.mp4"
    )
    assert result.exit_code == 1
    assert "VAE gave values that are not finite" in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4.unfinished"]


def test_outputs_that_are_no_plain_files(run: Runner, tmp_path: Path) -> None:
    target, link, pipe = tmp_path / "real.mp4", tmp_path / "link.mp4", tmp_path / "pipe.mp4"
    target.write_bytes(b"old")
    link.symlink_to(target)
    os.mkfifo(pipe)
    run(output=link, res="32x32", frames=1, steps=1)
    assert link.is_symlink()
    assert len(read(target)[1]) == 1
    result = invoke("cat", "--model", run.folder, "-o", pipe)
    assert result.exit_code == 2
    assert "not a regular file" in " ".join(result.stderr.split())


def test_interruption_leaves_the_steps_that_were_finished(
    run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
    assert "the steps that were finished are kept" in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4.unfinished"]


@pytest.mark.parametrize(
    ("args", "says", "fix"),
    [
        (["--res", "potato"], "is not a size", "480p, 720p"),
        (["--res", "1920x1080"], "multiples of 16", "1920x1088"),
        (["--frames", "80"], "4n + 1", "77 or 81"),
        (["--steps", "0"], "1 to 1000", "--steps 50"),
        (["--frames", "1" + "0" * 28 + "1"], "at most 4093", "--frames 81"),
        (["--guidance", "nan"], "0 to 100", "--guidance 5"),
        (["--guidance", "1e999"], "0 to 100", "--guidance 5"),
        (["--shift", "0"], "0.01 to 100", "--shift 5"),
        (["--res", "833x481"], "833x481", "--res 832x480"),
        (["--res", "9" * 5000 + "x16"], "is not a size", "480p"),
        (["--model", ""], "the model's name is empty", "leave --model out"),
        (["--model", "x" * 5000], "there is no model", "x"),
        (["-o", "x" * 300 + ".mp4"], "cannot be written", "another place or name"),
        (["-o", "/dev/null/clip.mp4"], "is not a folder", "-o"),
        (["-o", "~nobody-of-that-name/clip.mp4"], "no such user", "another place"),
        (["-o", "two words/clip.mp4"], "does not exist", "mkdir -p 'two words'"),
        (["--seed", "-1"], "must be 0 to", "leave --seed out"),
        (["-o", "clip.avi"], 'cannot tell the video format from "clip.avi"', "use .mp4, .webm, .gif, .mov"),
        (["-o", "nowhere/clip.mp4"], "does not exist", "mkdir -p nowhere"),
        (["--device", "tpu9"], "runs on cpu and cuda", "cpu, cuda"),
        (["--device", "cpu:7"], "one CPU", "cpu, cuda"),
        (["--device", "cuda:x"], "no GPU's number", "cuda:0"),
        (["--seed", str(2**64)], "must be 0 to 18446744073709551615", "leave --seed out"),
    ],
)
def test_bad_input_is_one_sentence_and_a_fix(run: Runner, args: list[str], says: str, fix: str) -> None:
    result = invoke("cat", "--model", run.folder, *args)
    assert result.exit_code == 2
    errors = " ".join(result.stderr.split())
    assert says in errors
    assert fix in errors
    assert "Traceback" not in result.output


def test_a_size_that_no_encoder_takes_names_one_that_it_takes(tmp_path: Path) -> None:
    result = invoke("cat", "--model", "pocket", "--res", "833x480", "-o", tmp_path / "v.mp4")
    assert result.exit_code == 2
    assert "--res 834x480" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "says"), [("", "prompt is empty"), ("  \n ", "prompt is empty"), ("a" * 5001, "5001")]
)
def test_empty_and_endless_prompts_are_refused(prompt: str, says: str) -> None:
    result = invoke(prompt)
    assert result.exit_code == 2
    assert says in result.stderr


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fpsgen.weights.hub.on_disk", lambda key: None)
    result = invoke("cat", "--model", "14b")
    assert result.exit_code == 2
    assert "fpsgen models pull 14b" in result.stderr
    result = invoke("cat", "--model", "2b")
    assert result.exit_code == 2
    assert "pocket, 1.3b, 14b" in result.stderr
    (tmp_path / "transformer").mkdir()
    result = invoke("cat", "--model", tmp_path)
    assert result.exit_code == 2
    assert "lacks text_encoder, vae, tokenizer" in " ".join(result.stderr.split())


def test_a_failure_while_drawing_leaves_no_video(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: object, task: int, **fields: object) -> None:
        if fields.get("rate") == "frames":
            raise OSError("the terminal is gone")

    monkeypatch.setattr("rich.progress.Progress.update", fail)
    result = invoke(
        "cat", "--model", run.folder, "--res", "32x32", "--frames", 5, "--steps", 1, "-o", tmp_path / "a.mp4"
    )
    assert result.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4.unfinished"]


def test_errors_in_json(run: Runner) -> None:
    result = invoke("cat", "--model", run.folder, "--frames", 80, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["hint"] == "try --frames 77 or 81"


@pytest.mark.parametrize("input", [b"\xff\xfe cat", b""])
def test_standard_input_without_text(input: bytes) -> None:
    result = CliRunner().invoke(app, ["generate", "-"], input=input)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_machine_without_ffmpeg(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    result = invoke("cat", "--model", run.folder, "-o", "a.mp4")
    assert result.exit_code == 2
    assert "IMAGEIO_FFMPEG_EXE names /nowhere/ffmpeg" in " ".join(result.stderr.split())


def test_a_finished_video_is_never_thrown_away(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name became a folder while it was being made."""
    path, decode = tmp_path / "a.mp4", pipeline.decode

    def in_the_way(*args: Any) -> Any:
        path.mkdir()
        yield from decode(*args)

    monkeypatch.setattr(pipeline, "decode", in_the_way)
    result = invoke("cat", "--model", run.folder, "--res", "32x32", "--frames", 1, "--steps", 1, "-o", path)
    assert result.exit_code == 1
    (kept,) = (p for p in tmp_path.iterdir() if p.is_file() and p.suffix == ".mp4")
    assert str(kept) in "".join(result.stderr.splitlines())
    assert len(read(kept)[1]) == 1


def test_an_ffmpeg_that_cannot_encode_ends_it_before_a_model_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", fake_ffmpeg(tmp_path, "echo 'no libx264' >&2; exit 1"))
    monkeypatch.setattr("fpsgen.weights.models.find", lambda name: pytest.fail("a model was looked for"))
    result = invoke("cat", "--model", "any", "-o", tmp_path / "a.mp4")
    assert result.exit_code == 2
    assert "cannot be used to write .mp4 files here: no libx264" in " ".join(result.stderr.split())


def test_a_failing_comment_costs_no_video(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'case "$*" in *ffmetadata*) echo "bad luck" >&2; exit 1;; esac; exec "$FFMPEG" "$@"'
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", fake_ffmpeg(tmp_path, script))
    result = invoke(
        "cat", "--model", run.folder, "--res", "32x32", "--frames", 1, "--steps", 1, "-o", tmp_path / "a.mp4"
    )
    assert result.exit_code == 0, result.output
    assert "does not say how it was made: bad luck" in " ".join(result.stderr.split())
    assert (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("prompt", ["caf\udce9", "a cat"])
def test_a_prompt_that_is_no_text_is_refused(prompt: str) -> None:
    result = invoke(prompt, "--negative", "\udce9")
    assert result.exit_code == 2
    assert "prompt is not UTF-8 text" in result.stderr


@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("transformer", "num_attention_heads", "2", "num_attention_heads"),
        ("transformer", "num_layers", 1.5, "num_layers"),
        ("transformer", "text_dim", None, "text_dim"),
        ("transformer", "eps", float("nan"), "eps"),
        ("transformer", "num_layers", 3, "missing: blocks.2"),
        ("vae", "latents_mean", [0.0] * 8, "latents_mean"),
        ("vae", "base_dim", "x", "VAE"),
        ("vae", "dim_mult", [], "VAE"),
        ("vae", "_class_name", "AutoencoderKL", "AutoencoderKL"),
        ("text_encoder", "num_layers", 3, "missing: encoder.block.2"),
        ("text_encoder", "num_layers", 1, "unexpected: encoder.block.1"),
        ("text_encoder", "model_type", "bert", "model_type"),
        ("text_encoder", "feed_forward_proj", "zzz", "feed_forward_proj"),
        ("text_encoder", "d_model", "x", "text encoder"),
        ("text_encoder", "vocab_size", 5, "of another shape: shared.weight"),
    ],
)
def test_configurations_that_do_not_fit_are_told_before_anything_loads(
    wan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, key: str, value: object, says: str
) -> None:
    folder = Path(shutil.copytree(wan_folder, tmp_path / "m"))
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    monkeypatch.setattr(pipeline, "generate", lambda *_: pytest.fail("the pipeline was started"))
    result = invoke("cat", "--model", folder, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.stderr.split())
