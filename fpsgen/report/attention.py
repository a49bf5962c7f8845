"""What the page of `fpsgen bench attention` says: kernels against their roofs, and against dense attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fpsgen.bench import roofline
from fpsgen.bench.attention.record import DENSE, AttentionRecord, Case, Line
from fpsgen.bench.attention.report import heading, remarks, tables
from fpsgen.machine import Card
from fpsgen.report import words
from fpsgen.tables import Table


def facts(record: AttentionRecord) -> dict[str, Any]:
    """For templates/attention.html.j2."""
    shown = [
        {
            "heading": heading(case),
            "remarks": remarks(case),
            "points": [(name_of(line), line) for line in points_of(case)],
            "roofs": roofs_of(record.card, case.head_dim),
            "tables": tables(case),
        }
        for case in record.cases
    ]
    glance, lead = _glance(record.cases)
    return {"title": f"Attention on {record.card.gpu}", "glance": glance, "lead": lead, "cases": shown}


def _glance(cases: Sequence[Case]) -> tuple[Table, dict[str, Any] | None]:
    """The fastest of our kernels against the fastest dense attention: all shapes, and what to say of the last, which is
    the largest; None where nothing can be compared."""
    heads = ["Shape", "Density", "Variant", "With prologue, ms", "Times as fast", "Dense attention", "Dense, ms"]
    table = Table.of_numbers("The fastest kernel against the fastest dense attention", heads, [heads[2], heads[5]])
    lead = None
    for case in cases:
        dense = min((line for line in case.lines if line.kind in DENSE and line.median_ms), key=_median, default=None)
        if dense is None or not (ours := best(case)):
            continue
        ratios = [_median(dense) / _median(line) for line in ours]
        for line, ratio in zip(ours, ratios, strict=True):
            times = [f"{_median(one):.3g}" for one in (line, dense)]
            cells = f"{line.density:.3g}", str(line.variant), times[0], words.ratio(ratio), dense.name, times[1]
            table.row(f"{case.model} {case.res}", *cells)
        lead_ratio = _range([words.ratio(min(ratios)), words.ratio(max(ratios))])
        densities = _range([f"{line.density:.2g}" for line in ours])
        lead = {"case": case, "dense": dense.name, "ratio": lead_ratio, "densities": densities}
    return table, lead


def _median(line: Line) -> float:
    assert line.median_ms is not None
    return line.median_ms


def _range(texts: list[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def best(case: Case) -> list[Line]:
    """The fastest of our kernels with its prologue at each density, from dense to sparse."""
    timed = sorted((line for line in case.lines if line.kind == "together" and line.median_ms), key=_median)
    fastest = {line.density: line for line in reversed(timed)}
    return sorted(fastest.values(), key=lambda line: -(line.density or 0))


def points_of(case: Case) -> list[Line]:
    """The lines that compute attention and have a speed."""
    return [line for line in case.lines if line.kind not in ("prepare", "prologue") and line.tflops]


def name_of(line: Line) -> str:
    if line.variant is None:
        return line.name
    return f"{line.variant}, kernel {'alone' if line.kind == 'kernel' else 'with prologue'}"


def roofs_of(card: Card, head_dim: int) -> dict[str, float]:
    """What a card can do at most at its boost clock, in 10^12 a second: operations, by what limits them, and bytes of
    "memory"."""
    rates = {bits: roofline.rates(card, bits) for bits in (16, 8)}
    roofs = {f"{bits} bits": rate.flops for bits, rate in rates.items()}
    roofs["exponential unit"] = rates[8].exponentials * 4 * head_dim  # one exponential for so many operations
    return {name: level / 1e12 for name, level in (roofs | {"memory": rates[8].bytes}).items()}
