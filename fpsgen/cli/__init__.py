"""The command line. Importing it imports next to nothing: `main` listens to signals before anything else loads."""

from __future__ import annotations

import gc
import sys

from fpsgen.cli import signals

TYPE_CHECKING = False  # typing itself takes milliseconds, in which a Ctrl-C would be a traceback
if TYPE_CHECKING:
    from typing import Any

    from fpsgen.cli.streams import Unfailing


def main() -> None:
    """Entry point of the `fpsgen` script."""
    signals.listen()
    # Imports make a million objects that live for ever; looking through them all again and again, as Python does every
    # hundred collections or sooner, is a sixth of their time. `machine.release` looks when a component is dropped.
    gc.set_threshold(700, 10, 1000)
    code: Any = None
    out: Unfailing | None = None
    try:
        from fpsgen import timing
        from fpsgen.cli import streams

        timing.is_program()
        out = streams.guard()
        from fpsgen.cli.root import app

        app()
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        if not signals.came():
            raise
        from fpsgen.cli import errors

        code = errors.end(error, "--json" in sys.argv)  # while the rest was imported; in a command, it has said so
    if out and out.fault and not isinstance(out.fault, BrokenPipeError):  # a reader who left wanted no more
        from fpsgen.cli import errors

        code = code or errors.end(errors.undelivered(out.fault), json=False)
    signals.let_go()
    gc.freeze()  # or Python would look through a million objects for a third of a second, before the system takes all
    sys.exit(code)


def __getattr__(name: str) -> Any:
    if name == "app":  # all commands, for whoever runs them in a process of their own
        from fpsgen.cli.root import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
