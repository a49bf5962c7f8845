"""Checkpoints in FP8 and GGUF through the commands that run a model: the same as their values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fpsgen.cli import app
from fpsgen.weights import headers, models
from tests.tools.calibration import Calibrator
from tests.tools.cli import Runner, told
from tests.tools.cli import models as command
from tests.tools.quantised import DIALECTS, State, split, values, write, write_gguf
from tests.tools.train_cli import Trainer
from tests.tools.videos import read

DIT = "diffusion_pytorch_model.safetensors"
TRANSFORMER = Path("transformer") / DIT


@pytest.fixture
def state(both_formats: dict[str, Path], tmp_path: Path) -> State:
    """A transformer's tensors; the parts that belong to it lie in the test's folder."""
    for part in both_formats["original"].iterdir():
        if part.name not in (DIT, "config.json"):
            (tmp_path / part.name).symlink_to(part)
    return load_file(both_formats["original"] / DIT)


@pytest.fixture
def eight_bit_pocket(pocket_folder: Path, tmp_path: Path) -> Path:
    """The small test pocket, its transformer in FP8, in Diffusers' format."""
    folder = tmp_path / "fp8"
    (folder / "transformer").mkdir(parents=True)
    for part in pocket_folder.iterdir():
        if part.name != "transformer":
            (folder / part.name).symlink_to(part)
    (folder / "transformer" / "config.json").symlink_to(pocket_folder / "transformer" / "config.json")
    write(
        folder / TRANSFORMER, split(load_file(pocket_folder / TRANSFORMER), torch.float8_e4m3fn, True, "weight_scale")
    )
    return folder


@pytest.mark.parametrize("dialect", ["lightx2v", "gguf"])
def test_a_video_is_that_of_the_files_values(state: State, tmp_path: Path, dialect: str) -> None:
    if dialect == "gguf":
        file, worth = tmp_path / "mine.gguf", write_gguf(tmp_path / "mine.gguf", state, "Q8_0")
    else:
        written = DIALECTS[dialect](state)
        file, worth = write(tmp_path / "mine.safetensors", written), values(written)
    whole = write(tmp_path / "whole.safetensors", worth)
    run = Runner(file, tmp_path)
    ours, theirs = run(), run(model=whole)
    assert ours["weights"] == theirs["weights"]
    assert ours["model"] == file.name
    assert (read(ours["output"])[1] == read(theirs["output"])[1]).all()


def test_check_says_what_types_there_are(state: State, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.safetensors", DIALECTS["lightx2v int8"](state))
    assert told(command("check", file, "--json"))["dtypes"]["transformer"] == ["F32", "I8"]
    write_gguf(tmp_path / "mine.gguf", state, "Q4_K")
    file.unlink()
    for model in (tmp_path / "mine.gguf", tmp_path):  # the folder's only transformer
        assert told(command("check", model, "--json"))["dtypes"]["transformer"] == ["F16", "F32", "Q4_K"]


def test_diffusers_is_refused_for_the_numbers_that_no_conversion_changes(state: State, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.safetensors", DIALECTS["lightx2v"](state))
    words = ["bench", "--model", str(file), "--preset", "fast", "--compare", "diffusers", "--res", "96x64"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "it reads no weights in F8_E4M3" in " ".join(result.output.split())


def test_what_is_in_fp8_is_trained_in_more_bits(trainer: Trainer, eight_bit_pocket: Path) -> None:
    found = told(trainer("--json", model=eight_bit_pocket, steps=2), "train")
    written = headers.headers(models.find(found["weights_file"]).checkpoint.transformer)
    assert {header.dtype for header in written.values()} == {"F32", "BF16"}
    assert written["blocks.0.attn1.to_q.weight"].dtype == "BF16"


def test_a_preset_is_calibrated_for_fp8(calibrator: Calibrator, eight_bit_pocket: Path) -> None:
    calibrator.model = eight_bit_pocket
    result = calibrator("--min-psnr", 40)
    assert result.exit_code == 0, result.output
