"""Split files of true names, shapes and sizes, as ComfyUI has them, without their values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from fpsgen.weights import keys
from tests.tools import golden
from tests.tools.cli import models
from tests.tools.fake_checkpoint import write_safetensors
from tests.tools.tokenizer import make_tokenizer

WAN_14B: dict[str, Any] = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
I2V = {**WAN_14B, "in_channels": 36, "out_channels": 16, "image_dim": 1280, "added_kv_proj_dim": 5120}
# By the published files' names: diffusers' configuration, the kind, billions of parameters, and which experts.
FILES = [
    ("wan2.1_t2v_14B_bf16.safetensors", WAN_14B, "14b", 14.288, ("",)),
    ("wan2.1_i2v_480p_14B_bf16.safetensors", I2V, "i2v-14b", 16.396, ("",)),
    ("wan2.1_flf2v_720p_14B_bf16.safetensors", {**I2V, "pos_embed_seq_len": 514}, "flf2v-14b", 16.397, ("",)),
    ("wan2.2_t2v_{}_noise_14B_bf16.safetensors", WAN_14B, "2.2-14b", 14.288, ("high", "low")),
    (
        "wan2.2_i2v_{}_noise_14B_bf16.safetensors", {**WAN_14B, "in_channels": 36, "out_channels": 16}, "2.2-i2v",
        14.289, ("high", "low"),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All parts but transformers."""
    root = tmp_path_factory.mktemp("ComfyUI")
    for place, name, shapes, dtype in (
        ("text_encoders", "umt5_xxl_bf16", golden.text_encoder(), torch.bfloat16),
        ("vae", "wan_2.1_vae", golden.vae(), torch.float32),
        ("clip_vision", "clip_vision_h", golden.image_encoder(), torch.bfloat16),
    ):
        (root / place).mkdir()
        write_safetensors(root / place / f"{name}.safetensors", shapes, dtype, meta=True)
    make_tokenizer().save_pretrained(root / "tokenizer")
    return root


_QUICK = ("i2v-14b", "2.2-i2v")  # of the others, what is read is the same


@pytest.mark.parametrize(
    ("name", "config", "kind", "billions", "experts"),
    [pytest.param(*row, id=row[2], marks=[] if row[2] in _QUICK else pytest.mark.slow) for row in FILES],
)
def test_split_files_of_true_size_are_whole(
    parts: Path, tmp_path: Path, name: str, config: dict, kind: str, billions: float, experts: tuple[str, ...]
) -> None:
    for part in parts.iterdir():
        (tmp_path / part.name).symlink_to(part)
    with torch.device("meta"):
        module = WanTransformer3DModel(**config)
    shapes = {keys.TRANSFORMER.to_original(key): tuple(own.shape) for key, own in module.named_parameters()}
    (tmp_path / "diffusion_models").mkdir()
    for noise in experts:
        write_safetensors(tmp_path / "diffusion_models" / name.format(noise), shapes, torch.bfloat16, meta=True)
    result = models("check", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["kind"] == kind
    assert told["parameters"] / 1e9 == pytest.approx(billions, abs=2e-3)
    assert told["dtypes"]["transformer"] == ["BF16"]
    assert ("image_encoder" in told["files"]) == ("image_dim" in config)
    sizes = ((2 * len(experts), shapes), (2, golden.text_encoder()), (4, golden.vae()))
    least = sum(size * sum(map(math.prod, own.values())) for size, own in sizes)
    assert least < told["bytes"] < least + 1.3e9  # headers, and CLIP
