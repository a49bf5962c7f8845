"""Folders that are no text-to-video model of Wan2.1, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fpsgen.errors import ModelError
from fpsgen.weights.layout import recognise
from tests.tools.wan_pipeline import VAE_2_2


def test_an_index_reads_no_files_elsewhere(folder: Path) -> None:
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    for name in ("/etc/passwd", "../vae/diffusion_pytorch_model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"proj_out.weight": name}}))
        with pytest.raises(ModelError, match="are not in its folder"):
            recognise(folder)


@pytest.mark.parametrize(
    ("file", "key", "value", "says"),
    [
        ("model_index.json", "_class_name", "WanVACEPipeline", "WanVACEPipeline"),
        ("model_index.json", "transformer_2", ["diffusers", "WanTransformer3DModel"], "lacks transformer_2"),
        ("model_index.json", "boundary_ratio", 0.875, "lacks transformer_2"),
        ("vae/config.json", "patch_size", 2, "patch_size = 2; Wan2.1's has None"),
        ("vae/config.json", "is_residual", True, "in_channels = 3; Wan2.2's has 12"),
        ("vae/config.json", "latents_std", [0.0] * 16, "not above 0"),
        ("vae/config.json", "latents_mean", [float("nan")] * 16, "not 16 numbers"),
        ("vae/config.json", "num_res_blocks", 10**8, "num_res_blocks"),
        ("text_encoder/config.json", "layer_norm_epsilon", "1e-6", "layer_norm_epsilon"),
        ("text_encoder/config.json", "layer_norm_epsilon", -5.0, "layer_norm_epsilon"),
    ],
)
def test_other_pipelines_are_refused(folder: Path, file: str, key: str, value: object, says: str) -> None:
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match=says):
        recognise(folder)


def test_a_vae_of_wan22_does_not_fit_wan21(folder: Path) -> None:
    """Nor another way round; a transformer of 48 channels has a timestep per token and wants that VAE."""
    theirs = {**VAE_2_2, "base_dim": 4, "decoder_base_dim": 4}
    (folder / "vae/config.json").write_text(json.dumps(theirs))
    with pytest.raises(ModelError, match="16 latent channels, its VAE on 48"):
        recognise(folder)
    (folder / "vae/config.json").write_text(json.dumps(theirs | {"latents_std": [1.0] * 16}))
    with pytest.raises(ModelError, match="not 48 numbers"):
        recognise(folder)


def test_layers_without_end_are_refused_at_once(folder: Path) -> None:
    for part in ("transformer", "text_encoder"):
        file = folder / part / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"num_layers": 1_000_000}))
        with pytest.raises(ModelError, match="num_layers = 1000000; its weights have 2"):
            recognise(folder)
        file.write_text(json.dumps(config))


def test_parts_of_different_models_are_refused(folder: Path) -> None:
    """Each whole for itself, as are those of Wan2.2's 5B with its 48 latent channels."""
    for part, key, value, says in (
        ("vae", "z_dim", 48, "16 latent channels, its VAE on 48"),
        ("transformer", "text_dim", 40, "text of width 40, its text encoder writes 24"),
        ("transformer", "in_channels", 52, "takes 52 channels, not 16 or 36"),
    ):
        file = folder / part / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {key: value}))
        with pytest.raises(ModelError, match=says):
            recognise(folder)
        file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("image_dim", 1280, "added_kv_proj_dim = None; with its image_dim Wan has 64"),
        ("qk_norm", None, "qk_norm"),
        ("patch_size", [1, 4, 4], "patch_size"),
        ("_class_name", "FluxTransformer2DModel", "FluxTransformer2DModel"),
        ("freq_dim", 33, "is odd"),
        ("attention_head_dim", 1, "which is impossible"),
    ],
)
def test_other_models_are_refused(folder: Path, key: str, value: object, says: str) -> None:
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ModelError, match=says):
        recognise(folder)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model_type", "i2v", "its weights are of another kind"),
        ("model_type", "s2v", "s2v model"),
        ("dim", 5120, "dim = 5120"),
        ("num_heads", 7, "num_heads = 7"),
    ],
)
def test_original_configs_that_disagree_are_refused(original: Path, key: str, value: object, says: str) -> None:
    file = original / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ModelError, match=says):
        recognise(original)


@pytest.mark.parametrize(
    "lost", ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json"]
)
def test_what_an_original_folder_lacks_is_named(original: Path, lost: str) -> None:
    (original / lost).unlink()
    with pytest.raises(ModelError, match=Path(lost).name):
        recognise(original)
