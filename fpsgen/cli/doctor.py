"""`fpsgen doctor`: what this machine has, what it can run, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import typer

from fpsgen.cli import errors
from fpsgen.cli.output import Output, in_flags
from fpsgen.printable import readable
from fpsgen.tables import Table

Row = tuple[str, str]


def doctor(json: bool = False) -> None:
    """Check what this machine has and can run, and try it. Exits with code 1 if something is broken."""
    out, report = Output(json), {}
    out.loading()
    from fpsgen import doctor

    out.loading("checking")
    for name, found in doctor.examine(strict=errors.show_tracebacks):
        report[name] = found
    told = report.pop("verdict")
    told["next"] = in_flags(told["next"])
    for line in [*(f"Broken: {problem}." for problem in told["problems"])] or [told["can"]]:
        out.line(line)
    out.line(f"Next: {told['next']}", copied=True)
    if not json:
        for title, table in sections(report):
            out.line(f"\n{title}")
            out.show(table)
    for warning in told["warnings"]:
        out.note(warning)
    if json:
        out.result("", {"verdict": told} | report)
    if not told["works"]:
        raise typer.Exit(1)


def sections(report: dict[str, dict]) -> Iterator[tuple[str, Table]]:
    """What was found, by title."""
    for name, (title, rows) in _SECTIONS.items():
        found, table = report[name], Table(heads=False)
        table.column("")
        table.column("", prose=True)
        for label, text in rows(found) if "fault" not in found else [("failed", found["fault"])]:
            table.row(f"  {label:15}", text)
        yield title, table


def machine(found: dict) -> list[Row]:
    free, whole = readable(found["free_bytes"]), readable(found["memory_bytes"])
    threads = f"{found['cores']}, of which PyTorch uses {found['threads']}"
    return [("memory", f"{free} of {whole} free"), ("CPU cores", threads)]


def fits(found: dict) -> list[Row]:
    free, rows = found["free_bytes"], []
    for one in found["models"]:
        need = readable(one["needs_bytes"])
        state = "fits" if one["fits"] else f"needs {readable(one['needs_bytes'] - free)} more"
        rows.append((f"{one['model']} at {one['size']}", f"{state}: the {one['part']} takes {need} of memory"))
    where = f"{readable(free)} free on {found['device']}"
    return [*rows, ("estimated", f"for 81 frames in {found['dtype']}, with {where}; one part is in memory at a time")]


def versions(found: dict) -> list[Row]:
    labels = {"python": "Python", "cupy": "CuPy", "nvrtc": "NVRTC", "huggingface_hub": "huggingface-hub"}
    rows = []
    for name, version in found["found"].items():
        if name == "torch_cuda":
            continue
        use = " (of use only with an NVIDIA GPU)" if name in ("cupy", "nvrtc") else ""
        text = version or f"not installed: {found['absent'].get(name)}{use}"
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


def work_cache(found: dict) -> list[Row]:
    rows = [(own["of"], f"{own['folder']} ({readable(own['bytes'])})") for own in found["folders"]]
    return [*rows, ("to clear it", "remove these folders; the next run measures anew")]


def attention(found: dict) -> list[Row]:
    """Which backend runs each plan; then each reason once, with the backends that have it and what it is about."""
    from fpsgen.attention.door import told

    rows = [(name, told(plan["backend"])) for name, plan in found["plans"].items()]
    reasons: dict[str, dict[str, list[str]]] = {}
    for name, plan in found["plans"].items():
        for backend, why in plan["refused"].items():
            reasons.setdefault(why, {}).setdefault(told(backend), []).append(name)
    return rows + [(f"not {', '.join(backends)}", why) for why, backends in reasons.items()]


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
    "machine": ("machine", machine),
    "gpus": ("GPUs", gpus),
    "fits": ("what fits into memory", fits),
    "kernel_cache": ("compiled kernels", kernel_cache),
    "work_cache": ("kept by calibrate and bench quality", work_cache),
    "model_cache": ("models", model_cache),
    "attention": ("attention at 832x480, 81 frames", attention),
    "compile": ("trial compilation", compiled),
    "launch": ("trial launch", launched),
}
