"""Small models behind the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fpsgen import texts
from tests.tools.bench_quality import Quality
from tests.tools.calibration import Calibrator
from tests.tools.cli import Runner
from tests.tools.presets import SMALL
from tests.tools.train_cli import Trainer


@pytest.fixture
def run(wan_folder: Path, tmp_path: Path) -> Runner:
    return Runner(wan_folder, tmp_path)


@pytest.fixture
def pocket(pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets the small test pocket stand in for the real one, and works in an empty folder."""
    monkeypatch.setattr("fpsgen.assets.folder", lambda name: pocket_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calibrator(pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibrator:
    """`calibrate` on the small test pocket, with a cache of its own, in an empty folder."""
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Calibrator(pocket_folder, tmp_path)


@pytest.fixture
def quality(pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quality:
    """`bench quality` on the small test pocket, with a cache of its own, in an empty folder."""
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Quality(pocket_folder, tmp_path)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was loaded: nothing may be, where a command is refused."""
    loaded: list[str] = []
    monkeypatch.setattr(texts, "load_text_encoder", lambda *args: loaded.append("text") or pytest.fail("it loads"))
    return loaded


@pytest.fixture
def trainer(pocket_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """`train` on the small test pocket, with a cache of its own, in a folder with data and a preset."""
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Trainer(pocket_folder, tmp_path)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a small preset, and a terminal that is wide enough for what is said of it."""
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path
