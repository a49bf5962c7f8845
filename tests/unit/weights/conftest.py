"""Checkpoints that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor


@pytest.fixture
def folder(wan_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(wan_folder, tmp_path / "wan"))


@pytest.fixture
def original(both_formats: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(both_formats["original"], tmp_path / "original"))


@pytest.fixture
def state(original: Path) -> dict[str, Tensor]:
    """One transformer's tensors by the original's names; its file gives way to others."""
    file = original / "diffusion_pytorch_model.safetensors"
    found = load_file(file)
    file.unlink()
    (original / "config.json").unlink()
    return found
