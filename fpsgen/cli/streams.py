"""stdout and stderr that never end the work, whatever becomes of the disk, the pipe or the terminal behind them."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from typing import Any, TextIO, cast

_AS_IT_CAME = "fpsgen.as-it-came"


def _as_it_came(fault: UnicodeError) -> tuple[bytes, int]:
    """What a locale has no letter for: a byte of a file's name stays that byte, so that the name can be used; the rest
    is escaped."""
    assert isinstance(fault, UnicodeEncodeError)
    lacking = fault.object[fault.start : fault.end]
    return b"".join(
        bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else c.encode("ascii", "backslashreplace")
        for c in lacking
    ), fault.end  # fmt: skip


codecs.register_error(_AS_IT_CAME, _as_it_came)


class Unfailing:
    """A text stream. What it cannot write is dropped; `fault` is the first reason."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.fault: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as fault:  # a ValueError where it was closed
            self.fault = self.fault or fault
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as fault:
            self.fault = self.fault or fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> Unfailing:
    """Make both unfailing; stdout is returned, whose `fault` says whether a result was lost."""
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no file of Python's, or closed
            stream.reconfigure(errors=_AS_IT_CAME)  # type: ignore[union-attr]
    out = Unfailing(sys.stdout)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, Unfailing(sys.stderr))
    return out


def _open_closed() -> None:
    """Open what our parent closed, so that no video or checkpoint gets its number, and what libraries print.

    As in gnulib, in the direction that cannot be used: whoever writes there is told so, as on a closed one.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, flags)  # the lowest free number
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open to the end)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
