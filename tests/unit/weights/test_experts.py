"""Models of two experts: Wan2.2's folders in both formats, and what lies in them but half."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fpsgen.errors import ModelError, UsageError
from fpsgen.settings import DEFAULTS
from fpsgen.weights import convert, layout, load, models

DIT = "diffusion_pytorch_model.safetensors"


@pytest.fixture(params=["original", "diffusers"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def two(experts: dict[str, Path], form: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(experts[form], tmp_path / form))


def homes(form: str) -> tuple[str, str]:
    return ("high_noise_model", "low_noise_model") if form == "original" else ("transformer", "transformer_2")


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_both_formats_are_one_model(experts: dict[str, Path]) -> None:
    found = {form: models.find(str(folder)) for form, folder in experts.items()}
    assert [(model.checkpoint.kind, model.family) for model in found.values()] == [("2.2-14b", "2.2-14b")] * 2
    assert found["original"].config == found["diffusers"].config
    for part in ("transformer", "transformer_2"):
        tensors = []
        for model in found.values():
            load.check(model.checkpoint)
            own = load.load_transformer(model.checkpoint, load.torch.device("cpu"), load.torch.float32, part=part)
            tensors.append(own.state_dict())
        assert tensors[0].keys() == tensors[1].keys()
        assert all(tensors[0][name].equal(tensors[1][name]) for name in tensors[0])


def test_the_files_of_each_expert_are_its_own(two: Path, form: str) -> None:
    checkpoint = layout.recognise(two)
    assert [files[0].parent.name for files in (checkpoint.transformer, checkpoint.transformer_2)] == [*homes(form)]


def test_a_folders_own_boundary_is_taken_and_its_shift_is_not(experts: dict[str, Path], tmp_path: Path) -> None:
    """The published folders' schedulers say flow_shift 3, which is not what the model is sampled with."""
    folder = Path(shutil.copytree(experts["diffusers"], tmp_path / "m"))
    edit(folder / "model_index.json", boundary_ratio=0.7)
    assert models.find(str(folder)).defaults == DEFAULTS["2.2-14b"].override(boundary=0.7)
    edit(folder / "model_index.json", boundary_ratio=None)
    assert models.find(str(folder)).defaults == DEFAULTS["2.2-14b"]


@pytest.mark.parametrize("boundary", [0, 1.0, 875, -0.5, "0.875", [0.875], float("nan"), True])
def test_a_boundary_that_is_none_is_refused(experts: dict[str, Path], tmp_path: Path, boundary: object) -> None:
    folder = Path(shutil.copytree(experts["diffusers"], tmp_path / "m"))
    edit(folder / "model_index.json", boundary_ratio=boundary)
    with pytest.raises(ModelError, match="boundary_ratio"):
        layout.recognise(folder)


@pytest.mark.parametrize("which", [0, 1])
def test_half_a_model_is_refused_and_the_whole_is_named(two: Path, form: str, which: int) -> None:
    """An original's file finds the other expert's, whose name and folder say which one it is."""
    half = two / homes(form)[which]
    for path in (half, half / DIT)[: 1 if form == "original" else 2]:
        with pytest.raises(ModelError, match="half a model") as caught:
            models.find(str(path))
        assert str(two) in (caught.value.hint or "")
    if form == "original":
        assert models.find(str(half / DIT)).checkpoint.transformer_2 == [two / homes(form)[1] / DIT]


def test_a_file_in_the_current_folder_is_a_part_as_well(
    experts: dict[str, Path], both_formats: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experts["diffusers"] / "transformer_2")
    with pytest.raises(ModelError, match="half a model"):
        models.find(DIT)
    monkeypatch.chdir(both_formats["diffusers"] / "transformer")
    assert models.find(DIT).checkpoint == layout.recognise(both_formats["diffusers"])


@pytest.mark.parametrize("which", [0, 1])
def test_an_expert_that_is_absent_is_named(two: Path, form: str, which: int) -> None:
    shutil.rmtree(two / homes(form)[which])
    with pytest.raises(ModelError, match=f"lacks {homes(form)[which]}$"):
        models.find(str(two))


def lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may look into a folder; permissions alone would not stop root."""

    def locked(real: Callable[..., Any], itself: bool) -> Callable[..., Any]:
        def call(path: Any = ".", *rest: Any, **more: Any) -> Any:
            if isinstance(path, (str, Path)) and ((Path(path) == folder and itself) or folder in Path(path).parents):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *rest, **more)

        return call

    for name in ("listdir", "scandir", "stat"):
        monkeypatch.setattr(os, name, locked(getattr(os, name), name != "stat"))


@pytest.mark.parametrize("named", [".", f"high_noise_model/{DIT}"])
def test_an_expert_that_may_not_be_read_is_not_called_absent(
    experts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    folder = Path(shutil.copytree(experts["original"], tmp_path / "two"))
    lock(folder / "low_noise_model", monkeypatch)
    with pytest.raises(ModelError, match="low_noise_model cannot be read: Permission denied") as refused:
        models.find(str(folder / named))
    assert refused.value.hint == "ask its owner for permission to read it"


def test_an_index_that_says_two_is_believed(experts: dict[str, Path], tmp_path: Path) -> None:
    """And one that says one, although another folder lies there."""
    folder = Path(shutil.copytree(experts["diffusers"], tmp_path / "m"))
    edit(folder / "model_index.json", transformer_2=[None, None], boundary_ratio=None)
    assert models.find(str(folder)).family == "1.3b"
    (folder / "model_index.json").unlink()
    assert models.find(str(folder)).family == "2.2-14b"


def test_experts_of_two_models_are_refused(two: Path, form: str) -> None:
    low = two / homes(form)[1]
    state = {name: value for name, value in load_file(low / DIT).items() if "blocks.1." not in name}
    save_file(state, low / DIT)
    edit(low / "config.json", num_layers=1)
    with pytest.raises(ModelError, match="num_layers is 2 in the high-noise one, 1 in the other"):
        models.find(str(two))


def test_conversion_there_and_back_is_exact(experts: dict[str, Path], tmp_path: Path) -> None:
    list(convert.convert(layout.recognise(experts["diffusers"]), "original", tmp_path / "there"))
    list(convert.convert(layout.recognise(tmp_path / "there"), "diffusers", tmp_path / "back"))
    for part in ("transformer", "transformer_2"):
        first, last = (load_file(folder / part / DIT) for folder in (experts["diffusers"], tmp_path / "back"))
        assert first.keys() == last.keys()
        assert all(first[key].equal(last[key]) for key in first)
    assert layout.recognise(tmp_path / "back").boundary == 0.875


def test_a_boundary_that_the_original_format_cannot_say_is_not_lost(experts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(experts["diffusers"], tmp_path / "m"))
    edit(folder / "model_index.json", boundary_ratio=0.7)
    with pytest.raises(UsageError, match=r"0\.7; there it is 0\.875"):
        list(convert.convert(layout.recognise(folder), "original", tmp_path / "there"))
    assert not (tmp_path / "there").exists()
