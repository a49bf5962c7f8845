"""Everything the commands say: results on stdout, the rest on stderr, one JSON object where asked."""

from __future__ import annotations

import io
import json as jsonlib
import os
import re
import sys

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from fpsgen.cli.tables import Fitted
from fpsgen.errors import with_options
from fpsgen.printable import printable
from fpsgen.tables import Table

SCHEMA = 1  # of the objects that --json prints; docs/json.md says when it changes
_LARGE = {name: name for name in ("diffusers", "transformers", "huggingface_hub", "matplotlib")} | {"torch": "PyTorch"}
_UNBOUNDED = 1000  # columns
_HINT = "hint:  "
_SHORT = {"output": "-o"}  # options whose short name everybody types
_MOST = 4000  # characters of one message: whoever wrote a name of a megabyte into a file fills no screen with it


def in_flags(text: str) -> str:
    """A text whose options (`fpsgen.errors.option`) are written as people type them here: --steps 50."""
    return with_options(text, _flag)


def _flag(field: str, value: str | None) -> str:
    flag = _SHORT.get(field) or f"--{field.replace('_', '-')}"
    return flag if value is None else f"{flag} {value}"


class Output:
    """A command's voice: for people, or with `json` for programs, which hear nothing but the result."""

    def __init__(self, json: bool = False, verbose: bool = False):
        self.json = json
        self.verbose = verbose
        self.draws = True  # unless several processes would draw on one terminal
        self._noted: set[str] = set()
        self.console = Console(stderr=True, highlight=False)

    def loading(self, doing: str | None = None) -> None:
        """It takes seconds until the result, a bar or a question: show on a terminal that something happens, and what;
        by default which library is being loaded. Notes appear above it."""
        hush()
        if self.shows_progress:
            _waiting.append(Live(_Busy(doing), console=self.console, transient=True, redirect_stdout=False))
            _waiting[0].start(refresh=True)

    def note(self, text: str) -> None:
        """One line the user should read, once: many videos may give the same reason for it. Shown with --json, too: it
        goes to stderr."""
        if text not in self._noted:
            self._noted.add(text)
            self._say("note: ", "yellow", text)

    def detail(self, text: str) -> None:
        if self.verbose:
            self._say("", "", text, "dim")

    def error(self, message: str, hint: str | None, code: int) -> None:
        """What ends the command."""
        hush()
        self._say("error: ", "bold red", message)
        if hint:
            self._say(_HINT, "bold", hint)
        if self.json:
            self._object({"error": message, "hint": hint, "exit_code": code})

    def table(self, table: Table) -> None:
        if not self.json:
            hush()
            self.console.print(Fitted(table))

    def show(self, table: Table) -> None:
        """A table that is the command's result, on stdout."""
        there, drawn = Console(), io.StringIO()
        width = there.width if there.is_terminal or "COLUMNS" in os.environ else _UNBOUNDED  # a file has room
        as_there = {"width": width, "force_terminal": there.is_terminal, "color_system": there.color_system}
        Console(file=drawn, highlight=False, **as_there).print(Fitted(table))  # type: ignore[arg-type]
        self._print("\n".join(line.rstrip() for line in drawn.getvalue().splitlines()))

    def line(self, text: str, *, copied: bool = False) -> None:
        """One line of a result that has several, on stdout; --json has them in its object. copied: it ends in a command
        or a path."""
        if not self.json:
            self._print(_shown(text, copied))

    def result(self, text: str, data: dict, *, copied: bool = False) -> None:
        """What the command was run for: a line, or an object with --json. copied: it is a path."""
        if self.json:
            self._object(data)
        else:
            self._print(_shown(text, copied))

    @property
    def shows_progress(self) -> bool:
        return not self.json and self.draws and self.console.is_terminal

    @property
    def may_ask(self) -> bool:
        """Whether somebody sits there to answer a question."""
        hush()
        return not self.json and sys.stdin is not None and sys.stdin.isatty() and self.console.is_terminal

    def milestone(self, text: str) -> None:
        """What a log keeps of progress, where no bar is drawn."""
        if not self.json and not self.shows_progress:
            self._say("", "", text, "dim")

    def _object(self, data: dict) -> None:
        self._print(jsonlib.dumps({"schema": SCHEMA, **data}))

    def _print(self, text: str) -> None:
        hush()
        print(text, flush=True)

    def _say(self, label: str, label_style: str, text: str, style: str = "") -> None:
        """One line in styles, never as markup: a prompt or a path may hold brackets, or move the cursor."""
        if _waiting and _waiting[0].console is not self.console:  # else the line appears above the spinner, which stays
            hush()
        told = printable(in_flags(text), _MOST)
        # On a terminal a sentence is broken between words; a hint is not, because it may be a command to copy.
        whole = not self.console.is_terminal or label == _HINT
        self.console.print(Text.assemble((label, label_style), (told, style)), soft_wrap=whole)


def _shown(text: str, copied: bool) -> str:
    """Lines as a terminal may get them, broken between words unless somebody will copy them; to a pipe or a file they
    go as they are."""
    if not sys.stdout.isatty():
        return text
    lines = [printable(line, _MOST) for line in text.split("\n")]
    if not copied:
        width = Console().width
        lines = [part for line in lines for part in _broken(line, width)]
    return "\n".join(lines)


def _broken(line: str, width: int) -> list[str]:
    """The line in parts that fit the width, broken between words and indented alike. A word that is longer than the
    width stays whole, because it may be a path; rich would cut it."""
    parts, indent = [""], line[: len(line) - len(line.lstrip())]
    for word in re.findall(r"\s*\S+", line):
        if parts == [""] or cell_len(parts[-1] + word) <= width:
            parts[-1] += word
        else:
            parts.append(indent + word.lstrip())
    return parts


class _Busy:
    """A spinner, and what it is that takes so long."""

    def __init__(self, doing: str | None):
        self._doing, self._spinner = doing, Spinner("dots")

    def __rich__(self) -> Spinner:
        tops = (name.partition(".")[0] for name in reversed(list(sys.modules)))  # in the order of their import
        told = self._doing or f"loading {next((_LARGE[top] for top in tops if top in _LARGE), 'fpsgen')}"
        self._spinner.update(text=Text(told, "dim"))
        return self._spinner


_waiting: list[Live] = []  # the spinner that is shown, if one is


def hush() -> None:
    """The spinner goes: something is said, or asked."""
    while _waiting:
        _waiting.pop().stop()
