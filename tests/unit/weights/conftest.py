"""Checkpoints that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(wan_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(wan_folder, tmp_path / "wan"))


@pytest.fixture
def original(both_formats: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(both_formats["original"], tmp_path / "original"))
