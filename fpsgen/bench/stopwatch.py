"""How long work takes on a device, and how fast a card's memory is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from statistics import median

import torch

from fpsgen import machine
from fpsgen.bench.record import MeasuredCard

_COPIED = 2**31  # bytes: many times the L2 cache
_FLUSHED = 2**28  # bytes: several times the L2 cache, 50 MB on an H100 and 60 on an H200
_LEAD = 2_000_000  # clocks, about a millisecond


def card(device: torch.device) -> MeasuredCard | None:
    """`machine.card`, with the bandwidth that is measured here; None for a CPU."""
    if device.type != "cuda":
        return None
    return MeasuredCard(**vars(machine.card(device)), copy_bytes_per_second=copy_bandwidth(device))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of torch's copy_ between two large tensors; the median of ten."""
    source = torch.zeros(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    milliseconds = Stopwatch(device).time([lambda: target.copy_(source)] * 12)[2:]  # without two to warm up
    return 2 * _COPIED / (median(milliseconds) / 1e3)


class Stopwatch:
    """Milliseconds of calls: on a CPU by its clock, on a card by CUDA events around each.

    On a card the calls follow one another without a pause, so that clock and temperature are those of work, and
    without what the one before left in the L2 cache. Before each the card idles for a millisecond: by then the CPU has
    queued all of the call's kernels, and what it took to do so is in no result.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.flush = torch.empty(_FLUSHED if device.type == "cuda" else 0, dtype=torch.uint8, device=device)

    def time(self, calls: Iterable[Callable[[], object]]) -> list[float]:
        """The time of each call, in this order."""
        if self.device.type != "cuda":
            clock = [time.perf_counter(), *((call(), time.perf_counter())[1] for call in calls)]
            return [1e3 * (after - before) for before, after in pairwise(clock)]
        marks = []
        with torch.cuda.device(self.device):  # whose stream events are recorded on
            for call in calls:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.flush.zero_()
                torch.cuda._sleep(_LEAD)
                begin.record()
                call()
                end.record()
                marks.append((begin, end))
            torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in marks]
