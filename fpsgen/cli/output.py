"""Everything the commands say: results on stdout, the rest on stderr, one JSON object where asked."""

from __future__ import annotations

import io
import json as jsonlib
import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Messages(Console):
    """stderr. rich ends the process where nobody reads it any more; the work goes on instead."""

    def on_broken_pipe(self) -> None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (it stays open to the end)


class Output:
    """A command's voice: for people, or with `json` for programs, which hear nothing but the result."""

    def __init__(self, json: bool = False, verbose: bool = False):
        self.json = json
        self.verbose = verbose
        self.console = Messages(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        """One line the user should read. Shown with --json, too: it goes to stderr."""
        self._say("note: ", "yellow", text)

    def detail(self, text: str) -> None:
        if self.verbose:
            self._say("", "", text, "dim")

    def error(self, message: str, hint: str | None) -> None:
        self._say("error: ", "bold red", message)
        if hint:
            self._say("hint:  ", "bold", hint)
        if self.json:
            self._print(jsonlib.dumps({"error": message, "hint": hint}))

    def table(self, table: Table) -> None:
        if not self.json:
            self.console.print(table)

    def show(self, table: Table) -> None:
        """A table that is the command's result, on stdout."""
        there, drawn = Console(), io.StringIO()
        as_there = {"width": there.width, "force_terminal": there.is_terminal, "color_system": there.color_system}
        Console(file=drawn, highlight=False, **as_there).print(table)  # type: ignore[arg-type]
        self._print(drawn.getvalue().rstrip("\n"))

    def line(self, text: str) -> None:
        """One line of a result that has several, on stdout; --json has them in its object."""
        if not self.json:
            self._print(text)

    def result(self, text: str, data: dict) -> None:
        """What the command was run for: a line, or an object with --json."""
        self._print(jsonlib.dumps(data) if self.json else text)

    @property
    def shows_progress(self) -> bool:
        return not self.json and self.console.is_terminal

    @property
    def may_ask(self) -> bool:
        """Whether somebody sits there to answer a question."""
        return not self.json and sys.stdin.isatty() and self.console.is_terminal

    def milestone(self, text: str) -> None:
        """What a log keeps of progress, where no bar is drawn."""
        if not self.json and not self.shows_progress:
            self._say("", "", text, "dim")

    def progress(self) -> Progress:
        """A bar with steps done and time left, on a terminal."""
        return Progress(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            speed_estimate_period=24 * 3600,  # a step may take minutes, and time left wants two of them
            disable=not self.shows_progress,
            transient=True,
        )

    def _print(self, text: str) -> None:
        """On stdout. The work is done by now: a reader who has left, or has no such letters, does not undo it."""
        if sys.stdout is None:  # closed before we began
            return
        try:
            encoding = sys.stdout.encoding or "utf-8"
            print(text.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)
        except OSError:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (else Python tries again while it exits)

    def _say(self, label: str, label_style: str, text: str, style: str = "") -> None:
        """One line in styles, never as markup: a prompt or a path may hold brackets."""
        self.console.print(Text.assemble((label, label_style), (text, style)), soft_wrap=True)


def readable(count: int) -> str:
    """Bytes for people, in decimal units as the hub gives them."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
