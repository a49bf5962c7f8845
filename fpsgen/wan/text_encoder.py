"""Prompt to text embedding: transformers' UMT5 encoder, with the original's cleaning and padding."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path

import ftfy
import torch
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel
from transformers.utils.logging import disable_progress_bar

from fpsgen.errors import ModelError

disable_progress_bar()  # ours shows the phases

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


class TextEncoder:
    """Tokenizer and encoder of a Diffusers model folder."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self._tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self._encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype).to(device).eval()
        # A release of transformers loaded these as zeros (its pull request 43880): a video of nothing in particular.
        if not self._encoder.get_input_embeddings().weight[:1000].any():
            raise ModelError(f"the text encoder in {folder} has embeddings of zero", hint="try another transformers")
        self.length = min(TEXT_LENGTH, self._tokenizer.model_max_length)

    @torch.inference_mode()
    def encode(self, prompt: str, drop_unknown: bool = False) -> EncodedPrompt:
        """Embed one prompt at its true length, then pad with zeros as the original does.

        drop_unknown: leave unknown words out instead of encoding them as such; for a model whose whole
        vocabulary is a few dozen words.
        """
        text = clean(prompt)
        tokens = self._tokenizer(text)["input_ids"]
        unknown: tuple[str, ...] = ()
        if drop_unknown:
            words = dict.fromkeys(re.findall(r"[\w']+", text))
            unknown = tuple(word for word in words if self._is_unknown(word))
            tokens = [token for token in tokens if token != self._tokenizer.unk_token_id]
        kept = tokens if len(tokens) <= self.length else [*tokens[: self.length - 1], tokens[-1]]
        ids = torch.tensor([kept], device=self._encoder.device)
        hidden = self._encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        padded = torch.zeros(1, self.length, hidden.shape[2], dtype=hidden.dtype, device=hidden.device)
        padded[:, : hidden.shape[1]] = hidden
        return EncodedPrompt(padded, unknown, cut=len(tokens) > self.length)

    def _is_unknown(self, word: str) -> bool:
        return self._tokenizer.unk_token_id in self._tokenizer(word, add_special_tokens=False)["input_ids"]
