"""The one record of where time went. Table, JSON and video metadata are three faces of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

STAGES = ("load", "text", "compile", "denoise", "decode", "encode")


@dataclass(frozen=True, kw_only=True)
class RunTimes:
    """`Timings` as JSON has them: seconds, rounded; None for what was not measured."""

    load: float | None
    text: float
    compile: float | None
    denoise: float
    decode: float
    encode: float | None
    step_mean: float | None
    steps: list[float]
    total: float
    peak_memory_bytes: int | None

    def of(self, stage: str) -> float | None:
        """The seconds of a stage, or of all together: "total"."""
        return getattr(self, stage)


@dataclass
class Timings:
    """Seconds per stage, from the moment the record is made, or from its process's begin, see `of_process`. Stages do
    not overlap."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    steps: list[float] = field(default_factory=list)
    total: float = 0.0
    peak_memory: int | None = None  # bytes: allocated on the GPU; on a CPU resident, mapped weights included
    _started: float = field(default_factory=time.perf_counter)
    _paused: float = 0.0

    @staticmethod
    def of_process() -> Timings:
        """A record from the moment that the system began this process, if it is a program of its own (`is_program`).
        What is over is part of the load."""
        timings = Timings()
        if _began is not None:
            timings.seconds["load"] = timings._started - _began
            timings._started = _began
        return timings

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what runs inside to a stage; one stage may be entered many times."""
        begin, paused = time.perf_counter(), self._paused
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin - (self._paused - paused)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What runs inside is nobody's time: neither the total's nor a surrounding stage's."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def stop(self) -> None:
        self.total = time.perf_counter() - self._started - self._paused

    def rounded(self) -> RunTimes:
        """To milliseconds, for JSON."""
        return RunTimes(
            **{name: round(seconds, 3) for name, seconds in self.seconds.items()},
            step_mean=round(sum(self.steps) / len(self.steps), 4) if self.steps else None,
            steps=[round(seconds, 4) for seconds in self.steps],
            total=round(self.total, 3),
            peak_memory_bytes=self.peak_memory,
        )

    def as_dict(self) -> dict:
        return asdict(self.rounded())


@contextmanager
def of_all(videos: Sequence[Timings], stage: str) -> Iterator[None]:
    """What runs inside is part of a stage of all videos."""
    with ExitStack() as stack:
        for timings in videos:
            stack.enter_context(timings.stage(stage))
        yield


@contextmanager
def of_one(videos: Sequence[Timings], number: int) -> Iterator[None]:
    """What runs inside is the time of one video, and of no other."""
    with ExitStack() as stack:
        for timings in (*videos[:number], *videos[number + 1 :]):
            stack.enter_context(timings.pause())
        yield


_began: float | None = None  # by the clock of `perf_counter`
_LONGEST = 600  # seconds that a start may take; some sandboxes tell how long ago they began themselves


def is_program() -> None:
    """The process does nothing but the one command that begins now."""
    global _began
    _began = time.perf_counter()
    with suppress(OSError, ValueError, IndexError):  # where the system does not tell, the record begins here
        age = _age()
        _began -= age if 0 < age < _LONGEST else 0


def _age() -> float:
    """Seconds, to a hundredth, since the system began this process."""
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux, where psutil knows it to a second only
        ticks = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    import psutil

    return time.time() - psutil.Process().create_time()
