"""Parameter names against converters that are not ours: diffusers' for transformer and VAE."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from transformers import UMT5Config, UMT5EncoderModel

from fpsgen.wan.config import WAN_1_3B, WAN_14B, WanConfig
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import keys
from fpsgen.weights.layout import PARTS
from tests.tools import golden as shapes
from tests.tools import original_t5
from tests.tools.wan_pipeline import VAE_2_2

TINY = WanConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=12, text_dim=24, freq_dim=32)


def tagged(names: set[str]) -> dict[str, torch.Tensor]:
    """One value per name, so that a converter's renaming can be followed."""
    return {name: torch.tensor(index) for index, name in enumerate(sorted(names))}


def followed(names: set[str], converted: dict[str, torch.Tensor]) -> dict[str, str]:
    """Original name -> what the converter called it."""
    order = sorted(names)
    return {order[int(value)]: key for key, value in converted.items()}


@pytest.mark.parametrize("config", [TINY, WAN_1_3B, WAN_14B], ids=["tiny", "1.3b", "14b"])
def test_transformer_names_are_diffusers_own_both_ways(config: WanConfig) -> None:
    with torch.device("meta"):
        names = set(WanTransformer(config).state_dict())
    pairs = followed(names, convert_wan_transformer_to_diffusers(tagged(names)))
    assert len(pairs) == len(names)
    for original, diffusers in pairs.items():
        assert keys.TRANSFORMER.to_diffusers(original) == diffusers
        assert keys.TRANSFORMER.to_original(diffusers) == original
        for form in (original, diffusers, f"model.diffusion_model.{original}"):
            assert PARTS["transformer"].rename(form) == original


@pytest.mark.parametrize("base_dim", [4, 96])
def test_vae_names_are_diffusers_own_both_ways(base_dim: int) -> None:
    with torch.device("meta"):
        names = set(AutoencoderKLWan(base_dim=base_dim).state_dict())
    originals = {keys.VAE.to_original(name) for name in names}
    assert len(originals) == len(names)
    assert not originals & names
    converted = followed(originals, convert_wan_vae_to_diffusers(tagged(originals)))
    assert set(converted.values()) == names
    for original, diffusers in converted.items():
        assert keys.VAE.to_diffusers(original) == diffusers
        assert keys.VAE.to_original(diffusers) == original
        assert PARTS["vae"].rename(original) == PARTS["vae"].rename(diffusers) == diffusers


def test_vae_2_2_names_are_diffusers_own_both_ways() -> None:
    """diffusers' converter of this VAE is in no package; the original's names and shapes are written down by hand."""
    with torch.device("meta"):
        made = AutoencoderKLWan(**{**VAE_2_2, "base_dim": 4, "decoder_base_dim": 6})
    theirs = {name: tuple(value.shape) for name, value in made.named_parameters()}
    originals = shapes.vae_2_2(4, 6)
    assert {keys.VAE_2_2.to_diffusers(name): shape for name, shape in originals.items()} == theirs
    assert all(keys.VAE_2_2.to_original(keys.VAE_2_2.to_diffusers(name)) == name for name in originals)


def test_text_encoder_names_are_the_golden_ones_both_ways() -> None:
    layers = 24
    with torch.device("meta"):
        names = set(
            UMT5EncoderModel(UMT5Config(num_layers=layers, d_model=8, d_kv=2, d_ff=4, num_heads=2)).state_dict()
        )
    golden = original_t5.names(layers)
    assert golden.keys() == shapes.text_encoder().keys()
    assert set(golden.values()) == names - {"encoder.embed_tokens.weight"}
    for original, transformers in golden.items():
        assert keys.TEXT_ENCODER.to_diffusers(original) == transformers
        assert keys.TEXT_ENCODER.to_original(transformers) == original
        assert PARTS["text_encoder"].rename(original) == PARTS["text_encoder"].rename(transformers) == transformers
    assert PARTS["text_encoder"].rename("encoder.embed_tokens.weight") == "shared.weight"


@pytest.mark.parametrize(
    "key", ["blocks.x.self_attn.q.weight", "xblocks.0.modulation", "head.modulation.extra", "conv1x.bias"]
)
def test_other_names_are_left_alone(key: str) -> None:
    for table in (keys.TRANSFORMER, keys.VAE, keys.VAE_2_2, keys.TEXT_ENCODER):
        assert table.to_diffusers(key) == table.to_original(key) == key
