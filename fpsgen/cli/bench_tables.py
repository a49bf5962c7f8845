"""The tables of `fpsgen bench`: a column for each contender."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fpsgen.report.words import counted
from fpsgen.tables import Cell, Table
from fpsgen.timing import STAGES

_MEASURES = {"latent_cosine": "latent cosine", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}


def tables(record: dict[str, Any]) -> Iterator[Table]:
    """Time by phase, steps by the preset's phases, and how near the frames are to the reference's."""
    yield of_time(record)
    if all(one["cold"] and one["warm"] for one in record["contenders"]):
        yield of_cold(record)
    yield of_steps(record)
    if any(one["fidelity"] for one in record["contenders"]):
        yield of_fidelity(record)


def new(record: dict[str, Any], title: str) -> Table:
    table = Table(title)
    table.column("")
    for one in record["contenders"]:
        table.column(one["label"], right=True)
    return table


def reference(record: dict[str, Any]) -> str:
    """The label of the contender that the others are compared with."""
    return next(one["label"] for one in record["contenders"] if one["name"] == record["reference"])


def of_time(record: dict[str, Any]) -> Table:
    """Medians of the warm runs, how far they went apart, the cold run; speed-ups."""
    contenders = record["contenders"]
    runs = len(contenders[0]["warm"])
    how = f"median of {runs} warm runs each" if runs > 1 else "one warm run each" if runs else "cold runs"
    table = new(record, f"Seconds, {'extrapolated from single steps' if record['extrapolated'] else how}")
    for name in STAGES:
        if name != "compile" or any(round(one["median"][name] or 0, 2) for one in contenders):
            table.row(name, *(seconds(one["median"][name]) for one in contenders))
    table.row(Cell("total", "bold"), *(Cell(seconds(one["median"]["total"]), "bold") for one in contenders))
    if runs > 1:
        table.row("  from, to", *(" to ".join(seconds(x) for x in one["spread"]["total"]) for one in contenders))
    if any(one["warm"] and one["warm"][-1]["peak_memory_bytes"] for one in contenders):
        table.row("memory, peak", *(gigabytes(one["warm"]) for one in contenders))
    for name, title in (("total", "speed-up"), ("denoise", "speed-up, denoise")) if runs else ():
        table.row(title, *(speedup(one, name) for one in contenders))
    return table


def of_cold(record: dict[str, Any]) -> Table:
    """The first run of each, in the order of the columns."""
    table = new(record, "Seconds of the cold runs: the first of each in this process, which also compiles its kernels")
    for name in (*STAGES, "total"):
        times = [one["cold"][name] for one in record["contenders"]]
        if name != "compile" or any(round(time or 0, 2) for time in times):
            table.row(name, *(seconds(time) for time in times))
    return table


def of_steps(record: dict[str, Any]) -> Table:
    """Seconds of a step in each phase of the preset, the density where it is below 1, and the parts of a step."""
    table = Table("Seconds of a step; below them, from a separate run: attention + linear layers + rest")
    table.column("")
    for one in record["contenders"]:
        table.column(one["label"], right=True)
        if is_sparse(one):
            table.column(f"density, {one['label']}", right=True)
    told: list[str] = []
    for number, phase in enumerate(record["contenders"][0]["phases"]):
        first, last = phase["first"], phase["last"]
        cells, parts = [], []
        for one in record["contenders"]:
            own = one["phases"][number]
            cells += [f"{own['step']:.3f} s", *([f"{own['density']:.2f}"] if is_sparse(one) else [])]
            parts += [split(own), *([""] if is_sparse(one) else [])]
        table.row(f"step {first}" if first == last else f"steps {first} to {last}", *cells)
        before, told = told, parts
        if told != before:  # phases of equal plans are measured once
            table.row("", *told)
    return table


def of_fidelity(record: dict[str, Any]) -> Table:
    table = new(record, f"Fidelity to {reference(record)}")
    for measure, title in _MEASURES.items():
        told = [one["fidelity"] for one in record["contenders"]]
        if measure == "lpips" and not any(own and own[measure] is not None for own in told):
            continue
        table.row(title, *(fidelity(own, measure) for own in told))
    table.row(
        "NaN, Inf", *(str(own["fidelity"]["nonfinite"]) if own["fidelity"] else "" for own in record["contenders"])
    )
    return table


def remark(record: dict[str, Any]) -> str | None:
    """Why a ratio is not called though all its pairs lie on one side of 1: they are few."""
    from fpsgen.report.bench.common import CLEAR, SMALL, too_close

    for one in record["contenders"]:
        for found in (one["speedup"] or {}).values():
            each = found["each"]
            if too_close(found) and not min(each) <= 1 <= max(each):
                few = f"with only {counted(len(each), 'pair')} of runs"
                chance = f"a speed-up between {1 - SMALL:g} and {1 + SMALL:g} may be chance"
                return f"too close to call: {few}, {chance}; --pairs {CLEAR} tells more"
    return None


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def gigabytes(runs: list[dict[str, Any]]) -> str:
    peak = max((run["peak_memory_bytes"] or 0 for run in runs), default=0)
    return f"{peak / 2**30:.2f} GiB" if peak else "-"


def speedup(one: dict[str, Any], name: str) -> str:
    """The median, and the passes' own; no median where it may as well be 1."""
    from fpsgen.report.bench.common import too_close

    if (found := one["speedup"]) is None:
        return ""
    each = [f"{ratio:.2f}" for ratio in sorted(found[name]["each"])]
    own = each[0] if len(each) == 1 else f"{each[0]} to {each[-1]}"
    if too_close(found[name]):
        return f"too close to call ({own})"
    return own if len(each) == 1 else f"{found[name]['median']:.2f} ({own})"


def is_sparse(one: dict[str, Any]) -> bool:
    """Whether a contender leaves pairs of tokens out in some phase; None is the density of one that is not ours."""
    return any(phase["density"] is not None and phase["density"] < 1 for phase in one["phases"])


def split(phase: dict[str, Any]) -> str:
    if (parts := phase["split"]) is None:
        return ""
    return " + ".join(f"{parts[name]:.3f}" for name in ("attention", "linear", "rest"))


def fidelity(told: dict[str, Any] | None, measure: str) -> str:
    if told is None:
        return ""
    value = told[measure]
    if measure == "psnr":
        return "∞, identical" if told["identical"] else f"{value:.1f} dB"
    return "-" if value is None else f"{value:.6f}" if measure == "latent_cosine" else f"{value:.4f}"
