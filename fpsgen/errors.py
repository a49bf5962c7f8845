"""What can go wrong, in words for the person at the terminal.

An error holds one sentence and, as `hint`, what to do about it. The CLI prints both and leaves with the
error's exit code; nobody else needs to know how.

A sentence names a setting by `option("steps", 50)`. The CLI writes that as the flag that people type, and nothing but
the CLI knows its flags; `plain` writes `steps=50`, as in Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fpsgen.printable import typed

# Around a setting, and between its name and its value. `printable` lets none of them through from outside.
_BEGIN, _BETWEEN, _END = "\x02", "\x1f", "\x03"
_OPTION = re.compile(f"{_BEGIN}(\\w+)(?:{_BETWEEN}([^{_END}]*))?{_END}")


def option(field: str, value: object = None) -> str:
    """A setting inside a sentence, with a value if one is given; to be read by `plain` or by the CLI."""
    if value is None:
        return f"{_BEGIN}{field}{_END}"
    return f"{_BEGIN}{field}{_BETWEEN}{f'{value:g}' if isinstance(value, float) else typed(value)}{_END}"


def with_options(text: str, write: Callable[[str, str | None], str]) -> str:
    """The text with each of its options as `write` makes it of the field and the value, None where it has none."""
    return _OPTION.sub(lambda match: write(match[1], match[2]), text)


def plain(text: str) -> str:
    """The text as a Python program, a file or a page shows it: options as `steps=50`, or `steps`."""
    return with_options(text, lambda field, value: field if value is None else f"{field}={value}")


def reason(fault: Exception) -> str:
    """What a fault of the operating system or of a library says, without its number and its file's name."""
    return getattr(fault, "strerror", None) or str(fault)


class FpsgenError(Exception):
    """Base of every error that fpsgen explains instead of showing a traceback.

    `str(error)` and `hint` are plain text. `f"{error}"` and `marked_hint` keep their options as `option` made them:
    for another error's sentence, or for the command line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.marked_hint = hint

    @property
    def hint(self) -> str | None:
        """What to do about it, as plain text."""
        return self.marked_hint and plain(self.marked_hint)

    def __str__(self) -> str:
        return plain(super().__str__())

    def __format__(self, spec: str) -> str:
        return format(super().__str__(), spec)


class Stopped(FpsgenError):
    """Ended by its user, with something to say about what is kept."""

    exit_code = 130


class UsageError(FpsgenError):
    """The user asked for something that cannot be: a size, an option, a file."""

    exit_code = 2


class ModelError(UsageError):
    """A model is missing, incomplete or not one that fpsgen runs."""


class DownloadError(FpsgenError):
    """The hub, or the way to it, failed; what has arrived is kept."""


class RenderError(FpsgenError):
    """Work that should have succeeded did not: the encoder failed, values were not finite."""
