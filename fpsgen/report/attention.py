"""What a bench of attention says, on a terminal and on its page: kernels against their roofs, and against dense
attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

from fpsgen.bench import roofline
from fpsgen.bench.attention.record import DENSE, AttentionRecord, Case, Line
from fpsgen.bench.record import MeasuredCard
from fpsgen.report import words
from fpsgen.tables import Table


def facts(record: AttentionRecord) -> dict[str, Any]:
    """For templates/attention.html.j2."""
    glance, lead = _glance(record.cases)
    said = {"heading": heading, "remarks": remarks, "tables": tables}
    drawn = {"name_of": name_of, "points_of": points_of, "roofs_of": roofs_of}
    where = record.card.gpu if record.card else "a CPU"
    return {"title": f"Attention on {where}", "glance": glance, "lead": lead, **said, **drawn}


def _glance(cases: Sequence[Case]) -> tuple[Table, dict[str, Any] | None]:
    """The fastest of our kernels against the fastest dense attention: all shapes, and what to say of the last, which is
    the largest; None where nothing can be compared."""
    heads = ["Shape", "Sees", "Density", "Variant", "With prologue, ms", "Times as fast", "Dense attention", "Its ms"]
    prose = [heads[number] for number in (1, 3, 6)]
    table = Table.of_numbers("The fastest kernel against the fastest dense attention", heads, prose)
    lead = None
    for case in cases:
        dense = min((line for line in case.lines if line.kind in DENSE and line.median_ms), key=_median, default=None)
        if dense is None or not (ours := best(case)):
            continue
        ratios = [_median(dense) / _median(line) for line in ours]
        for line, ratio in zip(ours, ratios, strict=True):
            own, other = (f"{_median(one):.3g}" for one in (line, dense))
            cells = f"{line.density:.3g}", str(line.variant), own, words.ratio(ratio), dense.name, other
            table.row(f"{case.model} {case.res}", str(line.seen), *cells)
        ratio_range = _range([words.ratio(min(ratios)), words.ratio(max(ratios))])
        densities = _range([f"{line.density:.2g}" for line in ours])
        lead = {"case": case, "dense": dense.name, "ratio": ratio_range, "densities": densities}
    return table, lead


def _median(line: Line) -> float:
    return line.median_ms or inf


def _range(texts: list[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def best(case: Case) -> list[Line]:
    """The fastest of our kernels with its prologue for each choice of key tiles, from dense to sparse."""
    timed = sorted((line for line in case.lines if line.kind == "together" and line.median_ms), key=_median)
    fastest = {line.seen: line for line in reversed(timed)}
    return sorted(fastest.values(), key=lambda line: -(line.density or 0))


def points_of(case: Case) -> list[Line]:
    """The lines that compute attention and have a speed."""
    return [line for line in case.lines if line.kind not in ("prepare", "prologue", "choice") and line.tflops]


def name_of(line: Line) -> str:
    name = line.name
    if line.variant:
        name = f"{line.variant}, kernel {'alone' if line.kind == 'kernel' else 'with prologue'}"
    summary = " and summary" if line.rest == "summary" else ""
    return name if line.top is None else f"{name}, top{summary}"


def roofs_of(card: MeasuredCard | None, head_dim: int) -> dict[str, float]:
    """What a card can do at most at its boost clock, in 10^12 a second: operations, by what limits them, and bytes of
    "memory"; nothing without one."""
    if card is None:
        return {}
    rates = {bits: roofline.rates(card, bits) for bits in (16, 8)}
    roofs = {f"{bits} bits": rate.flops for bits, rate in rates.items()}
    roofs["exponential unit"] = rates[8].exponentials * 4 * head_dim  # one exponential for so many operations
    return {name: level / 1e12 for name, level in (roofs | {"memory": rates[8].bytes}).items()}


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
            where = where if line.top is None else f", {line.seen}"
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
    sparse = [line for line in case.lines if line.kind in ("flex", "reference", "kernel") and line.samples_ms]
    exact = {"error, exact": lambda line: _percent(line.error_to_exact, 2)}
    found = [_table("Dense, BF16", dense, {"": lambda line: line.name, **_SPEED, **exact})]
    if not sparse:
        return found
    kernel = {"sees": lambda line: str(line.seen), **_SPEED}
    datasheet = {"of datasheet": lambda line: _percent(line.datasheet_share)}
    choice = {"choice, ms": lambda line: _in_brief(case.beside(line, "choice"))}
    choice = choice if any(line.kind == "choice" for line in case.lines) else {}
    whole = {
        "prologue, ms": lambda line: _in_brief(case.beside(line, "prologue")),
        **choice,
        "with prologue, ms": lambda line: _in_brief(case.beside(line, "together")),
        "error, emulator": lambda line: _percent(min((line.error_to_emulator or {"": None}).values()), 2),
    }
    ratios = {line.name: partial(_ratios, case, line.name) for line in dense if line.kind in DENSE and line.samples_ms}
    title = "Times as fast as dense attention in BF16: alone / with prologue / with prologue, dense with norm and RoPE"
    return [
        *found,
        _table("Our kernel; FlexAttention and the reference, in BF16", sparse, {**_WHO, **kernel, **datasheet}),
        _table("With its prologue (share of the roofline); errors", sparse, {**_WHO, **whole, **exact}),
        _table(title, sparse, {**_WHO, **ratios}),
    ]


def _table(title: str, lines: Sequence[Line], columns: Mapping[str, Callable[[Line], str]]) -> Table:
    """A row for each line; columns: what they say of it, by their heads."""
    table = Table.of_numbers(title, columns, ["sees", "bound by"])
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


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


_WHO: dict[str, Callable[[Line], str]] = {
    "": lambda line: line.variant or line.name,
    "density": lambda line: f"{line.density:.4g}",
}
_SPEED: dict[str, Callable[[Line], str]] = {
    "ms": lambda line: _milliseconds(line.median_ms) or "not run",
    "least": lambda line: _milliseconds(line.min_ms),
    "TFLOP/s": lambda line: _rate(line.tflops),
    "of roofline": lambda line: _percent(line.share),
    "bound by": lambda line: line.bound or "",
}
