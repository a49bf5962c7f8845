"""The pocket model's few words: a prompt as the model can read it, and what is told of the rest."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fpsgen.printable import printable
from fpsgen.wan.tokenizer import Tokenizer, clean, words_at

_VARIANTS = "\ufe0e\ufe0f"  # of the letter before: as text, as an emoji


@dataclass(frozen=True)
class Reading:
    """text: the prompt in words that the model was trained on. unknown: the words that were left out."""

    text: str
    unknown: tuple[str, ...]


def read(prompt: str, tokenizer: Tokenizer) -> Reading:
    """The prompt, each unknown word of it replaced by the known word whose form it is ("cats", "surf"), or left out."""
    # What comes along with copied text and cannot be seen (joiners, marks of direction, an emoji's variants) is no part
    # of a word, and a possessive says nothing here.
    seen = "".join(c for c in clean(prompt) if unicodedata.category(c) != "Cf" and c not in _VARIANTS)
    text = re.sub(r"(?<=\w)'s\b", "", seen)
    places = tokenizer.encode(text).unknown
    forms = [known_form(text[begin:end].lower(), lambda word: _knows(tokenizer, word)) for begin, end in places]
    left_out = words_at(text, [place for place, form in zip(places, forms, strict=True) if form is None])
    for (begin, end), form in reversed([*zip(places, forms, strict=True)]):
        text = f"{text[:begin]} {form or ''} {text[end:]}"
    return Reading(clean(text), left_out)


def known_form(word: str, known: Callable[[str], bool]) -> str | None:
    """The known word of which an unknown one is a simple form, None where there is none.

    A plural becomes the singular, because no caption of the training has one; a past becomes the participle; a stem
    gets an s, as in "a cat surfs" and "trees".
    """
    if word in ("are", "was", "were"):
        return "is" if known("is") else None
    return next((form for form in _forms(word) if len(form) > 2 and known(form)), None)


def _forms(word: str) -> Iterator[str]:
    for ending, instead in (("ies", "y"), ("es", ""), ("s", ""), ("ed", "ing"), ("y", "ies"), ("", "s"), ("", "es")):
        if word.endswith(ending):
            yield word.removesuffix(ending) + instead


def _knows(tokenizer: Tokenizer, word: str) -> bool:
    return not tokenizer.encode(word).unknown


def remark(reading: Reading, which: str, pocket: dict[str, Any]) -> str | None:
    """What the user should know about how `which` prompt was read, with prompts that work where it names nothing that
    can be drawn; None where there is nothing to tell."""
    unknown = printable(", ".join(reading.unknown))
    named = set(re.findall(r"\w+", reading.text.lower()))
    nothing = not named or ("subjects" in pocket and named.isdisjoint(pocket["subjects"]))
    if nothing and which != "negative prompt":
        left_out = f" (words left out: {unknown})" if unknown else ""
        told = f"the {which} names nothing that the pocket model can draw, so it draws something else{left_out}. "
        tries = [f'"{printable(each, 80)}"' for each in pocket.get("tries", [])]
        return f"{told}It knows {pocket['knows']}" + (
            f". Try {', '.join(tries[:-1])} or {tries[-1]}" if tries[1:] else ""
        )
    return f"words of the {which} left out: {unknown}. The pocket model knows {pocket['knows']}" if unknown else None
