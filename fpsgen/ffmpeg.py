"""ffmpeg as a child: tried, fed, never waited for without end, and heard when it dies. imageio-ffmpeg provides it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO

import imageio_ffmpeg

from fpsgen.errors import UsageError, reason
from fpsgen.printable import printable

# Seconds that ffmpeg may take for one frame, or for the end of a file. A busy machine may need minutes for what x264
# has put off of a 4096x4096 video.
LIMIT = 1200
_KEPT = 8192  # bytes of what it says
_FULL = ("No space left on device", "Disk quota exceeded")  # ffmpeg speaks English in every locale

# A group of its own: Ctrl-C is for us alone, and whatever a script in ffmpeg's place has started is ended with it.
_GROUP = None if os.name == "nt" else 0
_FLAGS = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)  # Windows


class FfmpegError(Exception):
    """How ffmpeg ended, in its own last words. full: whether the disk was."""

    def __init__(self, message: str, full: bool = False):
        super().__init__(message)
        self.full = full


def executable() -> str:
    """The ffmpeg that imageio-ffmpeg brings, or that IMAGEIO_FFMPEG_EXE names; UsageError where there is none."""
    try:
        found = shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        found = None
    if found is None:
        if own := os.environ.get("IMAGEIO_FFMPEG_EXE"):
            told = f"IMAGEIO_FFMPEG_EXE names {printable(own)}, which is no program that can be run"
            raise UsageError(told, hint="unset it to use the ffmpeg that came with fpsgen")
        raise UsageError(
            "there is no ffmpeg to write videos with",
            hint="pip install --force-reinstall imageio-ffmpeg, or let IMAGEIO_FFMPEG_EXE name one",
        )
    return found


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Signals that end a command wait until this is over: one that arrives while a child is forked may raise where
    Python can only ignore it, and one between two steps that belong together would leave half of them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    came: list[int] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


class Ffmpeg:
    """A running ffmpeg, which reads its standard input. Whoever leaves it before `finish` ends it at once.

    arguments: without the program. limit: as LIMIT. FfmpegError, here and below, where it cannot start, fails, or takes
    too long.
    """

    _process: subprocess.Popen[bytes]

    def __init__(self, arguments: Sequence[str], limit: int | None = None):
        self._limit, self._hung, self._said = limit or LIMIT, False, b""
        command = [executable(), "-hide_banner", "-v", "error", *arguments]
        try:
            with signals_held():
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    process_group=_GROUP, creationflags=_FLAGS,
                )  # fmt: skip
                self._stdin: IO[bytes] = self._process.stdin  # type: ignore[assignment]
                # A full pipe would stop it, so that somebody must listen all the time.
                self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
                self._listener.start()
        except OSError as fault:
            raise FfmpegError(f"{printable(command[0])} cannot be started: {reason(fault)}") from None
        except BaseException:  # a signal that waited
            if hasattr(self, "_process"):
                self._end()
            raise

    def __enter__(self) -> Ffmpeg:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._end()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()

    def feed(self, data: bytes | memoryview) -> None:
        """Bytes for its standard input."""
        try:
            with self._watched():
                self._stdin.write(data)
        except OSError:
            raise self._failure() from None

    def finish(self) -> None:
        """No more input: wait until the file is complete."""
        if self._wait() or self._hung:
            raise self._failure()

    def _wait(self) -> int:
        with self._watched():
            with contextlib.suppress(OSError):
                self._stdin.close()
            return self._process.wait()

    def _failure(self) -> FfmpegError:
        code = self._wait()
        self._listener.join(1)  # longer only where a grandchild has its end of the pipe
        if self._hung:
            return FfmpegError(f"it was not done after {self._limit} seconds and was ended")
        said = self._said.decode("utf-8", "replace")
        lines = list(dict.fromkeys(re.sub(r"^(\[[^\]]*\] *)+", "", line).strip() for line in said.splitlines()))
        lines = [line.rstrip(".") for line in lines if line]
        full = [line for line in lines if any(words in line for words in _FULL)]
        if full:
            told = f"the disk is full: {full[0]}"
        elif lines:  # the first says what was wrong, the last what came of it
            told = "; ".join(dict.fromkeys((lines[0], lines[-1])))
        else:
            told = f"signal {-code} ended it" if code < 0 else f"it exited with code {code} and said nothing"
        return FfmpegError(printable(told, most=300), bool(full))

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            for piece in iter(lambda: stream.read1(_KEPT), b""):  # type: ignore[attr-defined]
                self._said = (self._said + piece)[-_KEPT:]

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End ffmpeg where what is done here takes too long, which also wakes whoever waits for its pipe."""
        over = threading.Event()

        def watch() -> None:
            for _ in range(self._limit):  # by the second: a sleeping machine or a stopped job is no hanging ffmpeg
                if over.wait(1):
                    return
            self._hung = True
            self._end()

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)


def run(arguments: Sequence[str], given: bytes, limit: int | None = None) -> None:
    """ffmpeg from start to end, with `given` on its standard input."""
    with Ffmpeg(arguments, limit) as running:
        running.feed(given)
        running.finish()
