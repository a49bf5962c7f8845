"""docs/cli.md: the help of every command, so that the page cannot differ from the program.

    python -m tests.tools.cli_page

Writes the page; `tests/unit/cli/test_page.py` fails if it is older than a help.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from fpsgen.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COLUMNS = 88  # a page has no terminal: its lines are as wide here as anywhere
HEAD = """\
# All commands

Every command and every option, as `--help` shows them. The pages that explain them are listed in the
[README](../README.md#read-on). This page is made by `python -m tests.tools.cli_page`; do not edit it.
"""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command below `command` with the words that lead to it, the group before its commands."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def help_of(root: Any, path: tuple[str, ...], columns: int) -> str:
    """What `fpsgen PATH --help` prints on a terminal of so many columns, without colours."""
    width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), str(columns)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            root.main([*path, "--help"], prog_name="fpsgen", standalone_mode=False)
    finally:
        if width is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = width
    return text.getvalue().rstrip()


def page() -> str:
    root = typer.main.get_command(app)
    names = {path: " ".join(("fpsgen", *path)) for path, _ in commands(root)}
    index = "".join(f"- [`{name}`](#{name.replace(' ', '-')})\n" for path, name in names.items())
    sections = (f"## {name}\n\n```text\n{help_of(root, path, COLUMNS)}\n```\n" for path, name in names.items())
    return "\n".join([HEAD, index, *sections])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
