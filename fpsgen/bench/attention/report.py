"""What `fpsgen bench attention` makes of its samples: ratios and rooflines, tables, a Markdown page."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from fpsgen.bench import roofline
from fpsgen.bench.markdown import page

DENSE = ("sdpa", "package")


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return f"### {self.title}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def derive(lines: list[dict[str, Any]], card: dict[str, Any]) -> None:
    """Write to each line that was timed what follows from its samples and from the other lines'.

    median_ms and min_ms; intensity: the operations of the pairs that it computes over the bytes that it must move;
    tflops: those operations over the median; roofline_ms, bound and share: `roofline.bound` at the card's boost clock
    and measured copy bandwidth, and what of it was reached; datasheet_share: of the datasheet's operations per second;
    speedup: for each dense contender how often its median fits that of dense attention alone ("alone"), and with norm
    and RoPE before it ("prepared").
    """
    datasheet = {8: roofline.DATASHEET_8BIT, 16: roofline.DATASHEET_16BIT}
    timed = [line for line in lines if line.get("samples_ms")]
    for line in timed:
        line["median_ms"], line["min_ms"] = median(line["samples_ms"]), min(line["samples_ms"])
    prepare = next((line["median_ms"] for line in timed if line["kind"] == "prepare"), None)
    for line in timed:
        least = roofline.bound(line["stages"], roofline.rates(card, line["bits"]))
        line |= {"roofline_ms": 1e3 * least.seconds, "bound": least.by}
        line["share"] = line["roofline_ms"] / line["median_ms"]
        flops, _, moved = (sum(parts) for parts in zip(*line["stages"], strict=True))
        if flops:
            line["intensity"] = flops / moved
            line["tflops"] = flops / line["median_ms"] / 1e9
            if of_datasheet(card):
                line["datasheet_share"] = line["tflops"] * 1e12 / datasheet[line["bits"]]
        if line["kind"] in ("kernel", "together", "flex"):
            line["speedup"] = {
                dense["name"]: {
                    "alone": dense["median_ms"] / line["median_ms"],
                    "prepared": prepare and (dense["median_ms"] + prepare) / line["median_ms"],
                }
                for dense in timed
                if dense["kind"] in DENSE
            }


def of_datasheet(card: dict[str, Any]) -> bool:
    """Whether the SXM datasheet's figures are the card's: the other forms of an H100 have fewer SMs."""
    if not any(name in card["gpu"] for name in ("H100", "H200")):
        return False
    return card["multiprocessors"] == roofline.DATASHEET_SMS


def tables(case: dict[str, Any]) -> list[Table]:
    """One shape: dense attention in 16 bits; sparse attention, its prologue and errors, how much faster it is."""
    lines = case["lines"]
    sparse = [line for line in lines if line["kind"] in ("flex", "kernel") and line.get("samples_ms")]
    found = [dense_table(lines)]
    if sparse:
        found += [sparse_table(sparse), prologue_table(lines, sparse), ratio_table(lines, sparse)]
    return found


def dense_table(lines: list[dict[str, Any]]) -> Table:
    rows = []
    for line in lines:
        if line["kind"] in (*DENSE, "prepare"):
            rows.append([line["name"], *times(line), tflops(line), *roof(line), percent(line.get("error_to_exact"))])
    head = ["", "ms", "least", "TFLOP/s", "of roofline", "bound by", "error"]
    return Table("Dense, BF16", head, rows)


def sparse_table(sparse: list[dict[str, Any]]) -> Table:
    rows = [
        [
            *who(line),
            "dense" if line["window"] is None else "x".join(map(str, line["window"])),
            *times(line),
            tflops(line),
            *roof(line),
            percent(line.get("datasheet_share"), 0),
        ]
        for line in sparse
    ]
    head = ["", "density", "window", "ms", "least", "TFLOP/s", "of roofline", "bound by"]
    return Table("The attention kernel, and FlexAttention in BF16", [*head, "of datasheet"], rows)


def prologue_table(lines: list[dict[str, Any]], sparse: list[dict[str, Any]]) -> Table:
    """Medians, and what of the roofline they reach; errors of the kernel."""
    rows = []
    for line in sparse:
        parts = partner(lines, line, "prologue"), partner(lines, line, "together")
        emulated = line.get("error_to_emulator")
        rows.append(
            [
                *who(line),
                *(f"{times(part)[0]} ({percent(part.get('share'), 0)})" if part else "" for part in parts),
                percent(min(emulated.values()) if emulated else None),
                percent(line.get("error_to_exact")),
            ]
        )
    head = ["", "density", "prologue, ms", "with prologue, ms", "error, emulator", "error, exact"]
    return Table("With its prologue (share of the roofline); errors", head, rows)


def ratio_table(lines: list[dict[str, Any]], sparse: list[dict[str, Any]]) -> Table:
    names = [line["name"] for line in lines if line["kind"] in DENSE and line.get("samples_ms")]
    rows = []
    for line in sparse:
        both, cells = partner(lines, line, "together"), []
        for name in names:
            ratios = [line["speedup"][name]["alone"]]
            if both and both.get("speedup"):
                ratios += [both["speedup"][name]["alone"], both["speedup"][name]["prepared"]]
            cells.append(" / ".join("?" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
        rows.append([*who(line), *cells])
    return Table("Times as fast as dense attention in BF16", ["", "density", *names], rows)


def partner(lines: list[dict[str, Any]], line: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The line of another kind for the same variant, and for the same window where it has one."""
    if line["kind"] != "kernel":
        return None
    alike = (other for other in lines if other["kind"] == kind and other["variant"] == line["variant"])
    return next((other for other in alike if other.get("window", line["window"]) == line["window"]), None)


def who(line: dict[str, Any]) -> list[str]:
    return [line.get("variant", line["name"]), f"{line['density']:.4g}"]


def times(line: dict[str, Any]) -> list[str]:
    if not line.get("samples_ms"):
        return ["not run", ""]
    return [f"{line[name]:.3g}" if line[name] < 100 else f"{line[name]:.0f}" for name in ("median_ms", "min_ms")]


def tflops(line: dict[str, Any]) -> str:
    return f"{line['tflops']:.0f}" if "tflops" in line else ""


def roof(line: dict[str, Any]) -> list[str]:
    return [percent(line["share"], 0), line["bound"]] if "share" in line else ["", ""]


def percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{digits}f} %"


def remarks(case: dict[str, Any]) -> list[str]:
    """What is to be known of a shape's figures: what was not timed, and why; the card before and after."""
    told = []
    for line in case["lines"]:
        if why := line.get("why_not") or line.get("fault"):
            where = f" at density {line['density']:.4g}" if line["kind"] not in DENSE and "density" in line else ""
            told.append(f"{line['name']}{where}: {'FAULT: ' if 'fault' in line else ''}{why}")
    told += [case[name] for name in ("fault", "cut") if case.get(name)]
    for when in ("before", "after"):
        if at := case.get(when):
            clock, power, heat = (at[name] for name in ("clocks.sm", "power.draw", "temperature.gpu"))
            told.append(f"{when}: SM clock {clock} MHz, {power} W, {heat} °C")
    return told


def heading(case: dict[str, Any]) -> str:
    """The shape in words."""
    grid, tile = ("x".join(map(str, case[name])) for name in ("grid", "tile"))
    return (
        f"{case['model']} {case['res']}: {case['tokens']} tokens ({grid} in {case['tiles']} tiles of {tile}), "
        f"{case['heads']} heads of {case['head_dim']}"
    )


def document(record: dict[str, Any]) -> str:
    """What is published, in Markdown."""
    card = record["card"]
    clock, bandwidth = card["clock_hz"] / 1e9, card["copy_bytes_per_second"] / 1e12
    most = roofline.rates(card, 8)
    versions = {name: card[name] or "absent" for name in ("driver", "cuda", "cudnn", "cupy", "nvrtc", "triton")}
    head = page(
        f"Attention on one {card['gpu']}",
        f"""One layer's self-attention of Wan2.1, batch 1, on seeded noise. SDPA, other packages and FlexAttention run
        in BF16 after norm and RoPE, FlexAttention with padding every tile to 128 rows; the kernel's variants
        (`fpsgen/attention/emulator.py`) in 8 bits. Up to
        {record["repeats"]} samples each by CUDA events, median and least, all contenders in a new random order in
        every round, the L2 cache flushed before each. Driver {versions["driver"]}, CUDA {versions["cuda"]}, cuDNN
        {versions["cudnn"]}, torch {record["machine"]["torch"]}, CuPy {versions["cupy"]}, NVRTC {versions["nvrtc"]},
        Triton {versions["triton"]}.""",
        f"""TFLOP/s count 4 · head_dim operations for each pair of tokens that is computed, and none for padding. The
        roofline (`fpsgen/bench/roofline.py`) is the largest of three times: operations at the tensor cores' peak,
        {roofline.FLOPS_8BIT} (8 bits) or {roofline.FLOPS_16BIT} (16 bits) for each clock of {card["multiprocessors"]}
        SMs at {clock:.3f} GHz, {card["clock_source"]} ({most.flops / 1e12:.0f} TFLOP/s in 8 bits; an SXM card's
        datasheet says {roofline.DATASHEET_8BIT / 1e12:.0f}); one exponential for each pair and head, or half of that
        where the variant synthesises the others, {roofline.EXPONENTIALS} for each clock of an SM
        ({most.exponentials / 1e12:.2f} T/s); and the bytes that must be moved at {bandwidth:.2f} TB/s, a large copy
        measured here.""",
        """Times as fast: by medians; the kernel alone / with its prologue, which is norm, RoPE and rounding / with its
        prologue, dense attention after eager norm and RoPE, which it needs, too. Errors are relative, ‖o - expected‖ /
        ‖expected‖, on sampled rows and heads: against the kernel's emulator, and against exact attention over the same
        keys.""",
        f"`{' '.join(record['command'])}` makes this page.",
    )
    if cut := record.get("cut"):
        head += f"\nIt ended early: {cut}.\n"
    return "\n".join([head, *(part for case in record["cases"] for part in section(case))])


def section(case: dict[str, Any]) -> list[str]:
    """One shape, in Markdown."""
    return [
        f"## {heading(case)}",
        "",
        *(f"- {one}" for one in remarks(case)),
        "",
        *(t.markdown() for t in tables(case)),
    ]
