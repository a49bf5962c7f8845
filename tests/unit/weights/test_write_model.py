"""A checkpoint with another transformer, in the format that it came in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from fpsgen.errors import RenderError
from fpsgen.weights import load
from fpsgen.weights.convert import convert, write_model
from fpsgen.weights.known import Given
from fpsgen.weights.layout import PARTS, Format
from fpsgen.weights.models import Model, find, open_folder

CPU = torch.device("cpu")


def trained(model: Model) -> dict[str, Tensor]:
    """Parameters in float32 that bfloat16 cannot hold exactly."""
    state = load.load_transformer(model.checkpoint, CPU, torch.float32).state_dict()
    generator = torch.Generator().manual_seed(0)
    return {name: value + 0.1 * torch.rand(value.shape, generator=generator) for name, value in state.items()}


def written_well(model: Model, out: Path) -> Model:
    """`out` is a model in the format of `model`, other parts the same, its transformer as trained."""
    again = open_folder(out, "trained")
    load.check(again.checkpoint)
    assert (again.checkpoint.format, again.config) == (model.checkpoint.format, model.config)
    assert (again.defaults, again.pocket is None) == (model.defaults, model.pocket is None)
    state, wanted = load.load_transformer(again.checkpoint, CPU, torch.float32).state_dict(), trained(model)
    assert state.keys() == wanted.keys()
    on_disk = {
        PARTS["transformer"].rename(name): value.dtype for name, value in load.read(model.checkpoint.transformer)
    }
    assert all(torch.equal(state[name], wanted[name].to(on_disk[name]).float()) for name in state)
    for part in ("vae", "text_encoder"):
        ours, theirs = (dict(load.read(getattr(each.checkpoint, part))) for each in (again, model))
        assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})
    return again


@pytest.mark.parametrize("form", ["diffusers", "original"])
def test_a_folder_keeps_its_format(both_formats: dict[str, Path], tmp_path: Path, form: str) -> None:
    model = open_folder(both_formats[form], "small")
    write_model(model, trained(model), tmp_path / "out" / "model")
    again = written_well(model, tmp_path / "out" / "model")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    for part in ("vae", "text_encoder"):  # one copy on this disk
        pairs = zip(getattr(again.checkpoint, part), getattr(model.checkpoint, part), strict=True)
        assert all(ours.samefile(theirs) for ours, theirs in pairs)
    if form == "diffusers":
        WanPipeline.from_pretrained(tmp_path / "out" / "model")


@pytest.mark.parametrize("form", ["diffusers", "original"])
def test_the_preset_that_it_was_trained_for_is_kept_in_either_format(
    both_formats: dict[str, Path], tmp_path: Path, form: Format
) -> None:
    model = open_folder(both_formats[form], "small")
    assert model.trained_for == ()
    write_model(model, trained(model), tmp_path / "model", trained_for="mine.toml")
    again = open_folder(tmp_path / "model", "small")
    other: Format = "original" if form == "diffusers" else "diffusers"
    list(convert(again.checkpoint, other, tmp_path / "converted"))
    assert again.trained_for == open_folder(tmp_path / "converted", "small").trained_for == ("mine.toml",)


def test_dtypes_stay_those_on_disk(both_formats: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(both_formats["diffusers"], tmp_path / "mixed"))
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = {name: value.bfloat16() if value.ndim == 2 else value for name, value in load_file(file).items()}
    save_file(state, file)
    model = open_folder(folder, "mixed")
    write_model(model, trained(model), tmp_path / "out")
    written_well(model, tmp_path / "out")
    assert {value.dtype for value in state.values()} == {torch.float32, torch.bfloat16}


def test_the_hubs_links_and_other_disks(
    both_formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache holds relative links, which would lead nowhere elsewhere; another disk takes no hard links."""
    blobs, folder = tmp_path / "blobs", Path(shutil.copytree(both_formats["diffusers"], tmp_path / "snapshot"))
    blobs.mkdir()
    for number, file in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    model = open_folder(folder, "cached")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_model(model, trained(model), tmp_path / "deep" / "er" / "out")
    written_well(model, tmp_path / "deep" / "er" / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "deep").rglob("*"))

    def refused(*args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refused)
    write_model(model, trained(model), tmp_path / "deep" / "copied")
    written_well(model, tmp_path / "deep" / "copied")


def test_a_transformer_in_a_file_of_its_own_gets_its_other_parts(
    both_formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a Diffusers folder in the hub's cache are written as the original's files."""
    monkeypatch.setattr("fpsgen.weights.shared.folders", lambda: iter([both_formats["diffusers"]]))
    state = load_file(both_formats["original"] / "diffusion_pytorch_model.safetensors")
    (tmp_path / "alone").mkdir()
    file = tmp_path / "alone" / "mine.safetensors"
    save_file({f"model.diffusion_model.{name}": value for name, value in state.items()}, file)
    model = find(str(file))
    write_model(model, trained(model), tmp_path / "out")
    again = open_folder(tmp_path / "out", "out")
    load.check(again.checkpoint)
    ours = load.load_transformer(again.checkpoint, CPU, torch.float32).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in trained(model).items())
    first, second = (load.load_vae(each.checkpoint, CPU).state_dict() for each in (again, model))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_a_part_that_was_named_is_written_in_the_models_own_format(
    both_formats: dict[str, Path], tmp_path: Path
) -> None:
    model = find(str(both_formats["diffusers"]), Given(vae=both_formats["original"] / "Wan2.1_VAE.pth"))
    write_model(model, trained(model), tmp_path / "out")
    again = open_folder(tmp_path / "out", "out")
    first, second = (load.load_vae(each.checkpoint, CPU).state_dict() for each in (again, model))
    assert all(torch.equal(first[name], second[name]) for name in second)
    WanPipeline.from_pretrained(tmp_path / "out")


def test_a_pocket_stays_one_and_pins_its_new_files(pocket_folder: Path, tmp_path: Path) -> None:
    model = open_folder(pocket_folder, "pocket")
    write_model(model, trained(model), tmp_path / "out")
    again = written_well(model, tmp_path / "out")
    assert again.family == "pocket"
    assert again.pocket is not None
    assert model.pocket is not None
    weights = sorted((tmp_path / "out").glob("*/*.safetensors"))
    digests = {
        file.relative_to(tmp_path / "out").as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in weights
    }
    assert again.pocket.pop("sha256") == digests
    card = json.loads((pocket_folder / "pocket.json").read_text())
    assert again.pocket == {**card, "knows": again.pocket["knows"]}


def test_an_earlier_result_gives_way_only_to_a_complete_one(
    both_formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = open_folder(both_formats["original"], "small"), tmp_path / "out"
    (tmp_path / "out.partial").mkdir()  # of a run that was killed
    (tmp_path / "out.partial" / "half.safetensors").write_text("half")
    zeros = {name: torch.zeros_like(value) for name, value in trained(model).items()}
    write_model(model, zeros, out)
    before = (out / "diffusion_pytorch_model.safetensors").read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfile", full)
        with pytest.raises(RenderError, match="No space left") as error:
            write_model(model, trained(model), out)
        assert error.value.hint == "give a place with room"
    assert (out / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    write_model(model, trained(model), out)
    written_well(model, out)
    assert not (out / "half.safetensors").exists()
