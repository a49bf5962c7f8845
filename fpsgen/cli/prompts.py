"""Prompts as users give them: on the command line, on standard input, in a file."""

from __future__ import annotations

import codecs
import contextlib
import locale
import os
import sys
from collections import Counter
from pathlib import Path

from fpsgen import files
from fpsgen.cli.options import expand
from fpsgen.errors import UsageError

MAX_PROMPT = 5000  # characters
MAX_PROMPTS = 1000


def as_text(argument: str) -> str:
    """What somebody typed: UTF-8 wherever it can be, else what the locale says, which Python asks alone."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def read_prompt() -> str:
    """What standard input holds, no more of it than a prompt may have."""
    try:
        given = sys.stdin.buffer.read(4 * MAX_PROMPT + 4)
        with contextlib.suppress(UnicodeDecodeError):
            return codecs.getincrementaldecoder("utf-8-sig")().decode(given)  # which minds no letter cut in two
        return given.decode(locale.getencoding())
    except (AttributeError, ValueError, OSError):  # none there, closed, or not text
        raise UsageError("standard input holds no text", hint='echo "a cat surfing" | fpsgen generate -') from None


def check_prompts(prompt: str, negative: str | None) -> None:
    """Refuse an empty prompt, and texts far beyond what the model reads and the file's comment can hold."""
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint='fpsgen generate "a cat surfing"')
    for name, text in (("prompt", prompt), ("negative prompt", negative or "")):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(f"the {name} is not UTF-8 text", hint="type it anew, or save its file as UTF-8")
        if len(text) > MAX_PROMPT:
            raise UsageError(
                f"the {name} has {len(text)} characters; at most {MAX_PROMPT} are taken",
                hint="shorten it: the model reads its first 512 tokens",
            )


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a file that are neither empty nor comments."""
    try:
        with files.open_regular(expand(path)) as file:
            text = file.read(4 * MAX_PROMPT * MAX_PROMPTS).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", hint="save it as UTF-8, a prompt a line") from None
    except (OSError, ValueError) as fault:
        told = getattr(fault, "strerror", None) or fault
        raise UsageError(f"cannot read the prompts in {path}: {told}", hint="give a file, a prompt a line") from None
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_PROMPT:
            told = f"{path}, line {number}: a prompt of {len(line)} characters; at most {MAX_PROMPT} are taken"
            raise UsageError(told, hint="shorten it: the model reads its first 512 tokens")
    found = [line for line in lines if line and not line.startswith("#")]
    if len(found) > MAX_PROMPTS:
        raise UsageError(f"{path} has more than {MAX_PROMPTS} prompts", hint="take the first of them")
    if len(set(found)) != len(found):
        twice = Counter(found).most_common(1)[0][0][:80]
        raise UsageError(f"{path} has a prompt twice: {twice!r}", hint="leave one of them out")
    return tuple(found)
