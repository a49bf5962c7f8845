"""Where in a TOML file a key stands: Python's reader does not say."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

Names = tuple[str | int, ...]

# Strings and comments, whatever they hold, and the marks around them. A string that is not closed ends somewhere, too:
# what is not TOML must not take long. A multi-line string may end with two quotes of its own before the three.
_TOKEN = re.compile(
    r'"""(?:\\.|.)*?(?:"{3,5}|\Z)' + r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:\\[^\n]|[^"\\\n])*"?' + r"|'[^'\n]*'?"
    r"|#[^\n]*|[][{}=.,\n]",
    re.DOTALL,
)
_BARE = re.compile("[A-Za-z0-9_-]+")


def too_many_dots(text: str, most: int) -> int | None:
    """The line of the first key of more than `most` dots."""
    line, dots = 1, 0
    for match in _TOKEN.finditer(text):
        mark = match[0]
        if mark == ".":
            dots += 1
            if dots > most:
                return line
        elif mark[0] in "[]{}=,\n":
            dots = 0
        line += mark.count("\n")
    return None


class Lines:
    """Line numbers of keys, by path: ("phase", 0, "layers", 1, "window") is a key of the second [[phase.layers]] of the
    first [[phase]].

    It reads headers and the keys that lines begin with. Of what stands inside of inline tables it knows where the table
    begins: less exact, never wrong by a table. The text must be TOML.
    """

    def __init__(self, text: str):
        self._found: dict[Names, int] = {}
        counts: dict[Names, int] = {}
        table: Names = ()
        for line, head in _heads(text):
            names = _names(head)
            if not head.startswith("["):
                self._add((*table, *names), line)
                continue
            table = ()
            for depth, name in enumerate(names, 1):
                table = (*table, name)
                if head.startswith("[[") and depth == len(names):
                    counts[table] = counts.get(table, -1) + 1
                if table in counts:
                    table = (*table, counts[table])
            self._add(table, line)

    def _add(self, path: Names, line: int) -> None:
        for depth in range(1, len(path) + 1):
            self._found.setdefault(path[:depth], line)

    def of(self, *path: str | int) -> int | None:
        """The line of `path`, or of the nearest table around it that has one."""
        while path:
            if path in self._found:
                return self._found[path]
            path = path[:-1]
        return None


def _heads(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of every header, and of every key up to its =, outside of values."""
    line, depth, begin, equals = 1, 0, 0, None
    began = line
    for match in _TOKEN.finditer(text + "\n"):
        mark = match[0]
        line += mark.count("\n")
        if mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
        elif mark == "=" and not depth and equals is None:
            equals = match.start()
        elif mark == "\n" and not depth:
            head = text[begin : match.start() if equals is None else equals].strip()
            if equals is not None or head.startswith("["):
                yield began, head
            begin, began, equals = match.end(), line, None


def _names(head: str) -> tuple[str, ...]:
    """The parts of a dotted key, or of a header's."""
    if _BARE.fullmatch(head):
        return (head,)
    inner: Any = tomllib.loads(head if head.startswith("[") else f"{head} = 0")
    names = []
    while isinstance(inner, dict) and inner:
        ((name, inner),) = inner.items()
        names.append(name)
    return tuple(names)
