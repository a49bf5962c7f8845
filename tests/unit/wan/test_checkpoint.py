"""Reading weights: names, shards, and what is said when they do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from fpsgen.errors import ModelError
from fpsgen.wan.checkpoint import from_diffusers, load_transformer
from fpsgen.wan.config import WAN_1_3B, WAN_14B, WanConfig
from fpsgen.wan.transformer import WanTransformer

CPU = torch.device("cpu")


@pytest.fixture
def folder(wan_folder: Path, tmp_path: Path) -> Path:
    """A copy of the transformer that a test may damage."""
    return Path(shutil.copytree(wan_folder / "transformer", tmp_path / "transformer"))


def weights(folder: Path) -> Path:
    return folder / "diffusion_pytorch_model.safetensors"


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    state = load_file(weights(folder))
    change(state)
    save_file(state, weights(folder))


def load(folder: Path) -> WanTransformer:
    return load_transformer(folder, CPU, torch.float32)


def test_key_map_inverts_diffusers_own_conversion() -> None:
    """Rename our parameters with diffusers' converter, then back with ours: every name must return."""
    config = WanConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=12, text_dim=24, freq_dim=32)
    with torch.device("meta"):
        model = WanTransformer(config)
    names = set(model.state_dict())
    # One value per name, so that the converter's renaming can be followed.
    tagged = {name: torch.tensor(index) for index, name in enumerate(sorted(names))}
    renamed = convert_wan_transformer_to_diffusers(dict(tagged))
    for key, value in renamed.items():
        assert from_diffusers(key) == sorted(names)[int(value)], key
    assert {from_diffusers(key) for key in renamed} == names


@pytest.mark.parametrize(("config", "billions"), [(WAN_1_3B, 1.419), (WAN_14B, 14.288)])
def test_parameter_counts(config: WanConfig, billions: float) -> None:
    with torch.device("meta"):
        model = WanTransformer(config)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_shards_are_read_by_their_index(wan_pipeline: WanPipeline, wan_folder: Path, tmp_path: Path) -> None:
    wan_pipeline.transformer.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole, sharded = load(wan_folder / "transformer").state_dict(), load(tmp_path).state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_a_missing_shard_is_named(wan_pipeline: WanPipeline, tmp_path: Path) -> None:
    wan_pipeline.transformer.save_pretrained(tmp_path, max_shard_size="200KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        load(tmp_path)


def test_misfits_are_counted_and_named_in_one_error(folder: Path) -> None:
    def change(state: dict) -> None:
        del state["proj_out.weight"], state["blocks.0.attn1.to_q.bias"]
        state["blocks.7.surprise"] = torch.zeros(2)
        state["patch_embedding.bias"] = torch.zeros(3)

    edit(folder, change)
    with pytest.raises(ModelError) as caught:
        load(folder)
    text = str(caught.value)
    assert "2 missing: " in text
    assert "head.head.weight" in text
    assert "1 unexpected: blocks.7.surprise" in text
    assert "1 of another shape: patch_embedding.bias [3], not [64]" in text


def test_damaged_and_absent_files_are_explained(folder: Path) -> None:
    content = weights(folder).read_bytes()
    weights(folder).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="damaged"):
        load(folder)
    weights(folder).unlink()
    with pytest.raises(ModelError, match="holds no"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("image_dim", 1280, "image-to-video"),
        ("qk_norm", None, "qk_norm"),
        ("patch_size", [1, 4, 4], "patch_size"),
        ("_class_name", "FluxTransformer2DModel", "FluxTransformer2DModel"),
    ],
)
def test_other_models_are_refused(folder: Path, key: str, value: object, says: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match=says):
        load(folder)
