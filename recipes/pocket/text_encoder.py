"""The pocket text encoder: a UMT5 encoder of 0.2 million weights, trained together with the DiT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from recipes.pocket.tokenizer import TEXT_LENGTH

TEXT_DIM = 96


def build(tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_DIM,
        d_kv=24,
        num_heads=4,
        d_ff=192,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
    )
    encoder = UMT5EncoderModel(config)
    torch.nn.init.normal_(encoder.shared.weight, std=1.0)  # T5 feeds embeddings in unscaled
    return encoder


def encode(encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> Tensor:
    """Text [batch, TEXT_LENGTH, TEXT_DIM].

    Rows beyond a prompt's length are zero, as in Wan2.1: its cross-attention reads them, unmasked, so
    they have to look in training as they will in use.
    """
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    mask = tokens["attention_mask"]
    return encoder(tokens["input_ids"], mask).last_hidden_state * mask[..., None]
