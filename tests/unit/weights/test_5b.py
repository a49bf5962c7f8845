"""Wan2.2's 5B: its two formats are one model; its VAE is told from Wan2.1's, which lies beside it in many folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from fpsgen.errors import ModelError
from fpsgen.weights import keys, models
from fpsgen.weights.cached import NEEDED
from fpsgen.weights.convert import convert
from fpsgen.weights.layout import recognise
from fpsgen.weights.load import check, load_transformer, load_vae
from tests.tools.quantised import write_gguf
from tests.tools.wan_pipeline import make_plain_pipeline, save_original

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pipeline = make_plain_pipeline(5, channels=48)
    found = {form: tmp_path_factory.mktemp(form) for form in ("diffusers", "original")}
    pipeline.save_pretrained(found["diffusers"])
    save_original(pipeline, found["original"])
    return found


def state(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = recognise(folder)
    parts = load_transformer(checkpoint, CPU, torch.float32), load_vae(checkpoint, CPU)
    return {name: value for part in parts for name, value in part.state_dict().items()}


def same(first: Path, second: Path) -> bool:
    ours, theirs = state(first), state(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_both_formats_give_the_same_modules(folders: dict[str, Path]) -> None:
    found = {form: recognise(folder) for form, folder in folders.items()}
    for form, checkpoint in found.items():
        assert (checkpoint.format, checkpoint.kind, checkpoint.config.time_per_token) == (form, "5b", True)
        check(checkpoint)
    assert found["diffusers"].config == found["original"].config
    assert same(*folders.values())
    moments = [load_vae(checkpoint, CPU).latents_std for checkpoint in found.values()]
    assert len(moments[0]) == 48
    assert list(moments[0]) == list(moments[1])


def test_it_is_converted_there_and_back(folders: dict[str, Path], tmp_path: Path) -> None:
    for form, target in (("original", "diffusers"), ("diffusers", "original")):
        list(convert(recognise(folders[form]), target, tmp_path / target))
        assert same(tmp_path / target, folders[form])
    assert (tmp_path / "original" / "Wan2.2_VAE.pth").is_file()
    assert WanPipeline.from_pretrained(tmp_path / "diffusers").config.expand_timesteps


def test_a_folder_of_files_may_have_both_vaes(folders: dict[str, Path], tmp_path: Path) -> None:
    source, vae = folders["original"], tmp_path / "vae"
    for name in ("diffusion_models", "text_encoders", "vae"):
        (tmp_path / name).mkdir()
    state = load_file(source / "diffusion_pytorch_model.safetensors")
    save_file(state, tmp_path / "diffusion_models" / "wan2.2_ti2v_5B_fp32.safetensors")
    shutil.copytree(source / "google", tmp_path / "diffusion_models" / "google")
    text = torch.load(source / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)
    save_file({name: value.clone() for name, value in text.items()}, tmp_path / "text_encoders" / "umt5.safetensors")
    older = make_plain_pipeline(6).vae.state_dict()
    save_file({keys.VAE.to_original(name): value for name, value in older.items()}, vae / "wan_2.1_vae.safetensors")
    with pytest.raises(ModelError, match=r"wan_2\.1_vae\.safetensors is the VAE of another model"):
        models.find(str(tmp_path))
    save_file(torch.load(source / "Wan2.2_VAE.pth", weights_only=True), vae / "wan2.2_vae.safetensors")
    found = models.find(str(tmp_path))
    check(found.checkpoint)
    assert found.checkpoint.vae == [vae / "wan2.2_vae.safetensors"]
    assert (found.family, found.defaults.fps) == ("5b", 24)


def test_what_is_missing_is_its_own_vae(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["original"], tmp_path / "5b"))
    (folder / "Wan2.2_VAE.pth").rename(folder / "Wan2.1_VAE.pth")
    with pytest.raises(ModelError, match=r"lacks Wan2\.2_VAE\.pth"):
        recognise(folder)


@pytest.mark.parametrize("form", ["original", "diffusers"])
def test_all_that_it_needs_is_fetched(folders: dict[str, Path], tmp_path: Path, form: str) -> None:
    names = [file.relative_to(folders[form]).as_posix() for file in folders[form].rglob("*") if file.is_file()]
    for name in filter_repo_objects(names, allow_patterns=NEEDED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folders[form] / name, tmp_path / name)
    check(recognise(tmp_path))


def test_its_transformer_in_gguf_beside_the_original_s_parts(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["original"], tmp_path / "5b"))
    file = folder / "diffusion_pytorch_model.safetensors"
    write_gguf(folder / "Wan2.2-TI2V-5B-Q8_0.gguf", load_file(file), "Q8_0")
    file.unlink()
    found = recognise(folder)
    check(found)
    assert found.kind == "5b"
    assert found.transformer == [folder / "Wan2.2-TI2V-5B-Q8_0.gguf"]
