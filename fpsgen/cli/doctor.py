"""`fpsgen doctor`: what this machine has, what it can run, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable

import typer

from fpsgen.cli import errors
from fpsgen.cli.options import Json
from fpsgen.cli.output import Output, readable

Row = tuple[str, str]


@errors.explained
def doctor(json: Json = False) -> None:
    """Check what this machine has and can run, and try it. Exits with code 1 if something is broken."""
    out, report = Output(json), {}
    out.loading()
    from fpsgen import doctor

    for name, found in doctor.examine(strict=errors.show_tracebacks):
        report[name] = found
        if name in _SECTIONS:
            title, rows = _SECTIONS[name]
            out.line(title)
            for label, text in rows(found) if "fault" not in found else [("failed", found["fault"])]:
                out.line(f"  {label:17}{text}")
        out.loading("looking further")
    told = report["verdict"]
    for warning in told["warnings"]:
        out.note(warning)
    said = [f"Broken: {problem}." for problem in told["problems"]] or [told["can"]]
    out.result("\n".join(["", *said, f"Next: {told['next']}"]), report)
    if not told["works"]:
        raise typer.Exit(1)


def versions(found: dict) -> list[Row]:
    labels = {"python": "Python", "cupy": "CuPy", "nvrtc": "NVRTC", "huggingface_hub": "huggingface-hub"}
    rows = []
    for name, version in found["found"].items():
        if name == "torch_cuda":
            continue
        text = version or f"not installed: {found['absent'].get(name)}"
        if name in found["faults"]:
            text = f"cannot be used: {found['faults'][name]}"
        elif name == "torch" and version:
            cuda = found["found"]["torch_cuda"]
            text += f", for CUDA {cuda}" if cuda else ", without CUDA"
        rows.append((labels.get(name, name), text))
    return rows


def gpus(found: dict) -> list[Row]:
    rows = [("driver", f"for CUDA up to {found['driver_cuda']}")] if found["driver_cuda"] else []
    for device in found["devices"]:
        free = "?" if device["free_bytes"] is None else readable(device["free_bytes"])
        text = f"{device['name']}, compute capability {device['capability']}, {device['multiprocessors']} "
        text += f"multiprocessors, {free} of {readable(device['memory_bytes'])} free"
        rows.append((f"cuda:{device['index']}", text))
    return rows if found["devices"] else [*rows, ("none", found["why_none"])]


def kernel_cache(found: dict) -> list[Row]:
    state = f"cannot be used: {found['why_not']}" if found["why_not"] else "writable"
    return [("folder", f"{found['folder']} ({state})"), ("compiled", f"{found['count']}, {readable(found['bytes'])}")]


def model_cache(found: dict) -> list[Row]:
    rows = [("folder", f"{found['folder']} ({readable(found['free_bytes'])} free)")]
    for model in found["models"]:
        state = readable(model["bytes"]) if model["whole"] else model["state"]
        rows.append((model["name"], f"{model['format']}, {state}"))
    if not found["models"]:
        rows.append(("Wan2.1", "not here: fpsgen models pull 1.3b, or 14b"))
    rows.append(("pocket", "comes with fpsgen" if found["pocket"] else "damaged"))
    return rows


def attention(found: dict) -> list[Row]:
    rows = []
    for name, plan in found["plans"].items():
        rows.append((name, plan["backend"]))
        rows += [("", f"not {other}: {why}") for other, why in plan["refused"].items()]
    return rows


def compiled(found: dict) -> list[Row]:
    if found["state"] == "ok":
        return [(found["kernel"], f"{found['seconds']:.2f} s, {found['registers']} registers")]
    return [(found["kernel"], f"{found['state']}: {found['why']}")]


def launched(found: dict) -> list[Row]:
    if found["state"] == "ok":
        return [(name, f"right: relative error {error:.1e}") for name, error in found["errors"].items()]
    return [("kernels", f"{found['state']}: {found['why']}")]


_SECTIONS: dict[str, tuple[str, Callable[[dict], list[Row]]]] = {
    "versions": ("versions", versions),
    "gpus": ("GPUs", gpus),
    "kernel_cache": ("compiled kernels", kernel_cache),
    "model_cache": ("models", model_cache),
    "attention": ("attention at 832x480, 81 frames", attention),
    "compile": ("trial compilation", compiled),
    "launch": ("trial launch", launched),
}
