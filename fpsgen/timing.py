"""The one record of where time went. Table, JSON and video metadata are three faces of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("load", "text", "compile", "denoise", "decode", "encode")


@dataclass
class Timings:
    """Seconds per stage, from the moment the record is made. Stages do not overlap."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    steps: list[float] = field(default_factory=list)
    total: float = 0.0
    peak_memory: int | None = None  # bytes: allocated on the GPU; on a CPU resident, mapped weights included
    _started: float = field(default_factory=time.perf_counter)
    _paused: float = 0.0

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

    def as_dict(self) -> dict:
        """Rounded to milliseconds, for JSON."""
        mean = sum(self.steps) / len(self.steps) if self.steps else None
        return {
            **{name: round(seconds, 3) for name, seconds in self.seconds.items()},
            "step_mean": None if mean is None else round(mean, 4),
            "steps": [round(seconds, 4) for seconds in self.steps],
            "total": round(self.total, 3),
            "peak_memory_bytes": self.peak_memory,
        }
