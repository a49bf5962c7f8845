"""Where in a TOML file a key stands: Python's reader does not say."""

from __future__ import annotations

import re

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]#]+?)\s*\]")
_KEY = re.compile(r"""\s*([A-Za-z0-9_-]+|"[^"]*"|'[^']*')\s*=""")


class Lines:
    """Line numbers of keys, by path: ("phase", 0, "layers", 1, "window") is a key of the second [[phase.layers]] of the
    first [[phase]].

    It reads headers and the first key of a line. Of what is written otherwise, inline tables say, it knows the line of
    the table around it: less exact, never wrong by a table.
    """

    def __init__(self, text: str):
        self._found: dict[tuple[str | int, ...], int] = {}
        counts: dict[tuple[str | int, ...], int] = {}
        table: tuple[str | int, ...] = ()
        for number, line in enumerate(text.splitlines(), 1):
            if header := _HEADER.match(line):
                table = ()
                names = [name.strip().strip("\"'") for name in header[2].split(".")]
                for depth, name in enumerate(names, 1):
                    table = (*table, name)
                    if header[1] == "[[" and depth == len(names):
                        counts[table] = counts.get(table, -1) + 1
                    if table in counts:
                        table = (*table, counts[table])
                self._found.setdefault(table, number)
            elif key := _KEY.match(line):
                self._found.setdefault((*table, key[1].strip("\"'")), number)

    def of(self, *path: str | int) -> int | None:
        """The line of `path`, or of the nearest table around it that has one."""
        while path:
            if path in self._found:
                return self._found[path]
            path = path[:-1]
        return None
