"""Prompt to tokens: the original's cleaning, then what the checkpoint's own tokenizer.json says."""

from __future__ import annotations

import html
import re
import string
import unicodedata
from dataclasses import dataclass

import ftfy
import tokenizers

TEXT_LENGTH = 512  # tokens that Wan2.1 attends to, padding included


def clean(prompt: str) -> str:
    """The original's "whitespace" cleaning: mend mojibake, undo HTML entities twice, collapse whitespace."""
    mended = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", mended).strip()


@dataclass(frozen=True)
class Tokens:
    """ids: of the prompt's tokens, the end token last. unknown: where in the text stands what has no token, as pairs
    of begin and end. cut: whether the text was too long, and its end left out."""

    ids: list[int]
    unknown: list[tuple[int, int]]
    cut: bool


@dataclass(frozen=True)
class Tokenizer:
    """unknown: the id that stands for what has none, or None where every character has one. length: most tokens of a
    prompt, the end token included.

    Nothing is padded or cut by the library, whatever its file asks for: the text encoder runs at the true length.
    """

    library: tokenizers.Tokenizer
    unknown: int | None
    length: int

    def encode(self, text: str) -> Tokens:
        """Tokens of a text that is clean already."""
        encoded = self.library.encode(text)
        ids, places = encoded.ids, encoded.offsets
        missing = [place for token, place in zip(ids, places, strict=True) if token == self.unknown]
        kept = ids if len(ids) <= self.length else [*ids[: self.length - 1], ids[-1]]
        return Tokens(kept, missing, cut=len(ids) > self.length)


def words_at(text: str, places: list[tuple[int, int]]) -> tuple[str, ...]:
    """What stands there, neighbours together, each once; punctuation is nobody's loss."""
    joined: list[tuple[int, int]] = []
    for begin, end in places:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    marks = string.punctuation + "".join(letter for letter in text if unicodedata.category(letter).startswith("P"))
    words = dict.fromkeys(text[begin:end].strip(marks) for begin, end in joined)
    return tuple(word for word in words if word)
