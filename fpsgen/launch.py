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
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from fpsgen.errors import FpsgenError

_LAUNCHER = "FPSGEN_LAUNCHER"  # in the processes: who has started them, and at which port that waits for the first
_HERE = "127.0.0.1"
_PATIENCE = 15.0  # seconds that the others have to end, once one has; the first one to say why
_POLL = 0.1


def launch(command: Sequence[str], count: int, given: IO[bytes] | None = None, again: str | None = None) -> int:
    """Start `count` processes of a command and wait for their end; the exit code of the first, which alone speaks, and
    which the others follow once it is `ready`: what is wrong is refused by one process. given: a file, which each reads
    as its standard input. FpsgenError, with the hint `again`, where the first one was ended from outside, or does not
    notice that another was. Signals to this process go to the first one."""
    processes: list[subprocess.Popen[bytes]] = []
    with socket.socket() as free, socket.create_server((_HERE, 0)) as door:
        free.bind((_HERE, 0))
        port = free.getsockname()[1]
        free.close()
        shared = {
            **os.environ, "WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}", "MASTER_ADDR": _HERE,
            "MASTER_PORT": f"{port}", _LAUNCHER: f"{os.getpid()}:{door.getsockname()[1]}",
        }  # fmt: skip
        shared.setdefault("OMP_NUM_THREADS", f"{max(1, (os.cpu_count() or 1) // count)}")
        try:
            with _passed_on(processes):
                for rank in range(count):
                    processes.append(_start(command, shared, rank, given))
                    if rank == 0 and not _becomes_ready(processes[0], door):
                        break
                code = _first_to_end(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if code is None or code < 0:
        raise FpsgenError("a process of this run was ended, and so the others end, too", again)
    return code


def _start(
    command: Sequence[str], shared: Mapping[str, str], rank: int, given: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for the first one alone, and comes from here."""
    out = None if rank == 0 else subprocess.DEVNULL
    own = {**shared, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
    with open(given.name if given else os.devnull, "rb") as text:  # each reads it from its begin
        return subprocess.Popen(command, env=own, stdin=text, stdout=out, stderr=out, start_new_session=True)


def _becomes_ready(process: subprocess.Popen[bytes], door: socket.socket) -> bool:
    """Whether a process knocks at the door before it ends."""
    door.settimeout(_POLL)
    while process.poll() is None:
        with contextlib.suppress(TimeoutError):
            door.accept()[0].close()
            return True
    return False


def ready() -> None:
    """In the first process that `launch` has started: nothing is wrong with what was asked for, the others may come."""
    if _LAUNCHER in os.environ and os.environ["RANK"] == "0":
        socket.create_connection((_HERE, int(os.environ[_LAUNCHER].partition(":")[2]))).close()


def follow() -> None:
    """In a process that `launch` has started: end with whoever has started it, if that was killed."""
    launcher = int(os.environ.get(_LAUNCHER, "0").partition(":")[0])

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
