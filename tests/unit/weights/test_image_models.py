"""Models that begin with an image, in both formats: what is read, what lacks, and the image encoder against
transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from fpsgen.errors import ModelError
from fpsgen.wan.config import SHAPES
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import configs, keys, layout, load, models
from fpsgen.weights.known import Given
from tests.tools import golden
from tests.tools.image_pipeline import CLIP_FILE, POSITIONS, SIDE, WIDTH, make_image_pipeline, save_image_original

CPU = torch.device("cpu")
FORMATS = ("diffusers", "original")
Made = tuple[WanImageToVideoPipeline, dict[str, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    found: dict[str, Made] = {}
    for kind in ("i2v-14b", "flf2v-14b", "2.2-i2v"):
        pipeline, folders = make_image_pipeline(kind), {form: tmp_path_factory.mktemp(form) for form in FORMATS}
        pipeline.save_pretrained(folders["diffusers"])
        save_image_original(pipeline, folders["original"])
        found[kind] = pipeline, folders
    return found


@pytest.fixture
def folder(made: dict[str, Made], tmp_path: Path) -> dict[str, Path]:
    """Copies of an I2V model, to be spoilt."""
    return {form: Path(shutil.copytree(place, tmp_path / form)) for form, place in made["i2v-14b"][1].items()}


@pytest.mark.parametrize("kind", ["i2v-14b", "flf2v-14b", "2.2-i2v"])
def test_both_formats_are_one_model(made: dict[str, Made], kind: str) -> None:
    checkpoints = [models.find(str(place)).checkpoint for place in made[kind][1].values()]
    for checkpoint in checkpoints:
        load.check(checkpoint)
        assert checkpoint.kind == kind
    ours, theirs = checkpoints
    assert (ours.config, ours.image_config, ours.parts) == (theirs.config, theirs.image_config, theirs.parts)
    for part in ours.parts:
        states = [dict(load.parameters(each, part)) for each in checkpoints]
        names = {name for name, _ in load.EMPTY[part](ours).named_parameters()}
        assert names <= states[0].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in names)
        assert load.identity(ours, part) == load.identity(theirs, part)


@pytest.mark.parametrize("form", FORMATS)
def test_states_are_transformers_own(made: dict[str, Made], form: str) -> None:
    """Of images as Wan2.1's own code brings them to CLIP's square: bicubic, without a crop."""
    pipeline, folders = made["i2v-14b"]
    images = [np.random.default_rng(n).integers(0, 256, (48, 64, 3), dtype=np.uint8) for n in range(2)]
    got = load.load_image_encoder(models.find(str(folders[form])).checkpoint, CPU).states(images)
    pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]).float() / 127.5 - 1
    pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False) / 2 + 0.5
    mean, std = (
        torch.tensor(getattr(pipeline.image_processor, name)).view(1, 3, 1, 1) for name in ("image_mean", "image_std")
    )
    with torch.inference_mode():
        expected = pipeline.image_encoder((pixels - mean) / std, output_hidden_states=True).hidden_states[-2]
    assert got.shape == (1, 2 * POSITIONS, WIDTH)
    torch.testing.assert_close(got[0], expected.flatten(0, 1), rtol=1e-5, atol=1e-5)  # products in another order


def test_comfyui_s_image_encoder_is_read(folder: dict[str, Path]) -> None:
    """transformers' names with their old prefix, and the projection and numbers that other classes keep."""
    original = folder["original"]
    state = load_file(folder["diffusers"] / "image_encoder" / "model.safetensors")
    old = {f"vision_model.{name}": value for name, value in state.items()}
    old |= {"visual_projection.weight": torch.zeros(8, WIDTH), "vision_model.embeddings.position_ids": torch.arange(5)}
    before = load.identity(models.find(str(original)).checkpoint, "image_encoder")
    (original / CLIP_FILE).unlink()
    save_file(old, original / layout.CLIP_VISION)
    found = models.find(str(original)).checkpoint
    load.check(found)
    assert load.identity(found, "image_encoder") == before


def test_names_and_shapes_of_the_published_file() -> None:
    """`golden` has the original's; transformers' ViT-H takes them all."""
    found = [each for key, shape in golden.image_encoder().items() for each in keys.of_image_encoder(key, shape)]
    headers = {name: layout.Header(shape, "F16") for name, shape in found}
    config = layout.image_config_of(headers)
    network = load.vision_transformer
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in network(config).named_parameters()}
    assert dict(found) == wanted
    assert config["hidden_size"] == SHAPES["i2v-14b"].image_dim
    assert 2 * layout.image_positions(config) == SHAPES["flf2v-14b"].image_positions


@pytest.mark.parametrize(("kind", "images"), [("i2v-14b", 1), ("flf2v-14b", 2), ("2.2-i2v", 0)])
def test_names_and_shapes_of_the_published_transformer(kind: str, images: int) -> None:
    """`golden` has the original's; through diffusers' converter they are its class's, through our table they are ours,
    and they say which model it is."""
    own = replace(SHAPES[kind], num_layers=2)
    written = golden.transformer(own.dim, own.ffn_dim, own.num_layers, inputs=36, images=images)
    assert layout.config_of({name: layout.Header(shape, "F32") for name, shape in written.items()}) == own
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in WanTransformer(own).named_parameters()}
        told = configs.to_diffusers(own)
        theirs = WanTransformer3DModel.from_config(told).state_dict()
        converted = convert_wan_transformer_to_diffusers({name: torch.empty(shape) for name, shape in written.items()})
    assert written == ours
    if images > 1:  # the one name that only its `scripts/convert_wan_to_diffusers.py` knows
        converted["condition_embedder.image_embedder.pos_embed"] = converted.pop("img_emb.emb_pos")
    assert {name: value.shape for name, value in converted.items()} == {
        name: value.shape for name, value in theirs.items()
    }
    assert {keys.TRANSFORMER.to_diffusers(name) for name in written} == theirs.keys()
    assert {keys.TRANSFORMER.to_original(name) for name in theirs} == written.keys()
    assert configs.from_diffusers(json.loads(json.dumps(told))) == own


@pytest.mark.parametrize("form", FORMATS)
def test_without_its_image_encoder_a_model_says_so(folder: dict[str, Path], form: str) -> None:
    place = folder[form]
    if form == "original":
        (place / CLIP_FILE).unlink()
    else:
        shutil.rmtree(place / "image_encoder")
    with pytest.raises(ModelError, match=r"lacks .*(image_encoder|models_clip)"):
        models.find(str(place))


def test_an_image_encoder_of_another_model_is_refused(folder: dict[str, Path]) -> None:
    file = folder["diffusers"] / "image_encoder" / "config.json"
    config = json.loads(file.read_text())
    for key, value, says in (
        ("hidden_size", 320, "reads images of width 160, its image encoder writes 320"),
        ("hidden_act", "quick_gelu", "hidden_act = 'quick_gelu'; Wan's has 'gelu'"),
        ("num_hidden_layers", 10**4, "num_layers = 10000"),
        ("num_attention_heads", 7, "check num_attention_heads"),
        ("patch_size", 0, "patch_size = 0"),
        ("model_type", "siglip_vision_model", "a siglip_vision_model"),
        ("patch_size", 7, "of another shape"),
    ):
        file.write_text(json.dumps(config | {key: value}))
        with pytest.raises(ModelError, match=says):
            load.check(models.find(str(folder["diffusers"])).checkpoint)


def test_an_image_encoder_for_a_model_that_reads_none_is_refused(
    folder: dict[str, Path], both_formats: dict[str, Path]
) -> None:
    with pytest.raises(ModelError, match="reads no image encoder's states"):
        models.find(str(both_formats["original"]), Given(image_encoder=folder["diffusers"]))


def test_half_of_wan22_image_to_video_is_refused(made: dict[str, Made], tmp_path: Path) -> None:
    """Under any name: it has no layers for an image encoder, as Wan2.1's has."""
    file = tmp_path / "mine.safetensors"
    shutil.copy(made["2.2-i2v"][1]["original"] / "low_noise_model" / "diffusion_pytorch_model.safetensors", file)
    with pytest.raises(ModelError, match=r"one of the two experts of Wan2\.2"):
        models.find(str(file))
