"""`fpsgen generate` with parts in files of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.tools.cli import Runner, invoke

T5, VAE = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"


def test_a_video_of_split_files_is_the_folders_own(both_formats: dict[str, Path], tmp_path: Path) -> None:
    """ComfyUI's folders, files that are named one by one, and the whole folder: the same bits."""
    original, models = both_formats["original"], tmp_path / "models"
    for name in ("diffusion_models", "text_encoders", "vae"):
        (models / name).mkdir(parents=True)
    dit = shutil.copy(original / "diffusion_pytorch_model.safetensors", models / "diffusion_models" / "wan.safetensors")
    for name, file in ((T5, "text_encoders/umt5_xxl.safetensors"), (VAE, "vae/wan_2.1_vae.safetensors")):
        save_file(torch.load(original / name, weights_only=True), models / file)
    shutil.copytree(original / "google", models / "google")
    run, short = Runner(original, tmp_path), {"frames": 1, "steps": 1, "res": "64x64"}
    whole = run.frames(**short)
    assert np.array_equal(run.frames(model=models, **short), whole)
    alone = shutil.copy(dit, tmp_path / "alone.safetensors")
    named = {"vae": original / VAE, "text-encoder": original / T5}
    assert np.array_equal(run.frames(model=alone, **named, **short), whole)
    changed = torch.load(original / VAE, weights_only=True)
    save_file({name: value * 1.5 for name, value in changed.items()}, tmp_path / "other_vae.safetensors")
    assert not np.array_equal(run.frames(vae=tmp_path / "other_vae.safetensors", **short), whole)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--vae", "none.safetensors", "there is no VAE none.safetensors"),
        ("--text-encoder", ".", "the folder . holds no text encoder"),
        ("--vae", "~nobody-of-that-name/vae.safetensors", "home directory"),
    ],
)
def test_wrong_parts_are_refused(
    both_formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("a cat", "--model", both_formats["original"], option, value)
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert says in told
    assert f"{option} takes the file of the" in told or "name the file of the" in told
    assert not list(tmp_path.iterdir())
