"""Everything the commands say: results on stdout, the rest on stderr, one JSON object where asked."""

from __future__ import annotations

import json as jsonlib
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Output:
    """A command's voice: for people, or with `json` for programs, which hear nothing but the result."""

    def __init__(self, json: bool = False, verbose: bool = False):
        self.json = json
        self.verbose = verbose
        self.console = Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        """One line the user should read. Shown with --json, too: it goes to stderr."""
        self.console.print(f"[yellow]note:[/] {_plain(text)}", soft_wrap=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            self.console.print(f"[dim]{_plain(text)}[/]", soft_wrap=True)

    def error(self, message: str, hint: str | None) -> None:
        self.console.print(f"[bold red]error:[/] {_plain(message)}", soft_wrap=True)
        if hint:
            self.console.print(f"[bold]try:[/]   {_plain(hint)}", soft_wrap=True)
        if self.json:
            print(jsonlib.dumps({"error": message, "hint": hint}, ensure_ascii=False))

    def table(self, table: Table) -> None:
        if not self.json:
            self.console.print(table)

    def result(self, text: str, data: dict) -> None:
        """What the command was run for: a line, or an object with --json."""
        print(jsonlib.dumps(data, ensure_ascii=False) if self.json else text)
        sys.stdout.flush()

    def progress(self) -> Progress:
        """A bar with steps done and time left; nothing where nobody is watching."""
        return Progress(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=self.json or not self.console.is_terminal,
            transient=True,
        )


def _plain(text: str) -> str:
    """Text that rich prints as it is: a prompt may hold brackets."""
    return text.replace("[", r"\[")
