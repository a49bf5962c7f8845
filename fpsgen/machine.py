"""What a device has left, and what was taken from it."""

from __future__ import annotations

import gc
import sys

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def release() -> None:
    """Give back what dropped modules held, to the device as well."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def settle() -> None:
    """Leave all that exists now, above all what imports have made, out of later collections: `release` then takes
    milliseconds instead of a quarter of a second."""
    gc.freeze()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.init()  # with an explicit index, torch does not do it here by itself
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Allocated at most on a GPU since `reset_peak`; elsewhere the process's largest resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
