"""Words from outside (a checkpoint, a hub, a file's name, a library), made fit for a terminal, a log or metadata."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

_LONGEST_PATH = 4096
MOST = 200  # characters of one name in one sentence


def printable(text: object, most: int = MOST) -> str:
    """`text` on one line of at most `most` characters, its middle left out where it is longer.

    What could move a cursor, begin a new line, colour it or turn the order of its letters (controls, escapes, line
    separators, direction marks, lone surrogates) is written as its escape.
    """
    letters = str(text)
    if len(letters) > most:  # first, so that a megabyte costs nothing
        letters = f"{letters[: most // 2]}…{letters[-(most - most // 2 - 1) :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in letters)


def absolute(path: Path | None) -> str | None:
    """Where a file or folder is, whole, for JSON."""
    return None if path is None else printable(path.absolute(), _LONGEST_PATH)


def typed(word: object) -> str:
    """What somebody typed, as `printable`; an empty word, as an unset variable of a shell leaves one, can be seen."""
    return printable(word) or "''"


def meant(word: object, known: Iterable[str], before: str = "") -> str:
    """A question after what was probably meant by a word that is not `known`; empty where nothing is near."""
    plain = {name.lstrip("-"): name for name in known}  # two dashes that all options begin with make none alike
    near = difflib.get_close_matches(word.lstrip("-"), plain, 1) if isinstance(word, str) else []
    return f"{before}did you mean {plain[near[0]]}?" if near else ""


def readable(count: int) -> str:
    """Bytes for people, in decimal units as the hub gives them."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
