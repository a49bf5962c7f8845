"""Prompts as users give them: on the command line, on standard input, in a file."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import itertools
import locale
import os
import re
import select
import stat
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from fpsgen import files
from fpsgen.choices import MAX_PROMPT, check_prompts
from fpsgen.cli.command import Command
from fpsgen.cli.options import expand
from fpsgen.errors import UsageError, reason
from fpsgen.printable import printable, readable

MAX_PROMPTS = 1000
PATIENCE = 60  # seconds without a word from a pipe


class DashCommand(Command):
    """A command whose prompt may begin with "-", as in "-3 degrees in winter", which is no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, [*args])
        except Exception as fault:  # typer has a copy of click's errors, and exports few of them
            name = getattr(fault, "option_name", None)
            sentences = [arg for arg in args if re.match(r"-(?!-[\w-]+=).*\s", arg, re.DOTALL)]
            sentences = [arg for arg in sentences if arg.startswith(name or "-")] or sentences
            if name is None or len(sentences) != 1 or "--" in args:
                raise
            args.remove(sentences[0])
            try:
                return super().parse_args(ctx, [*args, "--", *sentences])
            except Exception:
                raise fault from None


def as_text(argument: str) -> str:
    """What somebody typed: UTF-8 wherever it can be, else what the locale says, which Python asks alone."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def typed_prompt(argument: str) -> str:
    """The prompt of a command line, or of standard input for "-"."""
    return read_prompt() if argument == "-" else as_text(argument)


def read_prompt() -> str:
    """What standard input holds, no more of it than a prompt may have."""
    try:
        given = sys.stdin.buffer.read(4 * MAX_PROMPT + 4)
        with contextlib.suppress(UnicodeDecodeError):
            return codecs.getincrementaldecoder("utf-8-sig")().decode(given)  # which minds no letter cut in two
        return given.decode(locale.getencoding())
    except (AttributeError, ValueError, OSError):  # none there, closed, or not text
        raise UsageError("standard input holds no text", hint='echo "a cat surfing" | fpsgen generate -') from None


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a file that are neither empty nor comments; UsageError where one is no prompt or is there twice."""
    name = printable(path)
    found = numbered_lines(path, MAX_PROMPTS)
    if len(found) > MAX_PROMPTS:
        raise UsageError(f"{name} has more than {MAX_PROMPTS} prompts", hint=f"keep at most {MAX_PROMPTS} of them")
    for number, line in found.items():
        try:
            check_prompts(line)
        except UsageError as fault:
            hint = fault.marked_hint if len(line) > MAX_PROMPT else "write a prompt there, or remove the line"
            raise UsageError(f"{name}, line {number}: {fault}", hint) from None
    line, count = Counter(found.values()).most_common(1)[0] if found else ("", 1)
    if count > 1:
        raise UsageError(f"{name} has a prompt twice: '{printable(line, 80)}'", hint="leave one of them out")
    return tuple(found.values())


def numbered_lines(path: Path | None, most: int) -> dict[int, str]:
    """The lines of a file, or of standard input for None, that are neither empty nor comments, by their numbers. most:
    how many are wanted; where there are more, one more is returned. UsageError where they cannot be read."""
    name, size = "standard input" if path is None else printable(path), 4 * MAX_PROMPT * most
    try:
        if path is None and sys.stdin is None:
            raise ValueError("it is closed")
        data = sys.stdin.buffer.read(size + 1) if path is None else _read(expand(path), size + 1)
        if len(data) > size:
            raise ValueError(f"it has more than {readable(size)}")
        # Line separators of Unicode may stand inside a prompt, and editors do not count them.
        lines = io.StringIO(data.decode("utf-8-sig"), newline=None)
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text", hint="save it as UTF-8, one prompt a line") from None
    except (OSError, ValueError) as fault:
        told = f"cannot read the prompts in {name}: {reason(fault)}"
        raise UsageError(told, hint="give a text file, one prompt on each line") from None
    stripped = ((number, line.strip()) for number, line in enumerate(lines, 1))
    return dict(itertools.islice((one for one in stripped if one[1] and not one[1].startswith("#")), most + 1))


def _read(path: Path, most: int) -> bytes:
    """The first bytes of a file, or of a pipe, as a shell's <(…) is one. OSError where it is neither, and where a pipe
    stays silent for too long."""
    if not stat.S_ISFIFO(path.stat().st_mode):
        with files.open_regular(path) as file:
            return file.read(most)
    number, data = os.open(path, os.O_RDONLY | os.O_NONBLOCK), b""
    try:
        while len(data) < most:
            if not select.select([number], [], [], PATIENCE)[0]:
                raise OSError(errno.ETIMEDOUT, f"it is a pipe, and nothing came from it in {PATIENCE} seconds")
            if not (piece := os.read(number, most - len(data))):
                break
            data += piece
        return data
    finally:
        os.close(number)
