"""Signals that ask the program to stop. None is lost, and none cuts the clean-up short that another began.

This module is loaded before everything else, so it imports next to nothing.
"""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False  # as in `fpsgen.cli`
if TYPE_CHECKING:
    from collections.abc import Callable
    from sys import UnraisableHookArgs
    from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_FATAL = 3  # the third of them ends the process at once, whatever it is doing

_came: list[int] = []
_lost = False  # whether the exception of a signal was swallowed, as in a destructor, or has not been raised yet
_first: Callable[[], object] | None = None  # what the first signal calls, instead of raising


def listen() -> None:
    """Let each of these signals raise KeyboardInterrupt in the main thread, as Ctrl-C does."""
    global _lost, _first
    _came.clear()
    _lost, _first = False, None
    for number in _numbers():
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and shells in the background have some ignored
            signal.signal(number, _stop)
    sys.unraisablehook = _swallowed


def let_go() -> None:
    """The work is over: while Python shuts down, a first signal may end the process at once and silently."""
    for number in _numbers():
        if not _came and signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)
    # Where KeyboardInterrupt left an `exec`, as imports run many, Python would end itself by SIGINT instead of with our
    # exit code, though it was caught (`python -m` alone does). The next `exec` takes that back.
    exec("")


def check() -> None:
    """KeyboardInterrupt where a signal came whose own exception was lost. To be called between pieces of work."""
    global _lost
    if _came:
        _lost = False
        raise KeyboardInterrupt


def hold(first: Callable[[], object] | None) -> None:
    """From here on the first signal calls this, raises nothing, and ends the work at the next `check`; the second one
    raises. None: the first one raises again."""
    global _first
    _first = first


def came() -> bool:
    return bool(_came)


def exit_code() -> int:
    """128 and the number of the first signal, as shells have it; Ctrl-C's where there was none."""
    return 128 + (_came[0] if _came else signal.SIGINT)


def _numbers() -> list[signal.Signals]:
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # Windows has no SIGHUP


def _stop(number: int, frame: FrameType | None) -> None:
    global _lost
    _came.append(number)
    if len(_came) >= _FATAL:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    if len(_came) == 1 and _first is not None:
        _lost = True
        _first()
    elif len(_came) == 1 or _lost:
        _lost = False
        raise KeyboardInterrupt


def _swallowed(fault: UnraisableHookArgs) -> None:
    """Python prints what was raised where nothing can be: in a destructor, in what runs around a fork."""
    global _lost
    if _came and isinstance(fault.exc_value, KeyboardInterrupt):
        _lost = True  # and `check` raises it again
    else:
        sys.__unraisablehook__(fault)
