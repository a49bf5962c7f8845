"""A Wan2.1 folder small enough for a test: every component real, every weight random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from fpsgen.wan import keys
from tests.tools import original_t5
from tests.tools.tokenizer import WORDS, make_tokenizer

TEXT_DIM = 24


def make_wan_pipeline(seed: int = 0) -> WanPipeline:
    """diffusers' own pipeline, the oracle of every parity test."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=TEXT_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
                feed_forward_proj="gated-gelu", dropout_rate=0.0,
            )
        ),
        transformer=WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=32, text_dim=TEXT_DIM, freq_dim=32, ffn_dim=96, num_layers=2
        ),
        vae=AutoencoderKLWan(
            base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
    )  # fmt: skip
    # Freshly made biases, norms and modulation are zeros and ones: give every parameter something to say.
    for component in (pipeline.transformer, pipeline.text_encoder):
        for parameter in component.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return pipeline


@pytest.fixture(scope="session")
def wan_pipeline() -> WanPipeline:
    return make_wan_pipeline()


@pytest.fixture(scope="session")
def wan_folder(wan_pipeline: WanPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a Diffusers folder. Tests must not change it."""
    folder = tmp_path_factory.mktemp("wan")
    wan_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def both_formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small checkpoint as a Diffusers folder, and by hand in the original's files and names.

    Of Wan2.1's own structure, which is all that the original format can say: heads 128 wide, the VAE's blocks.
    """
    torch.manual_seed(1)
    vae = AutoencoderKLWan(base_dim=4)
    transformer = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, text_dim=TEXT_DIM, freq_dim=32, ffn_dim=96, num_layers=2
    )
    pipeline = make_wan_pipeline(seed=2)
    pipeline.register_modules(vae=vae, transformer=transformer)
    for parameter in transformer.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    theirs, ours = tmp_path_factory.mktemp("diffusers"), tmp_path_factory.mktemp("original")
    pipeline.save_pretrained(theirs)

    state = {keys.TRANSFORMER.to_original(name): value for name, value in transformer.state_dict().items()}
    save_file(state, ours / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    text = pipeline.text_encoder.state_dict()
    named = {original: text[name] for original, name in original_t5.names(layers=2).items()}
    torch.save(named, ours / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save({keys.VAE.to_original(name): value for name, value in vae.state_dict().items()}, ours / "Wan2.1_VAE.pth")
    pipeline.tokenizer.save_pretrained(ours / "google" / "umt5-xxl")
    config = {"model_type": "t2v", "dim": 128, "ffn_dim": 96, "num_heads": 1, "num_layers": 2, "in_dim": 16}
    (ours / "config.json").write_text(json.dumps(config))
    return {"diffusers": theirs, "original": ours}


@pytest.fixture(scope="session")
def pocket_folder(wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with a pocket model's card: one size, few words."""
    folder = tmp_path_factory.mktemp("pocket")
    for part in wan_folder.iterdir():
        (folder / part.name).symlink_to(part)
    card = {
        "version": 0, "size": [96, 64], "frames": 9, "fps": 8, "tile": [2, 2, 2], "steps": 2, "guidance": 3.0,
        "shift": 3.0, "negative": "", "knows": ", ".join(WORDS[:4]),
    }  # fmt: skip
    (folder / "pocket.json").write_text(json.dumps(card))
    return folder
