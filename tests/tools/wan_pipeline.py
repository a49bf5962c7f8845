"""Small Wan2.1 pipelines of diffusers with random weights."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from tests.tools.tokenizer import make_tokenizer

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
