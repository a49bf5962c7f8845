"""A Wan2.1 folder small enough for a test: every component real, every weight random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ["a", "cat", "dog", "surfing", "sleeping", "on", "the", "sea", "red", "blurry"]
TEXT_DIM = 24


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: index + 3 for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=10**30
    )


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
