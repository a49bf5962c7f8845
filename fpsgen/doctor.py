"""What this machine has and what it can run: the checks behind `fpsgen doctor`.

Each check returns a plain dict and none ends the others. What may be missing or broken is imported by the check that
asks for it, torch too: that it cannot be imported is a finding.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import __version__, assets, files
from fpsgen.attention.plan import AttentionPlan, QKPrecision
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import FpsgenError, option
from fpsgen.kernels import cache, nvrtc
from fpsgen.machine import installed
from fpsgen.target import Target
from fpsgen.wan import sizes

if TYPE_CHECKING:
    import torch

HEAD_DIM = 128  # Wan2.1's
TRIAL_KERNEL = "attention-fp8-fp16"
LARGEST_ERROR = 3e-3  # relative, of the kernel against its emulator, as in the tests: operands differ by a code or two
_FITS = (("1.3b", "480p"), ("14b", "480p"), ("14b", "720p"))


def examine(strict: bool = False) -> Iterator[tuple[str, dict]]:
    """The findings of each check as it ends, and last the verdict over all of them.

    The findings of a check that fails are {"fault": why}; with `strict` its exception is raised.
    """
    report: dict[str, dict] = {}
    for name, check in CHECKS.items():
        try:
            report[name] = check()
        except Exception as fault:
            if strict:
                raise
            report[name] = {"fault": sentence(fault)}
        yield name, report[name]
    yield "verdict", verdict(report)


def sentence(fault: BaseException) -> str:
    """What an exception says, in one line."""
    while fault.__cause__:  # libraries that import lazily hide what failed behind their own error
        fault = fault.__cause__
    said = str(fault).strip().partition("\n")[0][:300]
    return said if isinstance(fault, FpsgenError) else f"{type(fault).__name__}: {said}"


def versions() -> dict:
    """found: versions by name, None if there is none; absent: the commands that install those; faults: what is there
    and cannot be used."""
    found: dict[str, str | None] = {"fpsgen": __version__, "python": platform.python_version()}
    found["platform"] = platform.platform()
    absent, faults = {}, {}
    for name, (version, command) in _PARTS.items():
        found[name] = None
        try:
            found[name] = version()
        except Exception as fault:
            faults[name] = sentence(fault)
        if not found[name] and name not in faults:
            absent[name] = command
    found["torch_cuda"] = None
    if found["torch"]:
        try:
            import torch

            found["torch_cuda"] = torch.version.cuda
        except Exception as fault:
            faults["torch"] = sentence(fault)
    if str(found["torch_cuda"]).startswith("12."):
        absent = {name: command.replace("cuda13", "cuda12") for name, command in absent.items()}
    return {"found": found, "absent": absent, "faults": faults}


def nvrtc_version() -> str | None:
    return "{}.{}".format(*nvrtc.version()) if nvrtc.found_library() else None


def ffmpeg_version() -> str | None:
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # not installed, or without a program
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_version()
    return None


_LIBRARIES = ("torch", "diffusers", "transformers", "huggingface_hub")
_REQUIRED = (*_LIBRARIES, "ffmpeg")
# How to ask for the version of each part, and the command that installs it.
_PARTS: dict[str, tuple[Callable[[], str | None], str]] = {
    **{name: (partial(installed, name), f"pip install {name}") for name in _LIBRARIES},
    "ffmpeg": (ffmpeg_version, "pip install imageio-ffmpeg"),
    "cupy": (partial(installed, "cupy-cuda13x", "cupy-cuda12x", "cupy"), 'pip install "fpsgen[cuda13]"'),
    "nvrtc": (nvrtc_version, 'pip install "fpsgen[cuda13]"'),
    "triton": (partial(installed, "triton", "triton-windows"), "it comes with torch for CUDA"),
}


def machine() -> dict:
    """Memory and cores, and how many threads torch uses."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    room = {"memory_bytes": memory.total, "free_bytes": memory.available}
    return room | {"cores": os.cpu_count(), "threads": torch.get_num_threads()}


def gpus() -> dict:
    """The CUDA devices that torch sees, or why_none. driver_cuda: the newest CUDA that the driver runs."""
    import torch

    version, devices = nvrtc.driver_version(), []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        device = {"index": index, "name": about.name, "capability": f"{about.major}.{about.minor}"}
        device |= {"memory_bytes": about.total_memory, "free_bytes": free_on(torch.device("cuda", index))}
        devices.append(device | {"multiprocessors": about.multi_processor_count})
    driver = version and "{}.{}".format(*version)
    return {"devices": devices, "driver_cuda": driver, "why_none": None if devices else why_no_gpu(driver)}


def free_on(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device; None if so little is free that it cannot be asked."""
    from fpsgen.machine import free_bytes

    with contextlib.suppress(RuntimeError):
        return free_bytes(device)
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


def best_device() -> torch.device:
    """The one that commands take if none is named."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def fits() -> dict:
    """For each model at its usual sizes: what its hungriest part needs (`weights.needs`), and whether that is free
    where commands run."""
    import torch

    from fpsgen.weights import models, needs

    device, found = best_device(), []
    target = Target(device, torch.bfloat16 if device.type == "cuda" else torch.float32, torch.bfloat16)
    free = free_on(device) or 0
    for name, size in _FITS:
        model = models.absent(name)
        parts = needs.memory(model.checkpoint, (*sizes.NAMED[size], model.defaults.frames), target)
        part, most = max(parts.items(), key=lambda each: each[1])
        own = {"model": name, "size": size, "part": part, "needs_bytes": most, "parts": parts, "fits": most <= free}
        found.append(own)
    return {"device": str(device), "free_bytes": free, "dtype": target.dtype_name, "models": found}


def work_cache() -> dict:
    """What calibrations and benches keep, so that a run that was stopped goes on: folders and bytes."""
    found = {name: assets.cache(name) for name in ("calibration", "bench")}
    return {"folders": [{"of": name, "folder": str(own), "bytes": cache.size(own)} for name, own in found.items()]}


def kernel_cache() -> dict:
    """Where compiled kernels are kept, how much that holds, and why_not if nothing can be written there."""
    folder, held, why_not = cache.folder(), [], None
    with contextlib.suppress(OSError):  # why_not will say so
        held = [own for own in cache.contents().values() if own.folders]
    try:
        with tempfile.TemporaryFile(dir=assets.existing(folder)):
            pass
    except OSError as fault:
        why_not = fault.strerror or str(fault)
    size = sum(own.size for own in held)
    return {"folder": str(folder), "why_not": why_not, "count": len(held), "bytes": size}


def model_cache() -> dict:
    """Where downloaded models lie and what is free there; the named models that are on disk, in part or whole."""
    from huggingface_hub import constants

    from fpsgen.weights import hub, models

    here = []
    for name, form, cached in hub.known():
        if cached.state != "not here":
            whole, size = cached.state == "here", cached.checkpoint and cached.checkpoint.bytes
            own = {"name": name, "format": form, "folder": cached.folder and str(cached.folder), "whole": whole}
            here.append(own | {"bytes": size, "state": cached.state})
    try:
        pocket = bool(models.find(models.POCKET))
    except FpsgenError:
        pocket = False
    folder = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(assets.existing(folder)).free
    return {"folder": str(folder), "free_bytes": free, "models": here, "pocket": pocket}


def backends() -> dict:
    """For each typical plan the backend that would run it, and why those that are preferred would not."""
    from fpsgen.attention import door

    device, found = best_device(), {}
    for name, plan in typical_plans().items():
        choice = door.choose(device, plan, HEAD_DIM)
        found[name] = {"plan": str(plan), "backend": choice.name, "refused": dict(choice.refused)}
    return {"device": str(device), "plans": found}


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


def trial_compile() -> dict:
    """One kernel compiled where it cannot have been before. state: ok, skipped or failed; why: if not ok."""
    from fpsgen.kernels import listing

    found = {"kernel": TRIAL_KERNEL, "state": "ok", "why": None, "seconds": None, "registers": None}
    try:
        with files.temporary_folder("doctor") as folder:
            begin = time.perf_counter()
            built = cache.build(listing.KERNELS[TRIAL_KERNEL].kernel, folder)
            seconds = round(time.perf_counter() - begin, 3)
        return found | {"seconds": seconds, "registers": built.functions["fps_attention"].registers}
    except nvrtc.NoCompilerError as missing:
        return found | {"state": "skipped", "why": str(missing)}
    except Exception as fault:
        return found | {"state": "failed", "why": sentence(fault)}


def trial_launch() -> dict:
    """Both kernels on the GPU, against their emulator. state and why as of `trial_compile`; errors: by plan.

    They are compiled into the cache, as `fpsgen generate` would.
    """
    import torch

    from fpsgen.attention import hopper

    device, plans = best_device(), tiny_plans()
    reasons = [hopper.why_not(device, plan, HEAD_DIM) for plan in plans.values()]
    if why := next(filter(None, reasons), None) if torch.cuda.is_available() else "there is no CUDA GPU":
        return {"state": "skipped", "why": why, "errors": {}}
    try:
        errors = {name: relative_error(device, plan) for name, plan in plans.items()}
    except Exception as fault:
        return {"state": "failed", "why": sentence(fault), "errors": {}}
    if wrong := [f"{name} {error:.2g}" for name, error in errors.items() if not error <= LARGEST_ERROR]:
        why = f"results are wrong: relative error {', '.join(wrong)}; rounding explains at most {LARGEST_ERROR:g}"
        finite = {name: error if isfinite(error) else None for name, error in errors.items()}  # JSON has no NaN
        return {"state": "failed", "why": why, "errors": finite}
    return {"state": "ok", "why": None, "errors": errors}


def tiny_plans() -> dict[str, AttentionPlan]:
    """One for each kernel that plans reach, with tiles of all sizes, a window and a dense head."""
    tiles = TileGrid.cut((2, 5, 9), (2, 3, 4))
    windows, heads = (tiles.fit((1, 1, 3)), None), (0, 1)
    kernels: tuple[QKPrecision, ...] = ("fp8", "int8")
    return {qk: AttentionPlan(tiles, windows, heads, qk=qk, pv="fp8") for qk in kernels}


def relative_error(device: torch.device, plan: AttentionPlan) -> float:
    """The error of the hopper backend on `device`, against the emulator of its kernel on the CPU."""
    import torch

    from fpsgen.attention import emulator, hopper
    from fpsgen.attention.qk import QKTransform, prepare

    generator, heads, tokens = torch.Generator().manual_seed(1), len(plan.heads), plan.tiles.tokens
    q, k, v = torch.randn(3, 1, tokens, heads, HEAD_DIM, generator=generator).bfloat16()
    norms = torch.rand(2, heads * HEAD_DIM, generator=generator) + 0.5
    angles = torch.rand(tokens, HEAD_DIM // 2, generator=generator) * 6
    rope = torch.stack([angles.cos(), angles.sin()], -1)
    here, there = (
        QKTransform(norms[0].to(where), norms[1].to(where), 1e-6, rope.to(where)) for where in ("cpu", device)
    )
    with torch.no_grad():
        found = hopper.attention(q.to(device), k.to(device), v.to(device), there, plan).cpu().double()
    given = prepare(q, here.norm_q, here), prepare(k, here.norm_k, here), v
    # With the bits that FP8 sums are known to keep, or with exact ones: whichever a GPU is nearer to.
    variant, every = emulator.VARIANTS[hopper.FASTEST[plan.qk]], (emulator.HOPPER_BITS, None)
    each = [emulator.emulate(*given, plan, variant, accumulator_bits=bits).double() for bits in every]
    return min(float((found - one).norm() / one.norm()) for one in each)


_BY_NAME = (versions, machine, gpus, fits, kernel_cache, work_cache, model_cache)
CHECKS: dict[str, Callable[[], dict]] = {
    **{check.__name__: check for check in _BY_NAME},
    "attention": backends,
    "compile": trial_compile,
    "launch": trial_launch,
}


def verdict(report: dict[str, dict]) -> dict:
    """problems: what is broken, a sentence each; warnings: what is only worse; can: what runs; next: what to type."""
    absent, problems, warnings = report["versions"].get("absent", {}), faults_in(report), []
    if why := report["kernel_cache"].get("why_not"):
        folder = report["kernel_cache"]["folder"]
        warnings.append(f"{folder} cannot be used ({why}): every command compiles its kernels again")
    can, following = ability(report)
    if problems:
        following = f"fpsgen {option('debug')} doctor, and report what it says"
        if report["compile"].get("state") == "failed":
            following = "fpsgen kernels build, which prints the compiler's log"
        following = next((absent[name] for name in _REQUIRED if name in absent), following)
    return {"works": not problems, "problems": problems, "warnings": warnings, "can": can, "next": following}


def faults_in(report: dict[str, dict]) -> list[str]:
    """What is broken, a sentence each."""
    absent, faults = (report["versions"].get(key, {}) for key in ("absent", "faults"))
    found = [f"{name} is not installed" for name in _REQUIRED if name in absent]
    found += [f"{name} cannot be used: {faults[name]}" for name in _REQUIRED if name in faults]
    if not found:  # else these may follow from it
        found += [f"the check of {name} failed: {own['fault']}" for name, own in report.items() if "fault" in own]
        if report["model_cache"].get("pocket") is False:
            found.append("the pocket model inside the package is damaged")
    for trial, broken in (("compile", "kernels do not compile"), ("launch", "the Hopper kernels fail on this GPU")):
        if report[trial].get("state") == "failed":
            found.append(f"{broken}: {report[trial]['why']}")
    return found


def ability(report: dict[str, dict]) -> tuple[str, str]:
    """What this machine can run, and the next command to type if nothing is broken."""
    following = 'fpsgen generate "a cat surfing"'
    devices, launch = report["gpus"].get("devices"), report["launch"]
    if not devices:
        why = report["gpus"].get("why_none") or "torch cannot be asked"
        return f"No CUDA GPU ({why}): fpsgen renders with the pocket model, on the CPU.", following
    name, absent = devices[0]["name"], report["versions"].get("absent", {})
    cached = report["model_cache"].get("models", ())
    if locked := [model["name"] for model in cached if model.get("state") == "unreadable"]:
        following = f"fpsgen models check {locked[0]}"  # which says what cannot be read; it lies there
    elif not any(model["whole"] for model in cached):
        following = "fpsgen models pull 1.3b"
    if launch.get("state") == "ok":
        return f"{name}: Hopper kernels ready.", following
    why = launch.get("why") or launch.get("fault")
    if devices[0]["capability"] == "9.0" and (command := absent.get("cupy") or absent.get("nvrtc")):
        return f"{name}: Wan2.1 runs. The hopper backend would run too, but {why}.", command
    return f"{name}: Wan2.1 runs, but without the hopper backend: {why}.", following
