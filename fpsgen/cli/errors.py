"""From exception to one sentence, what to do about it, and an exit code."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import ParamSpec

import typer

from fpsgen.cli.output import Output
from fpsgen.errors import FpsgenError

P = ParamSpec("P")

show_tracebacks = False  # set by the root command's --debug

INTERRUPTED = 130


def explain(error: BaseException) -> tuple[str, str | None, int]:
    """Sentence, hint and exit code of anything that can end a command."""
    if isinstance(error, FpsgenError):
        return str(error), error.hint, error.exit_code
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):  # an answer to a question may be Ctrl-C, too
        return "stopped; nothing was written", None, INTERRUPTED
    # torch may not have been imported, so its errors are known by name; on a CPU it raises a bare RuntimeError.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    ):
        return "not enough memory", "try a smaller --res, fewer --frames or a smaller --model", 1
    return (
        f"something went wrong inside fpsgen: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
        "fpsgen --debug … shows where; please report it with that output",
        1,
    )


def explained(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command end in a sentence instead of a traceback. Its `json` parameter chooses the form."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if show_tracebacks:
                raise
            message, hint, code = explain(error)
            Output(json=bool(kwargs.get("json"))).error(message, hint)
            raise typer.Exit(code) from None

    # Typer keeps the lines of a paragraph apart, and a terminal breaks them once more.
    run.__doc__ = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.__doc__ or ""))
    return run
