"""Parts in files of their own: where they are looked for, which are taken, and what is said where one lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fpsgen.errors import ModelError
from fpsgen.weights import load, models
from fpsgen.weights.known import PIECES, Given
from fpsgen.weights.models import Model
from tests.tools import hub_cache
from tests.tools.image_pipeline import make_image_pipeline, save_image_original
from tests.tools.wan_pipeline import make_plain_pipeline, save_original

T5, VAE, DIT = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")
FILE = "diffusion_models/wan2.1_t2v_14B_fp16.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def comfy(both_formats: dict[str, Path], cache: Path, tmp_path: Path) -> Path:
    """One checkpoint in ComfyUI's folders, with VAEs and text encoders of others beside its own; the tokenizer, which
    ComfyUI has none of, is in the hub's cache."""
    original, root = both_formats["original"], tmp_path / "ComfyUI" / "models"
    for name in ("diffusion_models", "text_encoders", "vae", "loras", "clip_vision"):
        (root / name).mkdir(parents=True)
    shutil.copy(original / DIT, root / FILE)
    text, vae = (torch.load(original / name, weights_only=True) for name in (T5, VAE))
    save_file(text, root / "text_encoders" / "umt5_xxl_fp16.safetensors")
    save_file(vae, root / "vae" / "wan_2.1_vae.safetensors")
    save_file({name: value + 1 for name, value in vae.items()}, root / "vae" / "qwen_image_vae.safetensors")
    flat = {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3), "encoder.conv_out.weight": torch.zeros(4, 3, 3, 3)}
    save_file(flat, root / "vae" / "ae.safetensors")
    save_file(t5_of(text), root / "text_encoders" / "t5xxl_fp16.safetensors")
    save_file({"text_model.encoder.x": torch.zeros(2)}, root / "text_encoders" / "clip_l.safetensors")
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(original / "google", tokenizer / "google")
    hub_cache.keep(cache, "Wan-AI/Wan2.1-T2V-1.3B", tokenizer)
    return root


def t5_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A T5 encoder of the same widths, which has a bias of positions in its first layer alone; twice as large."""
    bias = "pos_embedding"
    kept = {name: value for name, value in state.items() if bias not in name or name.startswith("blocks.0.")}
    return {name: value.double() if value.is_floating_point() else value for name, value in kept.items()}


def tensors(model: Model) -> list[Tensor]:
    """What is loaded of all parts."""
    parts = (
        load.load_transformer(model.checkpoint, CPU, torch.float32),
        load.load_vae(model.checkpoint, CPU),
    )
    text = load.load_text_encoder(model.checkpoint, CPU, torch.float32).encode("a cat surfing").text
    return [*(value for part in parts for value in part.state_dict().values()), text]


def same(first: Model, second: Model) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))


@pytest.mark.parametrize("place", [FILE, "", "..", "deep"])
def test_comfyuis_folders_are_one_model(comfy: Path, both_formats: dict[str, Path], place: str) -> None:
    """By the transformer's file, by the folder around the folders, by ComfyUI's own, and with a folder in between."""
    if place == "deep":
        (comfy / "diffusion_models" / "wan").mkdir()
        place = shutil.move(comfy / FILE, comfy / "diffusion_models" / "wan" / "mine.safetensors")
    found = models.find(str(comfy / place))
    assert [file.name for file in found.checkpoint.vae] == ["wan_2.1_vae.safetensors"]
    assert [file.name for file in found.checkpoint.text_encoder] == ["umt5_xxl_fp16.safetensors"]
    assert same(found, models.find(str(both_formats["diffusers"])))


def test_parts_that_are_named_come_first(comfy: Path, both_formats: dict[str, Path], tmp_path: Path) -> None:
    original, whole = both_formats["original"], both_formats["diffusers"]
    alone = tmp_path / "alone" / "x.safetensors"
    alone.parent.mkdir()
    shutil.copy(original / DIT, alone)
    for text, vae in (
        (original / T5, original / VAE),
        (comfy / "text_encoders" / "umt5_xxl_fp16.safetensors", comfy / "vae" / "wan_2.1_vae.safetensors"),
        (whole / "text_encoder", whole / "vae"),
        (original, whole),
    ):
        assert same(models.find(str(alone), Given(text, vae)), models.find(str(whole)))
    other = comfy / "vae" / "qwen_image_vae.safetensors"
    for name in (str(whole), str(original), str(comfy / FILE)):
        found = models.find(name, Given(vae=other))
        assert found.checkpoint.vae == [other]
        assert found.checkpoint.vae_config["z_dim"] == 16


@pytest.mark.parametrize("kind", ["i2v-14b", "2.2-i2v", "5b", pytest.param("flf2v-14b", marks=pytest.mark.slow)])
def test_every_kind_of_model_may_be_split(kind: str, cache: Path, tmp_path: Path) -> None:
    whole, root = tmp_path / "original", tmp_path / "models"
    whole.mkdir()
    own = make_plain_pipeline(5, channels=48) if kind == "5b" else make_image_pipeline(kind)
    (save_original if kind == "5b" else save_image_original)(own, whole)
    for name in ("unet", "text_encoders", "vae", "clip_vision", "tokenizer"):
        (root / name).mkdir(parents=True)
    for home in (whole, *(whole / f"{noise}_noise_model" for noise in ("high", "low"))):
        if (home / DIT).is_file():
            shutil.copy(home / DIT, root / "unet" / f"wan2.2_{home.name}.safetensors")
    for file in whole.glob("*.pth"):
        place = {"models_t5": "text_encoders", "models_cl": "clip_vision"}.get(file.name[:9], "vae")
        save_file(torch.load(file, weights_only=True), root / place / f"wan_{file.stem}.safetensors")
    save_file(
        {name: torch.zeros(2) for name in ("conv1.weight", "conv2.weight")}, root / "vae" / "wan_other.safetensors"
    )
    shutil.copy(whole / "google" / "umt5-xxl" / "tokenizer.json", root / "tokenizer")
    split, expected = models.find(str(root)), models.find(str(whole))
    assert split.checkpoint.kind == expected.checkpoint.kind == kind
    assert split.checkpoint.parts == expected.checkpoint.parts
    assert same(split, expected)
    if split.checkpoint.image_encoder:
        found = [load.load_image_encoder(model.checkpoint, CPU) for model in (split, expected)]
        image = np.zeros((28, 28, 3), dtype=np.uint8)
        assert torch.equal(*(encoder.states([image]) for encoder in found))
        clip = root / "clip_vision" / f"wan_{PIECES['image-encoder'].files[0][:-4]}.safetensors"
        moved = shutil.move(clip, tmp_path / "clip_vision_h.safetensors")
        with pytest.raises(ModelError, match="its image encoder is neither") as caught:
            models.find(str(root))
        assert "fpsgen models pull image-encoder (about 4.8 GB)" in (caught.value.hint or "")
        assert models.find(str(root), Given(image_encoder=moved)).checkpoint.image_encoder == [moved]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Given(vae=Path("vae/none.safetensors")), "there is no VAE"),
        (Given(vae=Path("loras")), "loras holds no VAE"),
        (Given(vae=Path(FILE)), "should be the VAE, but is a transformer"),
        (Given(vae=Path("text_encoders/umt5_xxl_fp16.safetensors")), "should be the VAE, but is a text encoder"),
        (Given(text_encoder=Path("vae/wan_2.1_vae.safetensors")), "should be the text encoder, but is a VAE"),
        (Given(text_encoder=Path("text_encoders/t5xxl_fp16.safetensors")), "is a T5 encoder, not umT5"),
        (Given(text_encoder=Path("text_encoders/clip_l.safetensors")), "should be the text encoder"),
        (Given(vae=Path("vae/ae.safetensors")), "no encoder.conv_in.weight of 5 dimensions"),
    ],
)
def test_what_is_named_and_is_none_is_said(comfy: Path, given: Given, says: str) -> None:
    given = Given(*(path and comfy / path for path in (given.text_encoder, given.vae)))
    with pytest.raises(ModelError) as caught:
        models.find(str(comfy / FILE), given)
    assert says in str(caught.value)
    assert "takes the file of the" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_what_lacks_is_asked_for_by_name(comfy: Path, cache: Path) -> None:
    shutil.rmtree(cache)
    (comfy / "vae" / "wan_2.1_vae.safetensors").unlink()
    (comfy / "vae" / "ae.safetensors").unlink()
    (comfy / "vae" / "qwen_image_vae.safetensors").unlink()
    with pytest.raises(
        ModelError, match="its VAE and tokenizer are neither beside it nor in the hub's cache"
    ) as caught:
        models.find(str(comfy / FILE))
    hint = caught.value.hint or ""
    assert "fpsgen models pull vae (about 500 MB)" in hint
    assert "fpsgen models pull tokenizer (about 20 MB)" in hint
    assert "text-encoder" not in hint


@pytest.mark.parametrize("name", ["vae/wan_2.1_vae.safetensors", "text_encoders/umt5_xxl_fp16.safetensors"])
def test_a_part_that_is_cut_is_not_called_absent(comfy: Path, name: str) -> None:
    (comfy / "text_encoders" / "t5xxl_fp16.safetensors").unlink()
    (comfy / name).write_bytes((comfy / name).read_bytes()[:-100])
    with pytest.raises(ModelError, match=rf"{Path(name).name} is damaged: it ends after"):
        models.find(str(comfy / FILE))


def test_parts_of_others_are_no_reason_where_the_vae_lacks(comfy: Path, cache: Path, tmp_path: Path) -> None:
    """A T5 and the VAE of an image model lie there; the text encoder comes from the cache."""
    (tmp_path / "whole").mkdir()
    (comfy / "vae" / "qwen_image_vae.safetensors").unlink()
    (comfy / "vae" / "wan_2.1_vae.safetensors").unlink()
    torch.save(load_file(comfy / "text_encoders" / "umt5_xxl_fp16.safetensors"), tmp_path / "whole" / T5)
    (comfy / "text_encoders" / "umt5_xxl_fp16.safetensors").unlink()
    hub_cache.keep(cache, "Wan-AI/Wan2.1-T2V-14B", tmp_path / "whole")
    with pytest.raises(ModelError, match="its VAE is neither beside it"):
        models.find(str(comfy / FILE))


def test_two_transformers_are_listed(comfy: Path) -> None:
    shutil.copy(comfy / FILE, comfy / "diffusion_models" / "another.safetensors")
    save_file({"double_blocks.0.x": torch.zeros(1)}, comfy / "diffusion_models" / "flux.safetensors")  # no Wan
    with pytest.raises(ModelError, match=r"has 2 transformers: diffusion_models/another\.safetensors, ") as caught:
        models.find(str(comfy))
    assert str(comfy / "diffusion_models" / "another.safetensors") in (caught.value.hint or "")


PAIRS = [
    ("wan2.2_t2v_high_noise_14B_fp16.safetensors", "wan2.2_t2v_low_noise_14B_fp16.safetensors"),
    ("Wan2_2-T2V-A14B_HIGH_bf16.safetensors", "Wan2_2-T2V-A14B_LOW_bf16.safetensors"),
    ("Wan2.2-T2V-A14B-HighNoise.safetensors", "Wan2.2-T2V-A14B-LowNoise.safetensors"),
    ("high_noise/wan2.2.safetensors", "low_noise/wan2.2.safetensors"),
    ("flow_high_noise_model.safetensors", "flow_low_noise_model.safetensors"),
    ("smoothMixWan22_t2vHigh.safetensors", "smoothMixWan22_t2vLow.safetensors"),
]


@pytest.mark.parametrize(("high", "low"), PAIRS)
def test_two_experts_are_one_model(comfy: Path, high: str, low: str) -> None:
    """By either file, and by the folder."""
    place = comfy / "diffusion_models"
    for name in (high, low):
        (place / name).parent.mkdir(exist_ok=True)
    state = load_file(comfy / FILE)
    (comfy / FILE).unlink()
    save_file(state, place / high)
    save_file({name: value + 1 for name, value in state.items()}, place / low)
    for name in (place / high, place / low, comfy):
        found = models.find(str(name))
        assert found.checkpoint.kind == "2.2-14b"
        assert (found.checkpoint.transformer, found.checkpoint.transformer_2) == ([place / high], [place / low])
    (place / low).unlink()
    for name in (place / high, comfy):
        with pytest.raises(ModelError, match="is one of the two experts") as caught:
            models.find(str(name))
        assert f"there is no {Path(low).name}" in str(caught.value)
        assert "other expert's file" in (caught.value.hint or "")


def test_an_expert_in_the_current_folder_finds_the_other_one(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QuantStack's GGUF files lie so."""
    state, place = load_file(comfy / FILE), comfy / "diffusion_models"
    files = [place / f"{noise}Noise" / f"Wan2.2-T2V-A14B-{noise}Noise.safetensors" for noise in ("High", "Low")]
    for file in files:
        file.parent.mkdir()
        save_file(state, file)
    for file in files:
        monkeypatch.chdir(file.parent)
        found = models.find(file.name).checkpoint
        assert [found.transformer[0].resolve(), found.transformer_2[0].resolve()] == files


def test_two_experts_whose_names_are_written_in_two_ways(comfy: Path) -> None:
    """As Kijai/WanVideo_comfy_fp8_scaled has them."""
    place, state = comfy / "diffusion_models", load_file(comfy / FILE)
    high, low = (place / f"Wan2_2-T2V-A14B{noise}_fp8_e4m3fn_scaled_KJ.safetensors" for noise in ("_HIGH", "-LOW"))
    for file in (high, low):
        save_file(state, file)
    for name in (high, low):
        found = models.find(str(name)).checkpoint
        assert (found.transformer, found.transformer_2) == ([high], [low])


def test_a_newer_expert_has_a_date_at_its_end(comfy: Path) -> None:
    """As lightx2v/Wan2.2-Distill-Models has them; of several dates none is guessed."""
    place, state = comfy / "diffusion_models", load_file(comfy / FILE)
    names = ("high_noise_lightx2v_4step_1030", "low_noise_lightx2v_4step")
    high, low = (place / f"wan2.2_i2v_A14b_{name}.safetensors" for name in names)
    for file in (high, low):
        save_file(state, file)
    for name in (high, low):
        found = models.find(str(name)).checkpoint
        assert (found.transformer, found.transformer_2) == ([high], [low])
    save_file(state, place / "wan2.2_i2v_A14b_high_noise_lightx2v_4step_260412.safetensors")
    with pytest.raises(ModelError, match=r"there is no wan2\.2_i2v_A14b_high_noise_lightx2v_4step\.safetensors"):
        models.find(str(low))


def test_experts_of_two_models_are_refused(comfy: Path) -> None:
    high, low = (comfy / "diffusion_models" / name for name in PAIRS[0])
    state = load_file(comfy / FILE)
    save_file(state, high)
    save_file({name: value for name, value in state.items() if not name.startswith("blocks.1.")}, low)
    with pytest.raises(ModelError, match="experts are of two models"):
        models.find(str(high))


def test_a_folder_of_single_files_without_published_names(comfy: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (FILE, "vae/wan_2.1_vae.safetensors", "text_encoders/umt5_xxl_fp16.safetensors"):
        shutil.copy(comfy / file, flat)
    found = models.find(str(flat))
    assert found.checkpoint.vae == [flat / "wan_2.1_vae.safetensors"]
    assert found.name == str(flat)
