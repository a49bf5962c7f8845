"""The tables of `fpsgen bench attention`, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

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
    dense = [line for line in case.lines if line.kind in (*DENSE, "prepare")]
    sparse = [line for line in case.lines if line.kind in ("flex", "kernel") and line.samples_ms]
    exact = {"error, exact": lambda line: _percent(line.error_to_exact, 2)}
    found = [_table("Dense, BF16", dense, {"": lambda line: line.name, **_SPEED, **exact})]
    if not sparse:
        return found
    kernel = {"window": lambda line: "x".join(map(str, line.window or ["dense"])), **_SPEED}
    datasheet = {"of datasheet": lambda line: _percent(line.datasheet_share)}
    whole = {
        "prologue, ms": lambda line: _in_brief(case.beside(line, "prologue")),
        "with prologue, ms": lambda line: _in_brief(case.beside(line, "together")),
        "error, emulator": lambda line: _percent(min((line.error_to_emulator or {"": None}).values()), 2),
    }
    ratios = {line.name: partial(_ratios, case, line.name) for line in dense if line.kind in DENSE and line.samples_ms}
    title = "Times as fast as dense attention in BF16: alone / with prologue / with prologue, dense with norm and RoPE"
    return [
        *found,
        _table("The attention kernel, and FlexAttention in BF16", sparse, {**_WHO, **kernel, **datasheet}),
        _table("With its prologue (share of the roofline); errors", sparse, {**_WHO, **whole, **exact}),
        _table(title, sparse, {**_WHO, **ratios}),
    ]


def _table(title: str, lines: Sequence[Line], columns: Mapping[str, Callable[[Line], str]]) -> Table:
    """A row for each line; columns: what they say of it, by their heads."""
    table = Table.of_numbers(title, columns, ["window", "bound by"])
    for line in lines:
        table.row(*(cell(line) for cell in columns.values()))
    return table


def _ratios(case: Case, dense: str, line: Line) -> str:
    """How many times as fast as the contender `dense` it is."""
    together = case.beside(line, "together")
    each = [(line.speedup or {})[dense]["alone"]]
    if together and together.speedup:
        each += together.speedup[dense].values()
    return " / ".join("?" if ratio is None else f"{ratio:.2f}" for ratio in each)


def _in_brief(line: Line | None) -> str:
    """The median of a line, and its share of the roofline."""
    return f"{_milliseconds(line.median_ms)} ({_percent(line.share)})" if line else ""


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


_WHO: dict[str, Callable[[Line], str]] = {
    "": lambda line: line.variant or line.name,
    "density": lambda line: f"{line.density:.4g}",
}
_SPEED: dict[str, Callable[[Line], str]] = {
    "ms": lambda line: _milliseconds(line.median_ms) or "not run",
    "least": lambda line: _milliseconds(line.min_ms),
    "TFLOP/s": lambda line: "" if line.tflops is None else f"{line.tflops:.0f}",
    "of roofline": lambda line: _percent(line.share),
    "bound by": lambda line: line.bound or "",
}
