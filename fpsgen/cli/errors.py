"""From exception to one sentence, what to do about it, and an exit code."""

from __future__ import annotations

import errno
import functools
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import typer

from fpsgen.cli import signals, usage
from fpsgen.cli.output import Output, hush, in_flags
from fpsgen.errors import FpsgenError, Stopped, reason
from fpsgen.printable import printable

P = ParamSpec("P")

show_tracebacks = False  # set by the root command's --debug

# What the system, a dynamic loader, torch on a CPU and torch on a card say; torch may not have been imported, so its
# errors are known by name.
_NO_MEMORY = ("DefaultCPUAllocator", "failed to map segment", "annot allocate memory", "std::bad_alloc")


def explain(error: BaseException, options: Collection[str] = ()) -> tuple[str, str | None, int]:
    """Sentence, hint and exit code of anything that can end a command; options: those that the command has."""
    if isinstance(error, FpsgenError):
        code = signals.exit_code() if isinstance(error, Stopped) or signals.came() else error.exit_code
        return in_flags(f"{error}"), error.marked_hint and in_flags(error.marked_hint), code
    # Whatever else is raised after a signal is what the signal broke, as half an import.
    if isinstance(error, (KeyboardInterrupt, typer.Abort)) or signals.came():
        return "stopped", None, signals.exit_code()
    if isinstance(error, usage.Refusal):
        return *usage.in_words(error), 2
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    if any(_lacks_memory(cause) for cause in causes):
        if any(isinstance(cause, ImportError) or "failed to map" in str(cause) for cause in causes):
            return "not enough memory to load the libraries", "end other programs, or raise the limit: ulimit -v", 1
        smaller = "try a smaller --res, fewer --frames or a smaller --model"
        return "not enough memory", smaller if {"res", "frames", "model"} <= {*options} else "end other programs", 1
    for cause in causes:
        if isinstance(cause, ImportError) and not (cause.name or "").startswith("fpsgen"):
            told = f"a library that fpsgen needs cannot be loaded: {_line(cause)}"
            return told, "install fpsgen again; fpsgen doctor says what is here", 1
    return (
        f"something went wrong inside fpsgen: {type(error).__name__}: {_line(error)}",
        "fpsgen --debug … shows where; please report it with that output",
        1,
    )


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return getattr(error, "errno", None) == errno.ENOMEM or any(words in str(error) for words in _NO_MEMORY)


def _line(error: BaseException) -> str:
    return printable(next(iter(str(error).strip().splitlines()), ""), 300)


def undelivered(fault: Exception) -> FpsgenError:
    """stdout could not take what was written there."""
    told = f"the result could not be written to standard output: {reason(fault)}"
    return FpsgenError(told, hint="redirect it to another place; the files that the command made are complete")


def end(error: BaseException, json: bool, options: Collection[str] = ()) -> int:
    """Say what ended a command; its exit code. options: as `explain` has them."""
    if show_tracebacks:
        traceback.print_exception(error)
    message, hint, code = explain(error, options)
    Output(json).error(message, hint, code)
    return code


@contextmanager
def told(json: bool, options: Collection[str] = ()) -> Iterator[None]:
    """What is run inside ends in a sentence instead of a traceback, with `json` in an object, too. options: as
    `explain` has them."""
    try:
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the parser's word for a help screen
            raise
        raise typer.Exit(end(error, json, options)) from None
    finally:
        hush()


def explained(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command end as `told` has it. Its `json` parameter chooses the form."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if getattr(kwargs.get("context"), "invoked_subcommand", None) is not None:
            command(*args, **kwargs)  # the root ends it, which knows of a --json behind the command that follows
            return
        with told(bool(kwargs.get("json")), kwargs.keys()):
            command(*args, **kwargs)

    return run
