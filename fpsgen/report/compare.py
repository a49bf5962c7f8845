"""What an end-to-end comparison says, on a terminal and on its page: how fast, how true, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fpsgen.report import words
from fpsgen.report.contenders import compared, cosine, others, reference, sided, too_close
from fpsgen.tables import Cell, Table
from fpsgen.timing import STAGES

PARTS = {"attention": "attention", "linear": "linear layers", "rest": "rest"}
EXTRAPOLATED = ("denoise", "decode", "total")  # where anything is
_GUESS = "≈\N{NO-BREAK SPACE}"
_STATE = {"clocks.sm": "SM clock, MHz", "clocks.mem": "Memory clock, MHz", "power.draw": "Power, W",
          "temperature.gpu": "Temperature, °C"}  # fmt: skip


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """For templates/compare.html.j2. record: of "kind" compare, as its JSON has it."""
    first = others(record)[0]
    order = [one["label"] for name in record["order"] for one in record["contenders"] if one["name"] == name]
    runs = [f"{one['label']}, cold" for one in record["contenders"] if one["cold"]]
    runs += [f"{label}, warm" for label in order]
    return {
        "title": f"{compared(record)}: {record['model']}",
        "first": first,
        "base": reference(record),
        "runs": len(first["warm"]),
        "close": bool(first["speedup"]) and too_close(first["speedup"]["total"]),
        "any_close": any(too_close(ratio) for one in others(record) for ratio in (one["speedup"] or {}).values()),
        "mark": _GUESS if record["extrapolated"] else "",
        "tables": {name: make(record) for name, make in _TABLES.items()},
        "panels": panels(record),
        "stages": (*STAGES, "total"),
        "parts_of": parts_of,
        "span_of": span,
        "warm_order": order,
        "states": _states(runs, record["states"] or []),
    }


def tables(record: dict[str, Any]) -> list[Table]:
    """For a terminal: those of `_TABLES` that have rows, and no second one of cold runs."""
    made = {name: make(record) for name, make in _TABLES.items() if name != "tried"}
    return [table for name, table in made.items() if table.rows and (name != "cold" or others(record)[0]["warm"])]


def of_time(record: dict[str, Any]) -> Table:
    """Medians of the warm runs, or else the cold one's times; in brackets the least and the most. Memory; speed-ups."""
    every = record["contenders"]
    runs = len(every[0]["warm"])
    how = f"median of {runs} warm runs each" if runs > 1 else "one warm run each" if runs else "one cold run each"
    rows = _times(record, "median")
    rows["peak memory, all runs"] = [words.gigabytes(peak(one)) for one in every] if any(map(peak, every)) else []
    for name, title in (("total", "speed-up"), ("denoise", "speed-up, denoise")) if runs else ():
        rows[title] = [_speedup(one, name, record) for one in every]
    return sided(f"Seconds, {'extrapolated from single steps' if record['extrapolated'] else how}", every, rows)


def of_cold(record: dict[str, Any]) -> Table:
    title = "Seconds, cold: the first run of each in this process, which also compiles its kernels"
    return sided(title, [one for one in record["contenders"] if one["cold"]], _times(record, "cold"))


def _times(record: dict[str, Any], key: str) -> dict[str, list[str | Cell]]:
    """The stages and the total; no compilation where there is none."""
    every, rows = [one for one in record["contenders"] if one[key]], dict[str, list[str | Cell]]()
    for name in (*STAGES, "total"):
        if name != "compile" or any(one[key][name] for one in every):
            style = "bold" if name == "total" else ""
            mark = _GUESS if record["extrapolated"] and name in EXTRAPOLATED else ""
            spreads = {one["name"]: one["spread"][name] for one in every if key == "median"}
            rows[name] = [_seconds(one[key][name], spreads.get(one["name"]), mark, style) for one in every]
    return rows


def _seconds(value: float | None, spread: list[float] | None, mark: str, style: str) -> Cell:
    if value is None:
        return Cell(words.DASH)
    apart = (words.DASH.join(map(words.precise, spread)),) if spread and spread[1] > spread[0] else ()
    return Cell(f"{mark if value else ''}{words.precise(value)}", style, apart)


def _speedup(one: dict[str, Any], name: str, record: dict[str, Any]) -> Cell:
    """The median, and the ratio of each pair of runs; the median is no claim where it may as well be 1."""
    if one["name"] == record["reference"]:
        return Cell("1")
    speedup = one["speedup"][name]
    median = f"{_GUESS if record['extrapolated'] else ''}{words.ratio(speedup['median'])}"
    each = [words.ratio(ratio) for ratio in sorted(speedup["each"])]
    pairs = ", ".join(each) if len(each) <= 4 else f"{each[0]} to {each[-1]}, {len(each)} pairs"
    several = (pairs,) if len(each) > 1 else ()
    return Cell("too close to call", notes=(median, *several)) if too_close(speedup) else Cell(median, notes=several)


def peak(one: dict[str, Any]) -> int | None:
    """The most memory of a contender's runs, in bytes."""
    return max(run["peak_memory_bytes"] or 0 for run in (*one["warm"], one["cold"]) if run) or None


def of_steps(record: dict[str, Any]) -> Table:
    """A row for each phase of each contender: how long a step takes, and its parts, from a run of their own."""
    heads = ["", "sigma", "density", "seconds a step", *PARTS.values()]
    title = "A step, by the preset's phases; its parts are from a separate run, in shares and seconds"
    table = Table.of_numbers(title, heads, ["sigma"])
    for one in record["contenders"]:
        for phase in one["phases"]:
            parts: list[str | Cell] = [
                Cell(words.percent(share), notes=(f"{words.precise(phase['split'][part])} s",))
                for part, share in shares(phase).items()
            ]
            density = words.DASH if phase["density"] is None else f"{phase['density']:.2f}"
            who = f"{one['label']}, {span(phase)}"
            step = words.precise(phase["step"])
            table.row(who, words.sigmas(phase["sigma"]), density, step, *(parts or [words.DASH] * len(PARTS)))
    return table


def span(phase: dict[str, Any]) -> str:
    first, last = phase["first"], phase["last"]
    return words.span(f"{first}" if first == last else f"{first}-{last}")


def shares(phase: dict[str, Any]) -> dict[str, float]:
    """The shares of attention, linear layers and rest in the step that was split; empty if none was."""
    parts = phase["split"] or {}
    whole = sum(parts.get(part, 0.0) for part in PARTS)
    return {part: parts[part] / whole for part in PARTS} if whole else {}


def parts_of(phase: dict[str, Any]) -> dict[str, float]:
    """Seconds of a median step by its parts, or those of the whole, which has no name."""
    return {part: phase["step"] * share for part, share in (shares(phase) or {"": 1.0}).items()}


def of_fidelity(record: dict[str, Any]) -> Table:
    """A table of the contenders that were compared with the reference."""
    every = [one for one in record["contenders"] if one["fidelity"]]
    near = [one["fidelity"] for one in every]
    same = Cell("∞", notes=("identical",))
    rows: dict[str, Sequence[str | Cell]] = {
        "latent cosine": [cosine(one["latent_cosine"], one["latent_error"]) for one in near],
        "PSNR": [same if one["identical"] else words.decibels(one["psnr"]) for one in near],
        "SSIM": [f"{one['ssim']:.4f}" for one in near],
        "LPIPS": [words.number(one["lpips"]) for one in near] if any(one["lpips"] is not None for one in near) else [],
        "NaN, Inf": [str(one["nonfinite"]) for one in near],
    }
    return sided(f"Fidelity to {reference(record)['label']}", every, rows)


def of_kernels(record: dict[str, Any]) -> Table:
    """Dense kernels by how fast they were, the taken one first."""
    rows = []
    for number, one in enumerate(record["tried"]):
        took = words.DASH if one["milliseconds"] is None else f"{one['milliseconds']:.3g}"
        rows.append((one["name"], took, one["why_not"] or ("taken" if number == 0 else "")))
    return Table.of_numbers("", ["Kernel", "Milliseconds", ""], [""], rows)


_TABLES = {"time": of_time, "cold": of_cold, "steps": of_steps, "fidelity": of_fidelity, "tried": of_kernels}


def _states(runs: list[str], states: list[dict[str, Any]]) -> Table:
    """The card after each run; no rows where there is no card. runs: in words."""
    known = [key for key in _STATE if states and key in states[0]]
    rows = [
        (run, *(words.DASH if state[key] is None else f"{state[key]:g}" for key in known))
        for run, state in zip(runs, states, strict=False)
    ]
    return Table.of_numbers("The card after each run", ["After", *(_STATE[key] for key in known)], rows=rows)


def panels(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and key of what the picture of seconds shows: the warm runs' medians, and the cold runs."""
    runs = len(record["contenders"][0]["warm"])
    warm = f"Warm: {f'the median of {runs} runs' if runs > 1 else 'one run'} of each"
    if record["extrapolated"]:
        return [("Extrapolated from single steps", "median")]
    cold = ("Cold: one run of each", "cold")
    return [(warm, "median"), cold] if runs else [cold]
