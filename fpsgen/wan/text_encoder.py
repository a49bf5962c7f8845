"""Prompt to text embedding: transformers' UMT5 encoder, with the original's cleaning and padding."""

from __future__ import annotations

import html
import re
import string
from dataclasses import dataclass

import ftfy
import torch
from torch import Tensor

from fpsgen.errors import ModelError
from fpsgen.wan.checkpoint import FETCH_AGAIN
from fpsgen.wan.layout import Checkpoint
from fpsgen.wan.load import load_text_encoder, load_tokenizer

TEXT_LENGTH = 512  # tokens that Wan2.1 attends to, padding included


@dataclass(frozen=True)
class EncodedPrompt:
    """text: [1, length, text_dim], zeros beyond the prompt's own tokens.

    unknown: words outside the tokenizer's vocabulary, left out. cut: whether the end was cut off.
    """

    text: Tensor
    unknown: tuple[str, ...]
    cut: bool


def clean(prompt: str) -> str:
    """The original's "whitespace" cleaning: mend mojibake, undo HTML entities twice, collapse whitespace."""
    mended = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", mended).strip()


def _pieces(text: str, places: list[tuple[int, int]]) -> tuple[str, ...]:
    """What stands at `places` in the text, neighbours together, each once; punctuation is nobody's loss."""
    joined: list[tuple[int, int]] = []
    for start, end in places:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    pieces = dict.fromkeys(text[start:end].strip(string.punctuation) for start, end in joined)
    return tuple(piece for piece in pieces if piece)


class TextEncoder:
    """Tokenizer and encoder of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype):
        self._tokenizer = load_tokenizer(checkpoint)
        self._encoder = load_text_encoder(checkpoint, device, dtype)
        self.length = min(TEXT_LENGTH, self._tokenizer.model_max_length)

    @torch.inference_mode()
    def encode(self, prompt: str, drop_unknown: bool = False) -> EncodedPrompt:
        """Embed one prompt at its true length, then pad with zeros as the original does.

        drop_unknown: leave unknown words out instead of encoding them as such; for a model whose whole
        vocabulary is a few dozen words.
        """
        text = clean(prompt)
        # Not verbose: the tokenizer would warn of a length that is cut below.
        encoded = self._tokenizer(text, return_offsets_mapping=drop_unknown, verbose=False)
        tokens = encoded["input_ids"]
        unknown: tuple[str, ...] = ()
        if drop_unknown:
            unk = self._tokenizer.unk_token_id
            unknown = _pieces(text, [o for t, o in zip(tokens, encoded["offset_mapping"], strict=True) if t == unk])
            tokens = [token for token in tokens if token != unk]
        kept = tokens if len(tokens) <= self.length else [*tokens[: self.length - 1], tokens[-1]]
        ids = torch.tensor([kept], device=self._encoder.device)
        hidden = self._encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        # Known from upstream (transformers pull request 43880): embeddings loaded as zeros, a video of nothing.
        # What is left of it is rounding, which differs from word to word.
        spread = (hidden - hidden[:, :1]).abs().amax()
        if not hidden.isfinite().all() or (len(kept) > 1 and spread <= 1e-3 * hidden.abs().amax()):
            told = "the same for every word" if hidden.isfinite().all() else "values that are not finite"
            raise ModelError(f"the text encoder gives {told}: its weights are damaged", FETCH_AGAIN)
        padded = torch.zeros(1, self.length, hidden.shape[2], dtype=hidden.dtype, device=hidden.device)
        padded[:, : hidden.shape[1]] = hidden
        return EncodedPrompt(padded, unknown, cut=len(tokens) > self.length)
