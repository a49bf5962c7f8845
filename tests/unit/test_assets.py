"""What is not Python is found, in an editable install and in a wheel."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from fpsgen import assets

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["kernels_cuda", "presets", "pocket", "judge"])
def test_folders_are_found_here(name: str) -> None:
    assert any(assets.folder(name).iterdir())


def test_absent_folders_say_so() -> None:
    with pytest.raises(FileNotFoundError, match="lacks its nothing"):
        assets.folder("nothing")


def test_the_wheel_carries_them(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    pocket = ("pocket/pocket.json", "pocket/model_index.json", "judge/network.safetensors")
    for name in ("kernels_cuda/README.md", "presets/README.md", *pocket):
        assert f"fpsgen/_assets/{name}" in names
    assert "fpsgen/report/templates/base.html.j2" in names
    assert not [name for name in names if name.startswith(("tests/", "recipes/"))]
