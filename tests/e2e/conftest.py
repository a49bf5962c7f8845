"""Small models behind the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.cli import Runner


@pytest.fixture
def run(wan_folder: Path, tmp_path: Path) -> Runner:
    return Runner(wan_folder, tmp_path)


@pytest.fixture
def pocket(pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets the small test pocket stand in for the real one, and works in an empty folder."""
    monkeypatch.setattr("fpsgen.assets.folder", lambda name: pocket_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path
