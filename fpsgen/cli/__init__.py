"""The command line. Importing it imports next to nothing: `main` listens to signals before anything else loads."""

from __future__ import annotations

import sys
from typing import Any

from fpsgen.cli import signals, streams


def main() -> None:
    """Entry point of the `fpsgen` script."""
    signals.listen()
    out = streams.guard()
    code: Any = None
    try:
        from fpsgen.cli.root import app

        app()
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        if not signals.came():
            raise
        from fpsgen.cli import errors

        code = errors.end(error, "--json" in sys.argv)  # while the rest was imported; in a command, it has said so
    if out.fault and not isinstance(out.fault, BrokenPipeError):  # a reader who left wanted no more
        from fpsgen.cli import errors

        code = code or errors.end(errors.undelivered(out.fault), json=False)
    signals.let_go()
    sys.exit(code)


def __getattr__(name: str) -> Any:
    if name == "app":  # all commands, for whoever runs them in a process of their own
        from fpsgen.cli.root import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
