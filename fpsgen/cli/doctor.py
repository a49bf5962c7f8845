"""`fpsgen doctor`: what this machine has, what it can run, and what is wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from fpsgen.cli import errors
from fpsgen.cli.output import Output, in_flags
from fpsgen.printable import readable
from fpsgen.tables import Column, Table

if TYPE_CHECKING:
    from fpsgen.doctor.checks import Backends, Fits, Gpus, KernelCache, Memory, ModelCache, Versions, WorkCache
    from fpsgen.doctor.trials import TrialCompile, TrialLaunch

Row = tuple[str, str]


def doctor(json: bool = False) -> None:
    """Check what this machine has and can run, and try it. Exits with code 1 if something is broken."""
    out = Output(json)
    out.loading()
    from fpsgen import doctor

    out.loading("checking")
    report = doctor.examine(strict=errors.show_tracebacks)
    verdict = doctor.verdict(report)
    verdict = dataclasses.replace(verdict, next=in_flags(verdict.next))
    for line in [*(f"Broken: {problem}." for problem in verdict.problems)] or [verdict.can]:
        out.line(line)
    out.line(f"Next: {verdict.next}", copied=True)
    if not json:
        for title, table in sections(report):
            out.line(f"\n{title}")
            out.show(table)
    for warning in verdict.warnings:
        out.note(warning)
    if json:
        out.result("", {name: dataclasses.asdict(own) for name, own in {"verdict": verdict, **report}.items()})
    if not verdict.works:
        raise typer.Exit(1)


def sections(report: dict[str, Any]) -> Iterator[tuple[str, Table]]:
    """What each check found: title and rows."""
    from fpsgen.doctor import Failed

    for name, (title, rows) in _SECTIONS.items():
        found, table = report[name], Table(heads=False, columns=[Column(""), Column("", prose=True)])
        for label, text in [("failed", found.fault)] if isinstance(found, Failed) else rows(found):
            table.row(f"  {label:18}", text)
        yield title, table


def versions(found: Versions) -> Iterator[Row]:
    labels = {"python": "Python", "cupy": "CuPy", "nvrtc": "NVRTC", "huggingface_hub": "huggingface-hub"}
    cuda = found.found["torch_cuda"]
    for name, version in found.found.items():
        text = version or f"not installed: {found.absent.get(name)}"
        if name in found.faults:
            text = f"cannot be used: {found.faults[name]}"
        elif not version and name in ("cupy", "nvrtc"):
            text += " (useful only with an NVIDIA GPU)"
        elif version and name == "torch":
            text += f", for CUDA {cuda}" if cuda else ", without CUDA"
        if name != "torch_cuda":
            yield labels.get(name, name), text


def memory(found: Memory) -> Iterator[Row]:
    yield "memory", f"{readable(found.free_bytes)} of {readable(found.memory_bytes)} free"
    yield "CPU cores", f"{found.cores}, of which PyTorch uses {found.threads}"


def gpus(found: Gpus) -> Iterator[Row]:
    if found.driver_cuda:
        yield "driver", f"for CUDA up to {found.driver_cuda}"
    for gpu in found.devices:
        text = f"{gpu.name}, compute capability {gpu.capability}, {gpu.multiprocessors} multiprocessors"
        free = "?" if gpu.free_bytes is None else readable(gpu.free_bytes)
        yield f"cuda:{gpu.index}", f"{text}, {free} of {readable(gpu.memory_bytes)} free"
    if found.why_none:
        yield "none", found.why_none


def fits(found: Fits) -> Iterator[Row]:
    for one in found.models:
        state = f"fits: the {one.part} takes {readable(one.needs_bytes)} of memory"
        if not one.fits:
            state = f"runs block by block, slower: the whole {one.part} would take {readable(one.needs_bytes)}"
        if one.least_bytes > found.free_bytes:
            more = readable(one.least_bytes - found.free_bytes)
            state = f"needs {more} more, even block by block: it takes {readable(one.least_bytes)}"
        yield f"{one.model} at {one.size}", state
    where = f"{readable(found.free_bytes)} free on {found.device}"
    yield "estimated", f"for videos of the usual length in {found.dtype}, with {where}; one part is in memory at a time"


def kernel_cache(found: KernelCache) -> Iterator[Row]:
    state = f"cannot be used: {found.why_not}" if found.why_not else "writable"
    yield "folder", f"{found.folder} ({state})"
    yield "compiled", f"{found.count}, {readable(found.bytes)}"


def work_cache(found: WorkCache) -> Iterator[Row]:
    for own in found.folders:
        yield own.of, f"{own.folder} ({readable(own.bytes)})"
    yield "to clear it", "remove these folders; what is needed is made again"


def model_cache(found: ModelCache) -> Iterator[Row]:
    yield "folder", f"{found.folder} ({readable(found.free_bytes)} free)"
    for model in found.models:
        yield model.name, f"{model.format}, {model.state if model.bytes is None else readable(model.bytes)}"
    if not found.models:
        yield "Wan", "not here: fpsgen models pull 1.3b, or another that `fpsgen models` lists"
    yield "pocket", "comes with fpsgen" if found.pocket else "damaged"


def attention(found: Backends) -> Iterator[Row]:
    """Which backend runs each plan; then each reason of the others once, with the backends that have it."""
    from fpsgen.attention.door import display_name

    refusals: dict[str, dict[str, None]] = {}
    for name, plan in found.plans.items():
        yield name, display_name(plan.backend)
        for backend, why in plan.refused.items():
            refusals.setdefault(why, {})[display_name(backend)] = None
    for why, backends in refusals.items():
        yield f"not {', '.join(backends)}", why


def compiled(found: TrialCompile) -> Iterator[Row]:
    why = f"{found.state}: {found.why}"
    yield found.kernel, why if found.why else f"{found.seconds:.2f} s, {found.registers} registers"


def launched(found: TrialLaunch) -> Iterator[Row]:
    if found.why:
        yield "kernels", f"{found.state}: {found.why}"
    else:
        for name, error in found.errors.items():
            yield name, f"right: relative error {error:.1e} ({found.sums[name]})"
        yield "between products", f"right: relative error {found.elementwise:.1e}"


_SECTIONS: dict[str, tuple[str, Callable[[Any], Iterator[Row]]]] = {
    "versions": ("versions", versions),
    "machine": ("machine", memory),
    "gpus": ("GPUs", gpus),
    "fits": ("what fits into memory", fits),
    "kernel_cache": ("compiled kernels", kernel_cache),
    "work_cache": ("kept for later runs", work_cache),
    "model_cache": ("models", model_cache),
    "attention": ("attention at 832x480, 81 frames", attention),
    "linear": ("8-bit linear layers", attention),
    "compile": ("trial compilation", compiled),
    "launch": ("trial launch", launched),
}
