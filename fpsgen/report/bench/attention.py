"""The page of `fpsgen bench attention`: kernels against their roofs, and against dense attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fpsgen.bench import roofline as bounds
from fpsgen.bench.attention.record import DENSE, read_case
from fpsgen.bench.attention.report import heading, remarks, tables
from fpsgen.metrics import Pair
from fpsgen.report import html, words
from fpsgen.report.bench import provenance, roofline
from fpsgen.report.bench.roofline import Point, Roofs

_WHOLE = ("sdpa", "package", "flex", "kernel", "together")  # kinds of lines that compute attention


def compose(record: dict[str, Any], pairs: Sequence[Pair]) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by name: roof-1, roof-2 … of the shapes in which anything was timed. No clips."""
    parts, drawn = [_headline(record)], dict[str, bytes]()
    for number, case in enumerate(record["cases"], 1):
        parts.append(f"<h2>{html.text(heading(read_case(case)))}</h2>\n{_remarks(case)}")
        if points := points_of(case):
            roofs = roofs_of(record["card"], case["head_dim"])
            drawn[f"roof-{number}"] = roofline.draw(points, roofs)
            parts.append(_roofline(drawn[f"roof-{number}"], points, roofs))
        for table in tables(read_case(case)):
            rows = [[html.text(str(cell)).replace(" %", "&nbsp;%") for cell in row] for row in table.rows]
            heads = [html.text(column.head) for column in table.columns]
            parts.append(f"<h3>{html.text(table.title)}</h3>\n{html.table(table.title, heads, rows)}")
    parts.append(_measured(record))
    return html.page("bench attention", _title(record), parts), drawn


def points_of(case: dict[str, Any]) -> list[Point]:
    """The lines that have a speed."""
    found = []
    for line in case["lines"]:
        if line["kind"] in _WHOLE and "tflops" in line:
            name, ours = line["name"], "variant" in line
            if ours:
                name = f"{line['variant']}, kernel {'alone' if line['kind'] == 'kernel' else 'with prologue'}"
            work = line["density"], line["intensity"], line["tflops"]
            found.append(Point(name, line["variant"] if ours else name, line["kind"] == "together", *work))
    return found


def roofs_of(card: dict[str, Any], head_dim: int) -> Roofs:
    """The roofs of a card at its boost clock."""
    flat = {f"{bits} bits": bounds.rates(card, bits).flops for bits in (16, 8)}
    flat["exponential unit"] = bounds.rates(card, 8).exponentials * 4 * head_dim  # one of them for so many operations
    return Roofs({name: level / 1e12 for name, level in flat.items()}, bounds.rates(card, 8).bytes / 1e12)


def _title(record: dict[str, Any]) -> str:
    return f"Attention on {record['card']['gpu']}"


def fastest_dense(case: dict[str, Any]) -> dict[str, Any] | None:
    timed = [line for line in case["lines"] if line["kind"] in DENSE and "median_ms" in line]
    return min(timed, key=lambda line: line["median_ms"], default=None)


def best(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The fastest of our kernels with its prologue at each density, from dense to sparse."""
    found: dict[float, dict[str, Any]] = {}
    for line in case["lines"]:
        if line["kind"] == "together" and "median_ms" in line:
            known = found.get(line["density"])
            if known is None or line["median_ms"] < known["median_ms"]:
                found[line["density"]] = line
    return [found[density] for density in sorted(found, reverse=True)]


def _headline(record: dict[str, Any]) -> str:
    told, rows = "", []
    for case in record["cases"]:
        dense, ours = fastest_dense(case), best(case)
        if dense is None or not ours:
            continue
        ratios = [line["speedup"][dense["name"]]["alone"] for line in ours]
        rows += [_row(case, line, dense, ratio) for line, ratio in zip(ours, ratios, strict=True)]
        told = (  # of the last shape, which is the largest
            f"In {html.text(case['model'])} at {html.text(case['res'])}, fpsgen&rsquo;s kernel with its prologue is "
            f"<b>{_range(ratios)} times as fast</b> as {html.text(dense['name'])}, the fastest dense attention in BF16 "
            f"here, at {_densities(line['density'] for line in ours)}"
        )
    if not rows:
        told = "fpsgen&rsquo;s kernels were not timed beside dense attention here. The tables say what ran, and why"
    heads = ["Shape", "Density", "Variant", "With prologue, ms", "Times as fast", "Dense attention", "Dense, ms"]
    glance = (
        html.table("The fastest kernel against the fastest dense attention", heads, rows, left=(2, 5)) if rows else ""
    )
    cut = (
        f'<p class="verdict missed">The run was cut short: {html.text(record["cut"])}.</p>\n'
        if record.get("cut")
        else ""
    )
    return f'<h1>{html.text(_title(record))}</h1>\n<p class="lead">{told}.</p>\n{cut}{glance}'


def _row(case: dict[str, Any], line: dict[str, Any], dense: dict[str, Any], ratio: float) -> list[str]:
    return [
        html.text(f"{case['model']} {case['res']}"), f"{line['density']:.3g}", html.text(line["variant"]),
        f"{line['median_ms']:.3g}", words.ratio(ratio), html.text(dense["name"]), f"{dense['median_ms']:.3g}",
    ]  # fmt: skip


def _range(ratios: Sequence[float]) -> str:
    low, high = words.ratio(min(ratios)), words.ratio(max(ratios))
    return low if low == high else f"{low} to {high}"


def _densities(given: Iterable[float]) -> str:
    found = [f"{density:.2g}" for density in given]
    return f"density {found[0]}" if len(found) == 1 else f"densities from {found[0]} to {found[-1]}"


def _remarks(case: dict[str, Any]) -> str:
    """What did not run, faults, the card before and after."""
    told = remarks(read_case(case))
    return f"{html.listed(html.text(one) for one in told)}\n" if told else ""


def _roofline(png: bytes, points: Sequence[Point], roofs: Roofs) -> str:
    each = "; ".join(
        f"{point.name} at density {point.density:.2g}: {point.tflops:.0f} TFLOP/s at {point.intensity:.0f} a byte"
        for point in points
    )
    limits = ", ".join(f"{name} {level:.0f} TFLOP/s" for name, level in roofs.flat.items())
    return html.figure(
        png,
        f"Roofline: {limits}, memory {roofs.memory:.2f} TB/s. {each}.",
        "Each mark is the speed that a contender reached. The roofs are what the card can do at most. The slope is "
        "the memory&rsquo;s roof. The flat roofs are those of the tensor cores, by the bits of their operands, and "
        "that of the unit for exponentials where it computes one for each pair of tokens and head (variants that "
        "synthesise half of them have twice that). Small numbers are densities. Only computed pairs count; padding "
        "does not.",
    )


def _measured(record: dict[str, Any]) -> str:
    how = (
        f"The self-attention of one layer of Wan2.1 ran at batch 1, on noise of seed {html.text(record['seed'])}. CUDA "
        f"events timed up to {html.text(record['repeats'])} samples of each contender; the figures are medians. Every "
        "round had a new random order, and the L2 cache was flushed before each sample. Every result was checked on "
        "sampled rows and heads before it was timed. The rooflines take the card&rsquo;s boost clock and its measured "
        "copy bandwidth."
    )
    return (
        f"{provenance.notes(record)}<h2>How it was measured</h2>\n<p>{how}</p>\n"
        f"{html.definitions(provenance.facts(record))}{provenance.command(record)}"
    )
