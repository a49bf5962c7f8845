"""What this machine has: a value for each check, with its fields as JSON has them.

What may be missing or broken is imported by the check that asks for it, torch too: that it cannot be imported is a
finding. Defaults are what the verdict takes where a check failed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import __version__, assets, machine
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import FpsgenError
from fpsgen.kernels import cache, nvrtc
from fpsgen.machine import installed
from fpsgen.target import Target
from fpsgen.wan import sizes

if TYPE_CHECKING:
    import torch

HEAD_DIM = 128  # Wan2.1's
_FITS = (("1.3b", "480p"), ("14b", "480p"), ("14b", "720p"), ("2.2-14b", "720p"), ("5b", "720p"))


def sentence(fault: BaseException) -> str:
    """What an exception says, in one line."""
    while fault.__cause__:  # libraries that import lazily hide what failed behind their own error
        fault = fault.__cause__
    said = str(fault).strip().partition("\n")[0][:300]
    return said if isinstance(fault, FpsgenError) else f"{type(fault).__name__}: {said}"


@dataclass(frozen=True)
class Versions:
    """found: versions by name, None if there is none; absent: the commands that install those; faults: what is there
    and cannot be used."""

    found: dict[str, str | None] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def versions() -> Versions:
    found: dict[str, str | None] = {"fpsgen": __version__, "python": platform.python_version()}
    found["platform"] = platform.platform()
    absent: dict[str, str] = {}
    faults: dict[str, str] = {}
    for name, (version, command) in PARTS.items():
        try:
            found[name] = version()
            absent |= {} if found[name] else {name: command}
        except Exception as fault:
            found[name], faults[name] = None, sentence(fault)
    cuda = None
    if found["torch"]:
        try:
            import torch

            cuda = torch.version.cuda
        except Exception as fault:
            faults["torch"] = sentence(fault)
    if str(cuda).startswith("12."):
        absent = {name: command.replace("cuda13", "cuda12") for name, command in absent.items()}
    return Versions(found | {"torch_cuda": cuda}, absent, faults)


def nvrtc_version() -> str | None:
    return "{}.{}".format(*nvrtc.version()) if nvrtc.found_library() else None


def ffmpeg_version() -> str | None:
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # not installed, or without a program
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_version()
    return None


_LIBRARIES = ("torch", "diffusers", "transformers", "huggingface_hub")
REQUIRED = (*_LIBRARIES, "ffmpeg")
# How to ask for the version of each part, and the command that installs it.
PARTS: dict[str, tuple[Callable[[], str | None], str]] = {
    **{name: (partial(installed, name), f"pip install {name}") for name in _LIBRARIES},
    "ffmpeg": (ffmpeg_version, "pip install imageio-ffmpeg"),
    "cupy": (partial(installed, "cupy-cuda13x", "cupy-cuda12x", "cupy"), 'pip install "fpsgen[cuda13]"'),
    "nvrtc": (nvrtc_version, 'pip install "fpsgen[cuda13]"'),
    "triton": (partial(installed, "triton", "triton-windows"), "it comes with torch for CUDA"),
}


@dataclass(frozen=True)
class Memory:
    """Of the machine; cores: the CPU's; threads: how many of these torch uses."""

    memory_bytes: int
    free_bytes: int
    cores: int | None
    threads: int


def memory() -> Memory:
    import psutil
    import torch

    found = psutil.virtual_memory()
    return Memory(found.total, found.available, os.cpu_count(), torch.get_num_threads())


@dataclass(frozen=True)
class Gpu:
    """free_bytes: None if so little is free that it cannot be asked."""

    index: int
    name: str
    capability: str
    memory_bytes: int
    free_bytes: int | None
    multiprocessors: int


@dataclass(frozen=True)
class Gpus:
    """The CUDA devices that torch sees, or why_none. driver_cuda: the newest CUDA that the driver runs."""

    devices: Sequence[Gpu] = ()
    driver_cuda: str | None = None
    why_none: str | None = "torch cannot be asked"


def gpus() -> Gpus:
    import torch

    version, devices = nvrtc.driver_version(), []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about, free = torch.cuda.get_device_properties(index), free_on(torch.device("cuda", index))
        capability = f"{about.major}.{about.minor}"
        devices.append(Gpu(index, about.name, capability, about.total_memory, free, about.multi_processor_count))
    driver = version and "{}.{}".format(*version)
    return Gpus(devices, driver, None if devices else why_no_gpu(driver))


def free_on(device: torch.device) -> int | None:
    with contextlib.suppress(RuntimeError):
        return machine.free_bytes(device)
    return None


def why_no_gpu(driver: str | None) -> str:
    import torch

    if torch.version.cuda is None:
        return "this torch was built without CUDA" + (", though there is an NVIDIA driver" if driver else "")
    if driver is None:
        return "there is no NVIDIA driver"
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return f"CUDA_VISIBLE_DEVICES={hidden!r} hides all GPUs from torch"
    try:
        torch.cuda.init()
    except Exception as fault:
        return sentence(fault)
    return "torch sees no CUDA GPU"


@dataclass(frozen=True)
class ModelFit:
    """What each part of a model needs at a size, the part that needs most, and whether so much is free. least_bytes: of
    the largest part where blocks come one by one."""

    model: str
    size: str
    part: str
    needs_bytes: int
    parts: dict[str, int]
    fits: bool
    least_bytes: int


@dataclass(frozen=True)
class Fits:
    """Each model at its usual sizes, where commands run if no device is named."""

    device: str
    free_bytes: int
    dtype: str
    models: list[ModelFit]


def fits() -> Fits:
    import torch

    from fpsgen import residence
    from fpsgen.weights import models, needs

    device, found = machine.best_device(), []
    target = Target(device, torch.bfloat16 if device.type == "cuda" else torch.float32, torch.bfloat16)
    free = free_on(device) or 0
    for name, size in _FITS:
        model = models.absent(name)
        video = *sizes.of_model(*sizes.NAMED[size], model.defaults.stride), model.defaults.frames
        parts, in_blocks = needs.memory(model.checkpoint, video, target)
        part, most = max(parts.items(), key=lambda each: each[1])
        least = int(in_blocks / residence.SHARE)
        found.append(ModelFit(name, size, part, most, parts, most <= free, min(least, most)))
    return Fits(str(device), free, target.dtype_name, found)


@dataclass(frozen=True)
class KernelCache:
    """Where compiled kernels are kept, how much that holds, and why_not if nothing can be written there."""

    folder: str = ""
    why_not: str | None = None
    count: int = 0
    bytes: int = 0


def kernel_cache() -> KernelCache:
    folder, held, why_not = cache.folder(), [], None
    with contextlib.suppress(OSError):  # why_not will say so
        held = [own for own in cache.contents().values() if own.folders]
    try:
        with tempfile.TemporaryFile(dir=assets.existing(folder)):
            pass
    except OSError as fault:
        why_not = fault.strerror or str(fault)
    return KernelCache(str(folder), why_not, len(held), sum(own.size for own in held))


@dataclass(frozen=True)
class WorkFolder:
    """What one kind of work (`of`) keeps."""

    of: str
    folder: str
    bytes: int


@dataclass(frozen=True)
class WorkCache:
    """What calibrations and benches keep, so that a run that was stopped goes on; text embeddings of earlier videos."""

    folders: list[WorkFolder]


def work_cache() -> WorkCache:
    places = {name: assets.cache(name) for name in ("calibration", "bench", "texts")}
    return WorkCache([WorkFolder(name, str(folder), cache.size(folder)) for name, folder in places.items()])


@dataclass(frozen=True)
class CachedModel:
    """A model that is on disk, whole or in part; bytes: of a whole one."""

    name: str
    format: str
    folder: str | None
    whole: bool
    bytes: int | None
    state: str


@dataclass(frozen=True)
class ModelCache:
    """Where downloaded models lie, and what is free there. pocket: whether the pocket model can be used."""

    folder: str = ""
    free_bytes: int = 0
    models: Sequence[CachedModel] = ()
    pocket: bool = True


def model_cache() -> ModelCache:
    from huggingface_hub import constants

    from fpsgen.weights import hub, models

    here = []
    for name, form, cached in hub.known():
        if cached.state != "not here":
            folder = str(cached.folder) if cached.folder else None
            here.append(CachedModel(name, form, folder, cached.state == "here", cached.bytes, cached.state))
    try:
        pocket = bool(models.find(models.POCKET))
    except FpsgenError:
        pocket = False
    free = shutil.disk_usage(assets.existing(Path(constants.HF_HUB_CACHE))).free
    return ModelCache(constants.HF_HUB_CACHE, free, here, pocket)


@dataclass(frozen=True)
class PlanBackend:
    """The backend that would run a plan, and why those that are preferred would not."""

    plan: str
    backend: str
    refused: dict[str, str]


@dataclass(frozen=True)
class Backends:
    """What runs each typical plan, or the products in each format."""

    device: str
    plans: dict[str, PlanBackend]


def backends() -> Backends:
    from fpsgen.attention import door

    device, found = machine.best_device(), {}
    for name, plan in typical_plans().items():
        choice = door.choose(device, plan, HEAD_DIM)
        found[name] = PlanBackend(str(plan), choice.name, dict(choice.refused))
    return Backends(str(device), found)


def linear() -> Backends:
    """What multiplies in 8-bit linear layers of Wan2.1 14B."""
    from fpsgen.attention.quantize import LARGEST
    from fpsgen.wan.config import WAN_14B
    from fpsgen.wan.linear import choose

    device = machine.best_device()
    found: dict[str, PlanBackend] = {}
    for kind in LARGEST:
        choice = choose(device, kind, WAN_14B.dim, WAN_14B.ffn_dim)
        found[kind] = PlanBackend(f"linear layers {kind}", choice.name, dict(choice.refused))
    return Backends(str(device), found)


def typical_plans() -> dict[str, AttentionPlan]:
    """At 832x480 and 81 frames."""
    tiles = TileGrid.cut((21, 30, 52))
    sparse = (tiles.fit((3, 3, 5)),)
    return {
        "dense bf16": AttentionPlan(tiles),
        "dense fp8": AttentionPlan(tiles, qk="fp8", pv="fp8"),
        "sparse bf16": AttentionPlan(tiles, sparse),
        "sparse fp8": AttentionPlan(tiles, sparse, qk="fp8", pv="fp8"),
        "sparse int8": AttentionPlan(tiles, sparse, qk="int8", pv="fp8"),
    }
