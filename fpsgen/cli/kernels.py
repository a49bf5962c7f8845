"""`fpsgen kernels`: which there are, compiling them ahead of time, what the compiler made of them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fpsgen.cli.command import App
from fpsgen.cli.options import alone
from fpsgen.cli.output import Output
from fpsgen.errors import UsageError, option
from fpsgen.printable import readable
from fpsgen.report.words import counted
from fpsgen.tables import Column, Table

if TYPE_CHECKING:
    from fpsgen.kernels.cache import Built, Held
    from fpsgen.kernels.listing import Named
    from fpsgen.kernels.pipes import Pipes

EXAMPLES = """
fpsgen kernels
fpsgen kernels build
fpsgen kernels show attention-fp8-fp16
fpsgen kernels clear --stale
"""

_FOLDER_HINT = "FPSGEN_CACHE_DIR says where kernels are kept"

app = App(epilog=EXAMPLES)


@app.callback(invoke_without_command=True)
def bare(context: typer.Context, json: bool = False) -> None:
    """List, compile and remove the kernels for Hopper GPUs.

    Without a command: list them, and which are compiled.
    """
    if alone(context, json):
        list_kernels(json=json)


@app.command("list", epilog="fpsgen kernels list --json")
def list_kernels(json: bool = False) -> None:
    """List the kernels, and which of them are compiled."""
    from fpsgen.kernels import cache, listing, nvrtc

    out, version, stale, notes = Output(json), None, None, []
    try:
        version = "{}.{}".format(*nvrtc.version())
        stale = counts(listing.stale(cache.contents()))
    except nvrtc.NoCompilerError as missing:
        unknown = "so fpsgen cannot tell which kernels are compiled; they run only on an NVIDIA GPU"
        notes.append(f"{missing}, {unknown}: {missing.marked_hint}")
    except OSError as fault:
        notes.append(f"{cache.folder()} cannot be read: {fault.strerror or fault}")
    for note in notes:
        out.note(note)
    kernels = [(named, cache.find(named.kernel) if version else None) for named in listing.KERNELS.values()]
    if json:
        told = []
        for named, built in kernels:
            state = {"bytes": built and built.size, "path": built and str(built.cubin)}
            told.append({**facts(named), "compiled": built is not None if version else None, **state})
        where = {"folder": str(cache.folder()), "nvrtc": version}
        out.result("", {**where, "kernels": told, "stale": stale and asdict(stale), "notes": notes})
        return
    columns = [Column("compiled"), Column("size", right=True, spare=1)] if version else []
    formats = Column("formats", prose=True, spare=3)  # the name has them
    table = Table(columns=[Column("kernel"), formats, Column("for", spare=2), *columns])
    for named, built in kernels:
        cells = ("yes", readable(built.size)) if built else ("no", "")
        table.row(named.name, named.about, named.kernel.architecture, *cells[: len(columns)])
    out.show(table)
    out.line(f"compiled kernels are kept in {cache.folder()}", copied=True)
    if stale and stale.count:
        out.line(f"stale: {stale}, left over from other sources or compilers; remove: fpsgen kernels clear --stale")


@dataclass(frozen=True)
class HeldCounts:
    """How many kernels are held, and their bytes."""

    count: int
    bytes: int

    def __str__(self) -> str:
        return f"{counted(self.count, 'compiled kernel')}, {readable(self.bytes)}"


def counts(held: dict[str, Held]) -> HeldCounts:
    """A lock without a kernel is none."""
    return HeldCounts(sum(bool(own.folders) for own in held.values()), sum(own.size for own in held.values()))


@app.command(epilog="fpsgen kernels build\nfpsgen kernels build attention-fp8-fp16 prologue-fp8-fp16")
def build(names: list[str] | None = None, json: bool = False) -> None:
    """Compile the kernels that are not compiled yet, so that no video has to wait for them."""
    from fpsgen.kernels import cache, listing

    out, entries, notes, fresh = Output(json), [], [], 0
    wanted = list(dict.fromkeys(listing.find(name) for name in names or listing.KERNELS))
    width = max(len(named.name) for named in wanted) + 2
    for named in wanted:
        out.loading(f"compiling {named.name}")
        begin = time.perf_counter()
        built = cache.build(named.kernel)
        seconds = time.perf_counter() - begin
        if built.note and built.note not in notes:
            out.note(built.note)
        notes += [built.note] if built.note else []
        how = f"{seconds:.2f} s" if built.fresh else "from the cache"
        registers = ", ".join(str(used.registers) for used in built.functions.values())
        out.line(f"{named.name:{width}}{how:16}{registers} registers")
        fresh += built.fresh
        entries.append({**report_of(named, built), "fresh": built.fresh, "seconds": round(seconds, 3)})
    kept = f"kept in {cache.folder()}" if not notes else f"{len(notes)} of {len(entries)} could not be kept"
    out.result(f"{fresh} compiled, {len(entries) - fresh} from the cache; {kept}", {"kernels": entries})
    if notes:  # what was asked for is not there when the next command wants it
        raise typer.Exit(1)


@app.command(epilog="fpsgen kernels clear\nfpsgen kernels clear --stale")
def clear(stale: bool = False, json: bool = False) -> None:
    """Remove compiled kernels. Other files in their folder stay."""
    from fpsgen.kernels import cache, listing, nvrtc

    out, folder = Output(json), cache.folder()
    removed: dict[str, Held] = {}
    building, faults = [], []
    try:
        chosen = listing.stale(cache.contents()) if stale else cache.contents()
    except OSError as fault:
        raise UsageError(f"{folder} cannot be read: {fault.strerror or fault}", hint=_FOLDER_HINT) from None
    except nvrtc.NoCompilerError as missing:
        raise UsageError(
            f"fpsgen cannot tell which kernels are stale: {missing}",
            hint=f"{missing.marked_hint}, or remove all kernels: fpsgen kernels clear",
        ) from None
    for name in chosen:
        try:
            if taken := cache.remove(name):
                removed[name] = taken
            else:
                building.append(name)
        except OSError as fault:
            faults.append(f"{name}: {fault.strerror or fault}")
    if building:
        out.note(f"kept {', '.join(building)}, because another process is building it now")
    if faults:
        many = f"{len(faults)} of {len(faults) + len(removed)}"
        raise UsageError(f"{many} kernels cannot be removed from {folder}: {faults[0]}", hint=_FOLDER_HINT)
    gone = counts(removed)
    line = f"removed {gone}, from {folder}" if gone.count else f"nothing to remove in {folder}"
    out.result(line, {"folder": str(folder), "removed": gone.count, "bytes": gone.bytes, "building": building})


@app.command(epilog="fpsgen kernels show attention-fp8-fp16")
def show(name: str, pipes: Path | None = None, json: bool = False) -> None:
    """Show what the compiler made of a kernel, and how fast a model says that it is.

    A kernel that is not compiled yet is compiled first. The model needs nvdisasm, but no GPU.
    """
    from fpsgen.kernels import cache, listing, sass
    from fpsgen.kernels.pipes import measured, shipped

    named, out = listing.find(name), Output(json)
    costs = measured(pipes) if pipes else shipped()
    if pipes and not named.name.startswith("attention"):
        raise UsageError(f"{option('pipes', pipes)} is for attention kernels: a prologue waits for memory", hint=None)
    out.loading(f"compiling {named.name}")
    built = cache.build(named.kernel)
    if built.note:
        out.note(built.note)
    model, no_model = modelled(named, built, costs)
    if no_model:
        out.note(no_model)
    tensor_cores = sass.tensor_core_instructions(cache.content(built.cubin))
    after = listing.redistributed(named.kernel)
    if json:
        functions = {
            function: {**asdict(used), "tensor_core_instructions": tensor_cores[function]}
            for function, used in built.functions.items()
        }
        more = {"functions": functions, "registers_after_launch": after, "model": model, "no_model": no_model}
        out.result("", report_of(named, built) | more)
        return
    out.line(f"{named.name}: {named.about}, for {named.kernel.architecture}")
    numbers = [own.name for own in fields(cache.Resources)]
    columns = [Column(name.removesuffix("_bytes"), right=True, spare=spare) for spare, name in enumerate(numbers)]
    table = Table(columns=[Column("function"), *columns, Column("tensor cores", prose=True)])
    for function, used in built.functions.items():
        tensor = ", ".join(f"{many} {kind}" for kind, many in tensor_cores[function].items())
        cells = (f"{getattr(used, name)}{' B' if name.endswith('_bytes') else ''}" for name in numbers)
        table.row(function, *cells, tensor or "none")
    out.show(table)
    if after:
        consumers, producer = after.values()
        out.line(f"registers  as launched; setmaxnreg then gives {consumers} to consumers, {producer} to the producer")
    shared = f"{named.kernel.shared_bytes} bytes of dynamic shared memory"
    out.line(f"block      {named.kernel.THREADS} threads, {shared}")
    out.line(f"options    {' '.join(built.options)}", copied=True)
    out.line(f"cubin      {'not kept' if built.note else built.cubin} ({readable(built.size)})", copied=True)
    if model:
        (draw_speed if "cycles" in model else draw_traffic)(out, model)


def modelled(named: Named, built: Built, pipes: Pipes) -> tuple[dict[str, Any] | None, str | None]:
    """The model of its speed, or why there is none."""
    from fpsgen.kernels import disassembly, speed

    try:
        listed = disassembly.disassembled(built.cubin)
        if listed.keys() != built.functions.keys():
            raise ValueError(f"nvdisasm lists {', '.join(listed) or 'no function'} of {', '.join(built.functions)}")
        found = speed.described(named.kernel, listed, pipes)
    except disassembly.NoDisassemblerError as missing:
        return None, f"{missing}, so there is no model of the kernel's speed: {missing.marked_hint}"
    except ValueError as fault:
        return None, f"there is no model of the kernel's speed: {fault}"
    return found | ({"caveat": speed.caveat(), "pipes_from": pipes.source} if "cycles" in found else {}), None


def draw_speed(out: Output, model: dict) -> None:
    taken = ", ".join(f"{pipe} {clocks:.0f}" for pipe, clocks in model["pipes"].items() if clocks >= 1)
    out.line(f"model      {model['caveat']}")
    out.line(f"  slots    {model['slots']:.0f} for a pair of 128x128 tiles on a quarter of an SM")
    out.line(f"  pipes    {taken} clocks; stalls of one warp {model['stalls']:.0f}")
    out.line(f"  cycles   {model['cycles']:.0f} for such a pair; what binds: {model['binds']}")
    least = ", ".join(f"{name} {clocks:.0f}" for name, clocks in model["roofs"].items())
    out.line(f"  memory   {least} clocks at least, at {model['clock_ghz']:g} GHz")
    for clock, by_l2 in model["tflops"].items():
        given = ", ".join(f"{tflops} with {l2} TB/s from L2" for l2, tflops in by_l2.items())
        out.line(f"  TFLOP/s  {given}, at {clock} GHz, tiles of 120 tokens")
    out.line(f"  from     {model['pipes_from']}")


def draw_traffic(out: Output, model: dict) -> None:
    columns = [Column("memory"), Column(f"at {model['workload']}", right=True), Column("loads", prose=True)]
    table = Table(columns=[*columns, Column("stores", prose=True)])
    for function, part in model["functions"].items():
        counts = [
            ", ".join(f"{count} of {bits} bits" for bits, count in part["accesses_by_bits"][kind].items())
            for kind in ("LDG", "STG")
        ]
        table.row(function, readable(part["dram_bytes"]), *counts)
    table.row("all", readable(model["dram_bytes"]), "", "")
    out.show(table)
    if "milliseconds" in model:
        taken = ", ".join(f"{name} {clocks / 1e3:.0f}" for name, clocks in model["clocks"].items() if clocks >= 1e3)
        out.line(f"model      at least {model['milliseconds']:.2f} ms; thousands of clocks: {taken}")


def facts(named: Named) -> dict[str, Any]:
    """What JSON has of any kernel."""
    return {"name": named.name, "about": named.about, "architecture": named.kernel.architecture}


def report_of(named: Named, built: Built) -> dict[str, Any]:
    """What JSON has of a compiled kernel. Sizes are in bytes: shared_bytes is dynamic here, and static in a function.
    path: none where the cubin goes with this process."""
    return {
        **facts(named),
        "source": f"{built.name}.cu",
        "options": built.options,
        "threads": named.kernel.THREADS,
        "shared_bytes": named.kernel.shared_bytes,
        "functions": {function: asdict(used) for function, used in built.functions.items()},
        "path": None if built.note else str(built.cubin),
        "bytes": built.size,
        "note": built.note,
    }
