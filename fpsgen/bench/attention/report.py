"""The tables of `fpsgen bench attention`, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence

from fpsgen.bench.attention.record import DENSE, Case, Line
from fpsgen.tables import Table


def heading(case: Case) -> str:
    """The shape in words."""
    grid, tile = ("x".join(map(str, sizes)) for sizes in (case.grid, case.tile))
    tokens = f"{case.tokens} tokens ({grid} in {case.tiles} tiles of {tile})"
    return f"{case.model} {case.res}: {tokens}, {case.heads} heads of {case.head_dim}"


def remarks(case: Case) -> list[str]:
    """What was not timed, and why; the card before the shape's first contender and after its last."""
    found = []
    for line in case.lines:
        if line.trouble:
            where = "" if line.kind in DENSE or line.density is None else f" at density {line.density:.4g}"
            found.append(f"{line.name}{where}: {'FAULT: ' if line.fault else ''}{line.trouble}")
    found += [why for why in (case.fault, case.cut) if why]
    for when, state in (("before", case.before), ("after", case.after)):
        if state:
            clock, power, heat = (state[name] for name in ("clocks.sm", "power.draw", "temperature.gpu"))
            found.append(f"{when}: SM clock {clock} MHz, {power} W, {heat} °C")
    return found


def tables(case: Case) -> list[Table]:
    """Dense attention in 16 bits; sparse attention, with its prologue, its errors, how much faster it is."""
    sparse = [line for line in case.lines if line.kind in ("flex", "kernel") and line.samples_ms]
    more = [_kernels(sparse), _prologues(case, sparse), _ratios(case, sparse)] if sparse else []
    return [_dense(case), *more]


def _dense(case: Case) -> Table:
    heads = ["", "ms", "least", "TFLOP/s", "of roofline", "bound by", "error"]
    table = Table.of_numbers("Dense, BF16", heads, ["bound by"])
    for line in case.lines:
        if line.kind in (*DENSE, "prepare"):
            table.row(line.name, *_speed(line), _percent(line.error_to_exact, 2))
    return table


def _kernels(sparse: Sequence[Line]) -> Table:
    heads = ["", "density", "window", "ms", "least", "TFLOP/s", "of roofline", "bound by", "of datasheet"]
    table = Table.of_numbers("The attention kernel, and FlexAttention in BF16", heads, ["window", "bound by"])
    for line in sparse:
        window = "x".join(map(str, line.window)) if line.window else "dense"
        table.row(*_who(line), window, *_speed(line), _percent(line.datasheet_share))
    return table


def _prologues(case: Case, sparse: Sequence[Line]) -> Table:
    """Medians, and what of the roofline they reach; errors of the kernel."""
    heads = ["", "density", "prologue, ms", "with prologue, ms", "error, emulator", "error, exact"]
    table = Table.of_numbers("With its prologue (share of the roofline); errors", heads)
    for line in sparse:
        parts = [case.beside(line, kind) for kind in ("prologue", "together")]
        times = [f"{_milliseconds(part.median_ms)} ({_percent(part.share)})" if part else "" for part in parts]
        emulated = min(line.error_to_emulator.values()) if line.error_to_emulator else None
        table.row(*_who(line), *times, _percent(emulated, 2), _percent(line.error_to_exact, 2))
    return table


def _ratios(case: Case, sparse: Sequence[Line]) -> Table:
    dense = [line.name for line in case.lines if line.kind in DENSE and line.samples_ms]
    title = (
        "Times as fast as dense attention in BF16: alone / with its prologue / with it, against norm and RoPE as well"
    )
    table = Table.of_numbers(title, ["", "density", *dense])
    for line in sparse:
        together, cells = case.beside(line, "together"), []
        for name in dense:
            ratios = [line.speedup[name]["alone"]] if line.speedup else []
            if together and together.speedup:
                ratios += [together.speedup[name]["alone"], together.speedup[name]["prepared"]]
            cells.append(" / ".join("?" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
        table.row(*_who(line), *cells)
    return table


def _who(line: Line) -> list[str]:
    return [line.variant or line.name, f"{line.density:.4g}"]


def _speed(line: Line) -> list[str]:
    """Median, least, 10^12 operations per second, share of the roofline, what binds."""
    if not line.samples_ms:
        return ["not run", "", "", "", ""]
    times = [_milliseconds(line.median_ms), _milliseconds(line.min_ms)]
    return [*times, "" if line.tflops is None else f"{line.tflops:.0f}", _percent(line.share), line.bound or ""]


def _milliseconds(value: float | None) -> str:
    return "not run" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"
