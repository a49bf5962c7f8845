"""Small Wan2.1 pipelines of diffusers with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

from fpsgen.weights import configs, keys
from tests.tools import original_t5
from tests.tools.tokenizer import make_tokenizer

TEXT_DIM = 24
# The settings of Wan2.2's VAE, by diffusers' `scripts/convert_wan_to_diffusers.py`.
VAE_2_2 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_temporal": 4, "scale_factor_spatial": 16,
    "latents_mean": configs.VAE_2_2_CONFIG["latents_mean"], "latents_std": configs.VAE_2_2_CONFIG["latents_std"],
}  # fmt: skip


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


def make_plain_pipeline(seed: int, boundary_ratio: float | None = None, channels: int = 16) -> WanPipeline:
    """One of Wan's own structure, which is all that the original format can say: heads 128 wide, the VAE's blocks.
    boundary_ratio: of two experts; None for one transformer; channels: of latents, 48 as in Wan2.2's 5B."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(**({**VAE_2_2, "base_dim": 4, "decoder_base_dim": 4} if channels == 48 else {"base_dim": 4}))
    pipeline = make_wan_pipeline(seed + 1)
    for name in ("transformer", "transformer_2") if boundary_ratio else ("transformer",):
        transformer = WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=128, text_dim=TEXT_DIM, freq_dim=32, ffn_dim=96, num_layers=2,
            in_channels=channels, out_channels=channels,
        )  # fmt: skip
        for parameter in transformer.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        pipeline.register_modules(**{name: transformer})
    pipeline.register_modules(vae=vae)
    pipeline.register_to_config(boundary_ratio=boundary_ratio, expand_timesteps=channels == 48)
    return pipeline


def save_original(pipeline: WanPipeline, folder: Path) -> None:
    """A plain pipeline by hand in the original's files and names."""
    two, of_48 = pipeline.transformer_2 is not None, pipeline.config.expand_timesteps
    experts = {"high_noise_model": pipeline.transformer, "low_noise_model": pipeline.transformer_2}
    for name, transformer in (experts if two else {".": pipeline.transformer}).items():
        (folder / name).mkdir(exist_ok=True)
        state = {keys.TRANSFORMER.to_original(key): value for key, value in transformer.state_dict().items()}
        save_file(state, folder / name / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        config = {"model_type": "t2v", "dim": 128, "ffn_dim": 96, "num_heads": 1, "num_layers": 2, "in_dim": 16}
        config |= {"model_type": "ti2v", "in_dim": 48} if of_48 else {}
        (folder / name / "config.json").write_text(json.dumps(config))
    text = pipeline.text_encoder.state_dict()
    named = {original: text[name] for original, name in original_t5.names(layers=2).items()}
    torch.save(named, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    names, file = (keys.VAE_2_2, "Wan2.2_VAE.pth") if of_48 else (keys.VAE, "Wan2.1_VAE.pth")
    torch.save({names.to_original(name): value for name, value in pipeline.vae.state_dict().items()}, folder / file)
    pipeline.tokenizer.save_pretrained(folder / "google" / "umt5-xxl")
