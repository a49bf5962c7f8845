"""Prompt to text embedding: the UMT5 encoder, with the original's cleaning and padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fpsgen.errors import ModelError
from fpsgen.wan.config import FETCH_AGAIN
from fpsgen.wan.tokenizer import Tokenizer, clean, words_at
from fpsgen.wan.umt5 import UMT5Encoder


@dataclass(frozen=True)
class EncodedPrompt:
    """text: [1, length, text_dim], zeros beyond the prompt's own tokens.

    unknown: what the tokenizer has no token for, read as one and the same. cut: whether the end was cut off.
    """

    text: Tensor
    unknown: tuple[str, ...]
    cut: bool


class TextEncoder:
    """Tokenizer and encoder of a checkpoint (`weights.load.load_text_encoder`)."""

    def __init__(self, tokenizer: Tokenizer, encoder: UMT5Encoder):
        self.tokenizer, self.module = tokenizer, encoder

    @torch.inference_mode()
    def encode(self, prompt: str) -> EncodedPrompt:
        """Embed one prompt at its true length, then pad with zeros as the original does."""
        text = clean(prompt)
        tokens = self.tokenizer.encode(text)
        ids = torch.tensor([tokens.ids], device=self.module.shared.weight.device)
        hidden = self.module(ids)
        # Known from upstream (transformers pull request 43880): embeddings loaded as zeros, a video of nothing.
        # What is left of it is rounding, which differs from word to word.
        spread = (hidden - hidden[:, :1]).abs().amax()
        if not hidden.isfinite().all() or (len(tokens.ids) > 1 and spread <= 1e-3 * hidden.abs().amax()):
            told = "the same for every word" if hidden.isfinite().all() else "values that are not finite"
            raise ModelError(f"the text encoder gives {told}: its weights are damaged", FETCH_AGAIN)
        padded = torch.zeros(1, self.tokenizer.length, hidden.shape[2], dtype=hidden.dtype, device=hidden.device)
        padded[:, : hidden.shape[1]] = hidden
        return EncodedPrompt(padded, words_at(text, tokens.unknown), tokens.cut)
