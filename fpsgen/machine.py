"""The machine that work runs on: memory, processor, cards, versions, and what a measurement says of all that.

A card is a CUDA GPU. torch is imported only where a device is looked at.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen import __version__
from fpsgen.errors import FpsgenError

if TYPE_CHECKING:
    import torch

_HERE = Path(__file__).resolve()
_CPUS = Path("/proc/cpuinfo")  # only Linux has it
_MEASURING = ("flash_attn", "flash_attn_3", "sageattention", "lpips")  # packages that are measured, or measure
_STATE = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # parameters of GNU's mallopt, from its malloc.h
_DATASHEET_HZ = 1.83e9  # of an H100 or H200 SXM

# ---- memory ---------------------------------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated; of a CPU's, this process's part where others render beside it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    beside = os.environ.get("LOCAL_WORLD_SIZE", "")
    return psutil.virtual_memory().available // (max(1, int(beside)) if beside.isdecimal() else 1)


def release() -> None:
    """Give back what dropped modules held, to the device as well."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def reuse_memory() -> None:
    """Keep memory that tensors on a CPU give back for the next ones, up to 1 GiB. Left alone, GNU's malloc gives large
    blocks back to the system, which clears every page of them anew: a fifth of a step's time, a third of a decoded
    frame's. Your own MALLOC_… settings win."""
    if (libc := _glibc()) is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    # One arena, because those of other threads hold no block above 32 MiB.
    for parameter, value in ((_M_MMAP_THRESHOLD, 2**28), (_M_TRIM_THRESHOLD, 2**30), (_M_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)


def _glibc() -> ctypes.CDLL | None:
    """GNU's C library, where this process runs on it."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def settle() -> None:
    """Leave all that exists now, above all what imports have made, out of later collections: `release` then takes
    milliseconds instead of a quarter of a second."""
    gc.freeze()


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.init()  # with an explicit index, torch does not do it here by itself
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most that was allocated on a GPU since `reset_peak`; elsewhere the process's largest resident set."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---- devices --------------------------------------------------------------------------------------------------------


def best_device() -> torch.device:
    """The one that commands take if none is named."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 take much less time than in float32: on GPUs since Ampere."""
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock can be read."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def is_alive(device: torch.device) -> bool:
    """Whether a device still computes for this process; after an illegal access, a card never does again."""
    try:
        synchronise(device)
    except RuntimeError:
        return False
    return True


def device_name(device: torch.device) -> str:
    """A card's name, or the kind of another device."""
    if device.type != "cuda":
        return device.type
    import torch

    return torch.cuda.get_device_name(device)


def slug(name: str) -> str:
    """A card's name as part of a file's: h100, h200, or all of its words."""
    known = re.search(r"\b[HB]\d00\b", name)
    return known[0].lower() if known else re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card, its highest clock, its driver and libraries; None for what is not known."""

    gpu: str
    capability: str
    multiprocessors: int
    memory_bytes: int | None = None
    l2_bytes: int
    driver: str | None
    power_limit_w: float | None
    cuda: str | None
    cudnn: int | None
    cupy: str | None
    triton: str | None
    nvrtc: str | None
    clock_hz: float
    clock_source: str


def card(device: torch.device) -> Card:
    import torch

    properties = torch.cuda.get_device_properties(device)
    smi = _query(device, ("driver_version", "clocks.max.sm", "power.limit"))
    megahertz = _number(smi.get("clocks.max.sm"))
    return Card(
        gpu=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        l2_bytes=properties.L2_cache_size,
        driver=smi.get("driver_version"),
        power_limit_w=_number(smi.get("power.limit")),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        cupy=installed("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        triton=installed("triton"),
        nvrtc=_nvrtc_version(),
        clock_hz=megahertz * 1e6 if megahertz else _DATASHEET_HZ,
        clock_source="nvidia-smi's clocks.max.sm" if megahertz else "an H100's datasheet",
    )


def card_state(device: torch.device) -> dict[str, float | None] | None:
    """A card's clocks (MHz), power (W) and temperature (°C) now; None without nvidia-smi. Nothing is ever set."""
    return {field: _number(value) for field, value in _query(device, _STATE).items()} or None


def _query(device: torch.device, fields: tuple[str, ...]) -> dict[str, str]:
    """What nvidia-smi says of a card; empty where there is none, or it fails."""
    import torch

    # By its UUID: nvidia-smi counts all cards, torch those that CUDA_VISIBLE_DEVICES leaves.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    for chosen in ([f"--id=GPU-{uuid}"], []) if uuid else ([],):
        values = [value.strip() for value in _printed([*command, *chosen]).split("\n")[0].split(",")]
        if len(values) == len(fields):
            return dict(zip(fields, values, strict=True))
    return {}


def _number(text: str | None) -> float | None:
    """None for what nvidia-smi does not know: [N/A], [Not Supported]."""
    try:
        return float(text or "")
    except ValueError:
        return None


def _nvrtc_version() -> str | None:
    from fpsgen.kernels import nvrtc

    try:
        return "{}.{}".format(*nvrtc.version())
    except FpsgenError:
        return None


# ---- where a figure comes from --------------------------------------------------------------------------------------


def provenance(command: list[str]) -> dict[str, Any]:
    """How every record begins: date, commit, command, machine and versions; None for what the system does not tell."""
    machine = {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "python": platform.python_version(),
        **{name: installed(name) for name in ("torch", "diffusers", "transformers")},
        "fpsgen": __version__,
        **{name: found for name in _MEASURING if (found := installed(name))},
    }
    return {"date": str(date.today()), "commit": _commit(), "command": command, "machine": machine}


def installed(*names: str) -> str | None:
    """The version of the first of these packages that is installed."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return None


def _commit() -> str | None:
    """The commit of this file's tree, marked where it was changed since; of an installed copy, or without git, what
    FPSGEN_COMMIT says, else None."""
    git = ["git", "-C", str(_HERE.parent)]
    # A virtual environment may lie in somebody's repository, whose commit is not ours: it does not track this file.
    ours = _printed([*git, "ls-files", _HERE.name])
    commit = _printed([*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]) if ours else ""
    return commit or os.environ.get("FPSGEN_COMMIT") or None


def _printed(command: list[str]) -> str:
    """What another program prints; nothing where it is absent, fails, or takes 20 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.strip()


def _memory_bytes() -> int | None:
    try:
        import psutil
    except ImportError:  # a machine for measurements may have torch and little else
        return None
    return psutil.virtual_memory().total


def _processor() -> str | None:
    try:
        lines = _CPUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or None
