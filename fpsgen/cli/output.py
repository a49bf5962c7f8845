"""Everything the commands say: results on stdout, the rest on stderr, one JSON object where asked."""

from __future__ import annotations

import json as jsonlib
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class Output:
    """A command's voice: for people, or with `json` for programs, which hear nothing but the result."""

    def __init__(self, json: bool = False, verbose: bool = False):
        self.json = json
        self.verbose = verbose
        self.console = Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        """One line the user should read. Shown with --json, too: it goes to stderr."""
        self._say("note: ", "yellow", text)

    def detail(self, text: str) -> None:
        if self.verbose:
            self._say("", "", text, "dim")

    def error(self, message: str, hint: str | None) -> None:
        self._say("error: ", "bold red", message)
        if hint:
            self._say("try:   ", "bold", hint)
        if self.json:
            print(jsonlib.dumps({"error": message, "hint": hint}))

    def table(self, table: Table) -> None:
        if not self.json:
            self.console.print(table)

    def result(self, text: str, data: dict) -> None:
        """What the command was run for: a line, or an object with --json."""
        # Escaped to ASCII: a console may not be able to print what a prompt holds.
        print(jsonlib.dumps(data) if self.json else text)
        sys.stdout.flush()

    @property
    def shows_progress(self) -> bool:
        return not self.json and self.console.is_terminal

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
            disable=not self.shows_progress,
            transient=True,
        )

    def _say(self, label: str, label_style: str, text: str, style: str = "") -> None:
        """One line in styles, never as markup: a prompt or a path may hold brackets."""
        self.console.print(Text.assemble((label, label_style), (text, style)), soft_wrap=True)
