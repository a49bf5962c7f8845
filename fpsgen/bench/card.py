"""The CUDA card that a measurement runs on: what it is, what state it is in, how long its work takes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch

from fpsgen.bench import roofline
from fpsgen.bench.provenance import installed
from fpsgen.errors import FpsgenError
from fpsgen.kernels import nvrtc

_STATE = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
_LIMITS = ("clocks.max.sm", "power.limit")
_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")

_COPIED = 2**31  # bytes: many times the L2 cache
_FLUSHED = 2**28  # bytes: several times the L2 cache, 50 MB on an H100 and 60 on an H200
_LEAD = 2_000_000  # clocks, about a millisecond


def slug(name: str) -> str:
    """A card's name as part of a file's: h100, h200, or all of its words."""
    known = re.search(r"\b[HB]\d00\b", name)
    return known[0].lower() if known else re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe(device: torch.device) -> dict[str, Any]:
    """For the record: the card, its driver and libraries, and the clock and the bandwidth that rooflines assume."""
    properties = torch.cuda.get_device_properties(device)
    smi = query(device, ("driver_version", *_LIMITS)) or {}
    clock, source = boost_clock(device, smi)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": smi.get("driver_version"),
        "power_limit_w": number(smi.get("power.limit")),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cupy": next((found for name in _CUPY if (found := installed(name))), None),
        "triton": installed("triton"),
        "nvrtc": nvrtc_version(),
        "clock_hz": clock,
        "clock_source": source,
        "copy_bytes_per_second": copy_bandwidth(device),
    }


def is_alive(device: torch.device) -> bool:
    """Whether a card still computes for this process; after an illegal access it never does again."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def boost_clock(device: torch.device, smi: dict[str, str]) -> tuple[float, str]:
    """The highest clock of an SM in Hz, and who says so."""
    try:
        import cupy

        return cupy.cuda.Device(device.index).attributes["ClockRate"] * 1e3, "the device's ClockRate attribute"
    except (ImportError, KeyError, RuntimeError):  # no CuPy, no such attribute, or none of this card
        pass
    if found := number(smi.get("clocks.max.sm")):
        return found * 1e6, "nvidia-smi's clocks.max.sm"
    return roofline.DATASHEET_HZ, "an H100's datasheet"


def nvrtc_version() -> str | None:
    try:
        return "{}.{}".format(*nvrtc.version())
    except FpsgenError:
        return None


def state(device: torch.device) -> dict[str, float | None] | None:
    """Clocks (MHz), power (W) and temperature (°C) now; None without nvidia-smi. Nothing is set, ever."""
    found = query(device, _STATE)
    return None if found is None else {field: number(value) for field, value in found.items()}


def query(device: torch.device, fields: tuple[str, ...]) -> dict[str, str] | None:
    """What nvidia-smi says of a card."""
    # By its UUID: nvidia-smi counts all cards, torch those that CUDA_VISIBLE_DEVICES leaves.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    for chosen in ([f"--id=GPU-{uuid}"], []) if uuid else ([],):
        try:
            found = subprocess.run([*command, *chosen], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        values = [value.strip() for value in found.stdout.strip().split("\n")[0].split(",")]
        if not found.returncode and len(values) == len(fields):
            return dict(zip(fields, values, strict=True))
    return None


def number(text: str | None) -> float | None:
    """None for what nvidia-smi does not know: [N/A], [Not Supported]."""
    try:
        return float(text or "")
    except ValueError:
        return None


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of torch's copy_ between two large tensors; the median of ten."""
    source = torch.zeros(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    watch = Stopwatch(device)
    milliseconds = watch.time([lambda: target.copy_(source)] * 12)[2:]  # without two to warm up
    return 2 * _COPIED / (median(milliseconds) / 1e3)


class Stopwatch:
    """Milliseconds of calls on a device, by CUDA events around each.

    The calls follow one another without a pause, so that clock and temperature are those of work, and without what
    the one before left in the L2 cache. Before each the device idles for a millisecond: by then the CPU has queued
    all of the call's kernels, and what it took to do so is in no result.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.flush = torch.empty(_FLUSHED, dtype=torch.uint8, device=device)

    def time(self, calls: Iterable[Callable[[], object]]) -> list[float]:
        """The time of each call, in this order."""
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
