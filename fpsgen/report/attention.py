"""What the page of `fpsgen bench attention` says: kernels against their roofs, and against dense attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fpsgen.bench import roofline as bounds
from fpsgen.bench.attention.record import DENSE, read_case
from fpsgen.bench.attention.report import heading, remarks, tables
from fpsgen.report import words
from fpsgen.tables import Table

_WHOLE = ("sdpa", "package", "flex", "kernel", "together")  # kinds of lines that compute attention


class Point(NamedTuple):
    """A contender at one density. family: has one colour; intensity: operations per byte; tflops: 10^12 a second."""

    name: str
    family: str
    with_prologue: bool
    density: float
    intensity: float
    tflops: float


class Roofs(NamedTuple):
    """What a card can do at most. flat: 10^12 operations per second, by what limits; memory: 10^12 bytes per second."""

    flat: dict[str, float]
    memory: float


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """For templates/attention.html.j2. record: of "kind" attention, as its JSON has it."""
    glance, found = _glance(record["cases"])
    return {
        "title": f"Attention on {record['card']['gpu']}",
        "glance": glance,
        "found": found,
        "cases": [
            {
                "heading": heading(read),
                "remarks": remarks(read),
                "picture": f"roof-{number}",
                "points": points_of(case),
                "roofs": roofs_of(record["card"], case["head_dim"]),
                "tables": tables(read),
            }
            for number, (case, read) in enumerate(zip(record["cases"], map(read_case, record["cases"]), strict=True), 1)
        ],
    }


def _glance(cases: Sequence[dict[str, Any]]) -> tuple[Table, dict[str, Any] | None]:
    """The fastest of our kernels against the fastest dense attention: all shapes, and what to say of the last, which is
    the largest; None where nothing can be compared."""
    heads = ["Shape", "Density", "Variant", "With prologue, ms", "Times as fast", "Dense attention", "Dense, ms"]
    table = Table.of_numbers(
        "The fastest kernel against the fastest dense attention", heads, ["Variant", "Dense attention"]
    )
    found = None
    for case in cases:
        timed = [line for line in case["lines"] if line["kind"] in DENSE and "median_ms" in line]
        if not timed or not (ours := best(case)):
            continue
        dense = min(timed, key=lambda line: line["median_ms"])
        ratios = [line["speedup"][dense["name"]]["alone"] for line in ours]
        for line, ratio in zip(ours, ratios, strict=True):
            ours_ms, dense_ms = (f"{one['median_ms']:.3g}" for one in (line, dense))
            told = f"{line['density']:.3g}", line["variant"], ours_ms, words.ratio(ratio), dense["name"], dense_ms
            table.row(f"{case['model']} {case['res']}", *told)
        found = {
            "case": case,
            "dense": dense["name"],
            "ratios": _range([words.ratio(min(ratios)), words.ratio(max(ratios))]),
            "densities": _range([f"{line['density']:.2g}" for line in ours]),
        }
    return table, found


def _range(told: list[str]) -> str:
    return told[0] if told[0] == told[-1] else f"{told[0]} to {told[-1]}"


def best(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The fastest of our kernels with its prologue at each density, from dense to sparse."""
    timed = [line for line in case["lines"] if line["kind"] == "together" and "median_ms" in line]
    slowest_first = sorted(timed, key=lambda line: line["median_ms"], reverse=True)
    return sorted({line["density"]: line for line in slowest_first}.values(), key=lambda line: -line["density"])


def points_of(case: dict[str, Any]) -> list[Point]:
    """The lines that have a speed."""
    found = []
    for line in case["lines"]:
        if line["kind"] in _WHOLE and "tflops" in line:
            name = family = line.get("variant", line["name"])
            if "variant" in line:
                name += ", kernel alone" if line["kind"] == "kernel" else ", kernel with prologue"
            work = line["density"], line["intensity"], line["tflops"]
            found.append(Point(name, family, line["kind"] == "together", *work))
    return found


def roofs_of(card: dict[str, Any], head_dim: int) -> Roofs:
    """The roofs of a card at its boost clock."""
    flat = {f"{bits} bits": bounds.rates(card, bits).flops for bits in (16, 8)}
    flat["exponential unit"] = bounds.rates(card, 8).exponentials * 4 * head_dim  # one of them for so many operations
    return Roofs({name: level / 1e12 for name, level in flat.items()}, bounds.rates(card, 8).bytes / 1e12)
