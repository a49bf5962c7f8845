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
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen import __version__, assets, files
from fpsgen.errors import FpsgenError, option
from fpsgen.kernels import cache, nvrtc

if TYPE_CHECKING:
    import torch

    from fpsgen.attention.plan import AttentionPlan

HEAD_DIM = 128  # Wan2.1's
TRIAL_KERNEL = "attention-fp8-fp16"
LARGEST_ERROR = 3e-3  # relative, of the kernel against its emulator, as in the tests: operands differ by a code or two


def examine(strict: bool = False) -> Iterator[tuple[str, dict]]:
    """The findings of each check as it ends, and last the verdict over all of them.

    A check that cannot be finished is found to be {"fault": why}; with `strict` its exception is raised.
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
    """found: versions by name, None where there is none; absent: the commands that install those; faults: what is
    there and cannot be used."""
    found: dict[str, str | None] = {"fpsgen": __version__, "python": platform.python_version()}
    found |= {"platform": platform.platform(), "torch_cuda": None}
    absent, faults = {}, {}
    for name, (version, command) in _PARTS.items():
        try:
            found[name] = version()
            if found[name] is None:
                absent[name] = command
        except Exception as fault:
            found[name], faults[name] = None, sentence(fault)
    if found["torch"]:
        try:
            import torch

            found["torch_cuda"] = torch.version.cuda
        except Exception as fault:
            faults["torch"] = sentence(fault)
    if str(found["torch_cuda"]).startswith("12."):
        absent = {name: command.replace("cuda13", "cuda12") for name, command in absent.items()}
    return {"found": found, "absent": absent, "faults": faults}


def installed(*names: str) -> str | None:
    """The version of the first of these packages that is installed."""
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def nvrtc_version() -> str | None:
    return "{}.{}".format(*nvrtc.version()) if nvrtc.found_library() else None


def ffmpeg_version() -> str | None:
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # not installed, or without a program
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_version()
    return None


_PARTS: dict[str, tuple[Callable[[], str | None], str]] = {
    "torch": (lambda: installed("torch"), "pip install torch"),
    "cupy": (lambda: installed("cupy-cuda13x", "cupy-cuda12x", "cupy"), 'pip install "fpsgen[cuda13]"'),
    "nvrtc": (nvrtc_version, 'pip install "fpsgen[cuda13]"'),
    "triton": (lambda: installed("triton", "triton-windows"), "it comes with torch for CUDA"),
    "diffusers": (lambda: installed("diffusers"), "pip install diffusers"),
    "transformers": (lambda: installed("transformers"), "pip install transformers"),
    "huggingface_hub": (lambda: installed("huggingface_hub"), "pip install huggingface_hub"),
    "ffmpeg": (ffmpeg_version, "pip install imageio-ffmpeg"),
}
_REQUIRED = ("torch", "diffusers", "transformers", "huggingface_hub", "ffmpeg")


def gpus() -> dict:
    """The CUDA devices that torch sees, or why_none. driver_cuda: the newest CUDA that the driver runs."""
    import torch

    from fpsgen import machine

    version, devices = nvrtc.driver_version(), []
    driver = version and "{}.{}".format(*version)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about, free = torch.cuda.get_device_properties(index), None
        with contextlib.suppress(RuntimeError):  # none is left to ask with
            free = machine.free_bytes(torch.device("cuda", index))
        devices.append(
            {
                "index": index,
                "name": about.name,
                "capability": f"{about.major}.{about.minor}",
                "memory_bytes": about.total_memory,
                "free_bytes": free,
                "multiprocessors": about.multi_processor_count,
            }
        )
    return {"devices": devices, "driver_cuda": driver, "why_none": None if devices else why_no_gpu(driver)}


def why_no_gpu(driver: str | None) -> str:
    import torch

    if torch.version.cuda is None:
        return "this torch was built without CUDA" + (", though there is an NVIDIA driver" if driver else "")
    if driver is None:
        return "there is no NVIDIA driver"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES={hidden!r} leaves torch none"
    try:
        torch.cuda.init()
    except Exception as fault:
        return sentence(fault)
    return "torch sees no CUDA GPU"


def machine() -> dict:
    """Memory and cores, the threads that torch takes of these."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    told = {"memory_bytes": memory.total, "free_bytes": memory.available}
    return told | {"cores": os.cpu_count(), "threads": torch.get_num_threads()}


def fits() -> dict:
    """For each model at its usual sizes: what its hungriest part needs (`wan.needs`), and whether that is free where
    commands run."""
    import torch

    from fpsgen import machine
    from fpsgen.wan import sizes
    from fpsgen.weights import models, needs

    device = best_device()
    free, dtype = 0, torch.bfloat16 if device.type == "cuda" else torch.float32
    with contextlib.suppress(RuntimeError):  # none is left to ask with
        free = machine.free_bytes(device)
    found = []
    for name, size in _FITS:
        model = models.absent(name)
        parts = needs.memory(model.checkpoint, (*sizes.NAMED[size], model.defaults.frames), dtype, torch.bfloat16)
        part = max(parts, key=lambda each: parts[each])
        told = {"model": name, "size": size, "part": part, "needs_bytes": parts[part], "parts": parts}
        found.append(told | {"fits": parts[part] <= free})
    return {"device": str(device), "free_bytes": free, "dtype": str(dtype).removeprefix("torch."), "models": found}


_FITS = (("1.3b", "480p"), ("14b", "480p"), ("14b", "720p"))


def work_cache() -> dict:
    """What calibrations and benches keep, so that a run that was stopped goes on: folders and bytes."""
    found = {name: assets.cache(name) for name in ("calibration", "bench")}
    return {"folders": [{"of": name, "folder": str(own), "bytes": cache.size(own)} for name, own in found.items()]}


def kernel_cache() -> dict:
    """Where compiled kernels are kept, why_not where nothing can be written there, and how much it holds."""
    folder = cache.folder()
    held = []
    with contextlib.suppress(OSError):  # why_not will tell
        held = [own for own in cache.contents().values() if own.folders]
    return {
        "folder": str(folder),
        "why_not": why_not_writable(folder),
        "count": len(held),
        "bytes": sum(own.size for own in held),
    }


def why_not_writable(folder: Path) -> str | None:
    """What speaks against writing into a folder, or making it; found by trying, of which nothing stays."""
    try:
        with tempfile.TemporaryFile(dir=assets.existing(folder)):
            return None
    except OSError as fault:
        return fault.strerror or str(fault)


def model_cache() -> dict:
    """Where downloaded models lie and what is free there; the named models that are on disk, in part or whole."""
    from huggingface_hub import constants

    from fpsgen.weights import hub, models

    folder = Path(constants.HF_HUB_CACHE)
    here = []
    for name, repositories in hub.REPOSITORIES.items():
        for form, repository in repositories.items():
            if (found := hub.look(repository)).state != "not here":
                told = {"name": name, "format": form, "folder": str(found.folder) if found.folder else None}
                size = found.checkpoint.bytes if found.checkpoint else None
                here.append({**told, "whole": found.state == "here", "bytes": size, "state": found.state})
    try:
        models.find(models.POCKET)
        pocket = True
    except FpsgenError:
        pocket = False
    return {
        "folder": str(folder),
        "free_bytes": shutil.disk_usage(assets.existing(folder)).free,
        "models": here,
        "pocket": pocket,
    }


def best_device() -> torch.device:
    """The one that commands take where none is named."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


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
    from fpsgen.attention.plan import AttentionPlan
    from fpsgen.attention.tiles import TileGrid

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

    told: dict[str, Any] = {"kernel": TRIAL_KERNEL, "state": "ok", "why": None, "seconds": None, "registers": None}
    try:
        with files.temporary_folder("doctor") as folder:
            begin = time.perf_counter()
            built = cache.build(listing.KERNELS[TRIAL_KERNEL].kernel, folder)
            seconds = round(time.perf_counter() - begin, 3)
        return told | {"seconds": seconds, "registers": built.functions["fps_attention"].registers}
    except nvrtc.NoCompilerError as missing:
        return told | {"state": "skipped", "why": str(missing)}
    except Exception as fault:
        return told | {"state": "failed", "why": sentence(fault)}


def trial_launch() -> dict:
    """Both kernels on the card, against their emulator. state and why as of `trial_compile`; errors: by plan.

    They are compiled into the cache, as `fpsgen generate` would.
    """
    import torch

    from fpsgen.attention import hopper

    if not torch.cuda.is_available():
        return {"state": "skipped", "why": "there is no CUDA GPU", "errors": {}}
    device = best_device()
    for plan in tiny_plans().values():
        if reason := hopper.why_not(device, plan, HEAD_DIM):
            return {"state": "skipped", "why": reason, "errors": {}}
    try:
        errors = relative_errors(device)
    except Exception as fault:
        return {"state": "failed", "why": sentence(fault), "errors": {}}
    if wrong := [f"{name} by {error:.2g}" for name, error in errors.items() if not error <= LARGEST_ERROR]:
        why = f"results are wrong, {', '.join(wrong)}; rounding explains {LARGEST_ERROR:g} at most"
        finite = {name: error if isfinite(error) else None for name, error in errors.items()}  # JSON has no NaN
        return {"state": "failed", "why": why, "errors": finite}
    return {"state": "ok", "why": None, "errors": errors}


def tiny_plans() -> dict[str, AttentionPlan]:
    """One for each kernel that plans reach, with tiles of all sizes, a window and a dense head."""
    from fpsgen.attention.plan import AttentionPlan
    from fpsgen.attention.tiles import TileGrid

    tiles = TileGrid.cut((2, 5, 9), (2, 3, 4))
    windows, heads = (tiles.fit((1, 1, 3)), None), (0, 1)
    return {
        "fp8": AttentionPlan(tiles, windows, heads, qk="fp8", pv="fp8"),
        "int8": AttentionPlan(tiles, windows, heads, qk="int8", pv="fp8"),
    }


def relative_errors(device: torch.device) -> dict[str, float]:
    """The errors of the hopper backend on `device`, by plan, against the emulator of its kernel on the CPU."""
    import torch

    from fpsgen.attention import emulator, hopper
    from fpsgen.attention.door import QKTransform, prepare

    errors = {}
    for name, plan in tiny_plans().items():
        generator = torch.Generator().manual_seed(1)
        shape = (1, plan.tiles.tokens, len(plan.heads), HEAD_DIM)
        q, k, v = (torch.randn(shape, generator=generator).bfloat16() for _ in range(3))
        norm_q, norm_k = torch.rand(2, len(plan.heads) * HEAD_DIM, generator=generator) + 0.5
        angles = torch.rand(plan.tiles.tokens, HEAD_DIM // 2, generator=generator) * 6
        rope = torch.stack([angles.cos(), angles.sin()], -1)
        here = QKTransform(norm_q, norm_k, 1e-6, rope)
        there = QKTransform(norm_q.to(device), norm_k.to(device), 1e-6, rope.to(device))
        variant = emulator.VARIANTS[hopper.FASTEST[plan.qk]]
        prepared = prepare(q, norm_q, here), prepare(k, norm_k, here), v
        with torch.no_grad():
            found = hopper.attention(q.to(device), k.to(device), v.to(device), there, plan).cpu().double()
        # With the bits that FP8 sums are known to keep, or with exact ones: whichever a card is nearer to.
        each = [
            emulator.emulate(*prepared, plan, variant, accumulator_bits=bits) for bits in (emulator.HOPPER_BITS, None)
        ]
        errors[name] = min(float((found - one.double()).norm() / one.double().norm()) for one in each)
    return errors


CHECKS: dict[str, Callable[[], dict]] = {
    "versions": versions,
    "machine": machine,
    "gpus": gpus,
    "fits": fits,
    "kernel_cache": kernel_cache,
    "work_cache": work_cache,
    "model_cache": model_cache,
    "attention": backends,
    "compile": trial_compile,
    "launch": trial_launch,
}


def verdict(report: dict[str, dict]) -> dict:
    """problems: what is broken, a sentence each; warnings: what is only worse; can: what runs; next: what to type."""
    problems, warnings = faults_in(report), []
    if why := report["kernel_cache"].get("why_not"):
        folder = report["kernel_cache"]["folder"]
        warnings.append(f"{folder} cannot be used ({why}): every command compiles its kernels anew")
    can, following = ability(report)
    if problems:
        absent = report["versions"].get("absent", {})
        commands = (absent[name] for name in _REQUIRED if name in absent)
        fallback = f"fpsgen {option('debug')} doctor, and report what it says"
        if report["compile"].get("state") == "failed":
            fallback = "fpsgen kernels build, which prints the compiler's log"
        following = next(commands, fallback)
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
    if report["compile"].get("state") == "failed":
        found.append(f"kernels do not compile: {report['compile']['why']}")
    if report["launch"].get("state") == "failed":
        found.append(f"the Hopper kernels fail on this GPU: {report['launch']['why']}")
    return found


def ability(report: dict[str, dict]) -> tuple[str, str]:
    """What this machine can run, and the next command to type, were nothing broken."""
    generate = 'fpsgen generate "a cat surfing"'
    devices, launch = report["gpus"].get("devices"), report["launch"]
    if not devices:
        why = report["gpus"].get("why_none") or "torch cannot be asked"
        return f"No CUDA GPU ({why}): fpsgen renders with the pocket model, on the CPU.", generate
    name, absent = devices[0]["name"], report["versions"].get("absent", {})
    cached = report["model_cache"].get("models", ())
    following = generate if any(model["whole"] for model in cached) else "fpsgen models pull 1.3b"
    if locked := [model["name"] for model in cached if model.get("state") == "unreadable"]:
        following = f"fpsgen models check {locked[0]}"  # which says what cannot be read; it lies there
    if launch.get("state") == "ok":
        return f"{name}: Hopper kernels ready.", following
    why = launch.get("why") or launch.get("fault")
    if devices[0]["capability"] == "9.0" and (command := absent.get("cupy") or absent.get("nvrtc")):
        return f"{name}: Wan2.1 runs, and the Hopper kernels would, but {why}.", command
    return f"{name}: Wan2.1 runs, without the Hopper kernels: {why}.", following
