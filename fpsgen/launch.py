"""One command in several processes on this machine, which find each other as torchrun's do; without torch, and ended as
one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO

from fpsgen.errors import FpsgenError

_LAUNCHER = "FPSGEN_LAUNCHER"  # in the processes: who has started them
_PATIENCE = 15.0  # seconds that the others have to end, once one has; the first one to say why
_POLL = 0.1


def launch(command: Sequence[str], count: int, given: IO[bytes] | None = None, again: str | None = None) -> int:
    """Start `count` processes of a command and wait for their end; the exit code of the first, which alone speaks.
    given: a file, which each reads as its standard input. FpsgenError, with the hint `again`, where the first one was
    ended from outside, or does not notice that another was. Signals to this process go to the first one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}", _LAUNCHER: f"{os.getpid()}",
    }  # fmt: skip
    shared.setdefault("OMP_NUM_THREADS", f"{max(1, (os.cpu_count() or 1) // count)}")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with _passed_on(processes):
            for rank in range(count):
                out = None if rank == 0 else subprocess.DEVNULL
                own = shared | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
                text = subprocess.DEVNULL if given is None else open(given.name, "rb")  # noqa: SIM115 (each its own)
                # Sessions of their own: Ctrl-C is for the first one alone, and comes from here.
                processes.append(
                    subprocess.Popen(command, env=own, stdin=text, stdout=out, stderr=out, start_new_session=True)
                )
                if not isinstance(text, int):
                    text.close()
            code = _first_to_end(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if code is None or code < 0:
        raise FpsgenError("a process of this run was ended, and so the others end, too", again)
    return code


def follow() -> None:
    """In a process that `launch` has started: end with whoever has started it, if that was killed."""
    launcher = int(os.environ.get(_LAUNCHER, "0"))

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(5 * _POLL)
        os._exit(1)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


def _first_to_end(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The exit code of the first process; None if it does not end, though another did."""
    left = None
    while left is None or time.monotonic() < left:
        codes = [process.poll() for process in processes]
        if codes[0] is not None and (codes[0] != 0 or None not in codes):
            return codes[0]
        if left is None and any(code is not None for code in codes):
            left = time.monotonic() + _PATIENCE
        time.sleep(_POLL)
    return processes[0].poll()


@contextlib.contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Signals that ask this process to stop go to the first of the others."""

    def to_first(number: int, frame: FrameType | None) -> None:
        if processes:
            processes[0].send_signal(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, to_first) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
