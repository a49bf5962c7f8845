"""Prompt to text embedding: the UMT5 encoder, with the original's cleaning and padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

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


class KnownTexts(Protocol):
    """Embeddings [1, tokens, text_dim] that were made before, by token ids."""

    def get(self, tokens: list[int]) -> Tensor | None: ...
    def put(self, tokens: list[int], text: Tensor) -> None: ...


class TextEncoder:
    """Tokenizer and encoder of a checkpoint (`weights.load.load_text_encoder`). load: the encoder's weights, when a
    text is first met that is not known."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        load: Callable[[], UMT5Encoder],
        device: torch.device,
        known: KnownTexts | None = None,
    ):
        self.tokenizer, self._load, self._device, self._known = tokenizer, load, device, known

    @cached_property
    def module(self) -> UMT5Encoder:
        return self._load()

    @property
    def is_loaded(self) -> bool:
        return "module" in self.__dict__

    def make_ready(self, prompt: str) -> None:
        """Load the weights, if `encode` will need them for this prompt."""
        if self._known is None or self._known.get(self.tokenizer.encode(clean(prompt)).ids) is None:
            _ = self.module

    @torch.inference_mode()
    def encode(self, prompt: str) -> EncodedPrompt:
        """Embed one prompt at its true length, then pad with zeros as the original does."""
        text = clean(prompt)
        tokens = self.tokenizer.encode(text)
        hidden = None if self._known is None else self._known.get(tokens.ids)
        if hidden is None:
            hidden = self._embed(tokens.ids)
            if self._known is not None:
                self._known.put(tokens.ids, hidden)
        padded = torch.zeros(1, self.tokenizer.length, hidden.shape[2], dtype=hidden.dtype, device=self._device)
        padded[:, : hidden.shape[1]] = hidden
        return EncodedPrompt(padded, words_at(text, tokens.unknown), tokens.cut)

    def _embed(self, ids: list[int]) -> Tensor:
        hidden = self.module(torch.tensor([ids], device=self._device))
        # Known from upstream (transformers pull request 43880): embeddings loaded as zeros, a video of nothing.
        # What is left of it is rounding, which differs from word to word.
        spread = (hidden - hidden[:, :1]).abs().amax()
        if not hidden.isfinite().all() or (len(ids) > 1 and spread <= 1e-3 * hidden.abs().amax()):
            told = "the same for every word" if hidden.isfinite().all() else "values that are not finite"
            raise ModelError(f"the text encoder gives {told}: its weights are damaged", FETCH_AGAIN)
        return hidden
