"""What an end-to-end comparison says, on a terminal and on its page: how fast, how true, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fpsgen.bench.record import CompareContender, CompareRecord, PhaseTimes, State
from fpsgen.report import words
from fpsgen.report.contenders import compared, cosine, sided, too_close
from fpsgen.tables import Cell, Table
from fpsgen.timing import STAGES

PARTS = {"attention": "attention", "linear": "linear layers", "rest": "rest"}
EXTRAPOLATED = ("denoise", "decode", "total")  # where anything is
_GUESS = "≈\N{NO-BREAK SPACE}"
_STATE = {"clocks.sm": "SM clock, MHz", "clocks.mem": "Memory clock, MHz", "power.draw": "Power, W",
          "temperature.gpu": "Temperature, °C"}  # fmt: skip

Seconds = Mapping[str, float | None]  # of each stage and the total


def facts(record: CompareRecord) -> dict[str, Any]:
    """For templates/compare.html.j2."""
    first = record.others[0]
    labels = {one.name: one.label for one in record.contenders}
    order = [labels[name] for name in record.order]
    runs = [f"{one.label}, cold" for one in record.contenders if one.cold] + [f"{label}, warm" for label in order]
    return {
        "title": f"{compared(record)}: {record.model}",
        "close": first.speedup is not None and too_close(first.speedup["total"]),
        "any_close": any(too_close(ratio) for one in record.others for ratio in (one.speedup or {}).values()),
        "mark": _GUESS if record.extrapolated else "",
        "tables": {name: make(record) for name, make in _TABLES.items()},
        "panels": panels(record),
        "times_of": times_of,
        "stages": (*STAGES, "total"),
        "parts_of": parts_of,
        "span_of": span,
        "warm_order": order,
        "states": _states(runs, record.states or []),
    }


def tables(record: CompareRecord) -> list[Table]:
    """For a terminal: those of `_TABLES` that have rows, and no second one of cold runs."""
    made = {name: make(record) for name, make in _TABLES.items() if name != "tried"}
    return [table for name, table in made.items() if table.rows and (name != "cold" or record.others[0].warm)]


def times_of(one: CompareContender, which: str) -> Seconds:
    """Of the "median" of a contender's runs or of its "cold" run; nothing where it has none."""
    return one.median if which == "median" else asdict(one.cold) if one.cold else {}


def of_time(record: CompareRecord) -> Table:
    """Medians of the warm runs, or else the cold one's times; in brackets the least and the most. Memory; speed-ups."""
    every = record.contenders
    runs = len(every[0].warm)
    how = f"median of {runs} warm runs each" if runs > 1 else "one warm run each" if runs else "one cold run each"
    rows = _times(record, "median")
    rows["peak memory, all runs"] = [words.gigabytes(peak(one)) for one in every] if any(map(peak, every)) else []
    for name, title in (("total", "speed-up"), ("denoise", "speed-up, denoise")) if runs else ():
        rows[title] = [_speedup(one, name, record) for one in every]
    return sided(f"Seconds, {'extrapolated from single steps' if record.extrapolated else how}", every, rows)


def of_cold(record: CompareRecord) -> Table:
    title = "Seconds, cold: the first run of each in this process, which also compiles its kernels"
    return sided(title, [one for one in record.contenders if one.cold], _times(record, "cold"))


def _times(record: CompareRecord, which: str) -> dict[str, list[str | Cell]]:
    """The stages and the total; no compilation where there is none."""
    every = [(one, times) for one in record.contenders if (times := times_of(one, which))]
    rows = dict[str, list[str | Cell]]()
    for name in (*STAGES, "total"):
        if name != "compile" or any(times[name] for _, times in every):
            style = "bold" if name == "total" else ""
            mark = _GUESS if record.extrapolated and name in EXTRAPOLATED else ""
            rows[name] = [
                _seconds(times[name], one.spread[name] if which == "median" else None, mark, style)
                for one, times in every
            ]
    return rows


def _seconds(value: float | None, spread: Sequence[float | None] | None, mark: str, style: str) -> Cell:
    if value is None:
        return Cell(words.DASH)
    apart = (words.DASH.join(map(words.precise, spread)),) if spread and spread[0] != spread[1] else ()
    return Cell(f"{mark if value else ''}{words.precise(value)}", style, apart)


def _speedup(one: CompareContender, name: str, record: CompareRecord) -> Cell:
    """The median, and the ratio of each pair of runs; the median is no claim where it may as well be 1."""
    if one.speedup is None:
        return Cell("1")
    speedup = one.speedup[name]
    median = f"{_GUESS if record.extrapolated else ''}{words.ratio(speedup.median)}"
    each = [words.ratio(ratio) for ratio in sorted(speedup.each)]
    pairs = ", ".join(each) if len(each) <= 4 else f"{each[0]} to {each[-1]}, {len(each)} pairs"
    several = (pairs,) if len(each) > 1 else ()
    return Cell("too close to call", notes=(median, *several)) if too_close(speedup) else Cell(median, notes=several)


def peak(one: CompareContender) -> int | None:
    """The most memory of a contender's runs, in bytes."""
    return max(run.peak_memory_bytes or 0 for run in (*one.warm, one.cold) if run) or None


def of_steps(record: CompareRecord) -> Table:
    """A row for each phase of each contender: how long a step takes, and its parts, from a run of their own."""
    heads = ["", "sigma", "density", "seconds a step", *PARTS.values()]
    title = "A step, by the preset's phases; its parts are from a separate run, in shares and seconds"
    table = Table.of_numbers(title, heads, ["sigma"])
    for one in record.contenders:
        for phase in one.phases:
            parts: list[str | Cell] = [
                Cell(words.percent(share), notes=(f"{words.precise(getattr(phase.split, part))} s",))
                for part, share in shares(phase).items()
            ]
            density = words.DASH if phase.density is None else f"{phase.density:.2f}"
            begin = f"{one.label}, {span(phase)}", words.sigmas(phase.sigma), density, words.precise(phase.step)
            table.row(*begin, *(parts or [words.DASH] * len(PARTS)))
    return table


def span(phase: PhaseTimes) -> str:
    return words.span(f"{phase.first}" if phase.first == phase.last else f"{phase.first}-{phase.last}")


def shares(phase: PhaseTimes) -> dict[str, float]:
    """The shares of attention, linear layers and rest in the step that was split; empty if none was."""
    split = phase.split
    return {part: getattr(split, part) / split.total for part in PARTS} if split and split.total else {}


def parts_of(phase: PhaseTimes) -> dict[str, float]:
    """Seconds of a median step by its parts, or those of the whole, which has no name."""
    return {part: phase.step * share for part, share in (shares(phase) or {"": 1.0}).items()}


def of_fidelity(record: CompareRecord) -> Table:
    """A table of the contenders that were compared with the reference."""
    every = [one for one in record.contenders if one.fidelity]
    near = [one.fidelity for one in every if one.fidelity]
    same = Cell("∞", notes=("identical",))
    rows: dict[str, Sequence[str | Cell]] = {
        "latent cosine": list(map(cosine, near)),
        "PSNR": [same if one.identical else words.decibels(one.psnr) for one in near],
        "SSIM": [f"{one.ssim:.4f}" for one in near],
        "LPIPS": [words.number(one.lpips) for one in near] if any(one.lpips is not None for one in near) else [],
        "NaN, Inf": [str(one.nonfinite) for one in near],
    }
    return sided(f"Fidelity to {record.base.label}", every, rows)


def of_kernels(record: CompareRecord) -> Table:
    """Dense kernels by how fast they were, the taken one first."""
    table = Table.of_numbers("", ["Kernel", "Milliseconds", ""], [""])
    for number, one in enumerate(record.tried):
        took = words.DASH if one.milliseconds is None else f"{one.milliseconds:.3g}"
        table.row(one.name, took, one.why_not or ("taken" if number == 0 else ""))
    return table


_TABLES = {"time": of_time, "cold": of_cold, "steps": of_steps, "fidelity": of_fidelity, "tried": of_kernels}


def _states(runs: list[str], states: Sequence[State | None]) -> Table:
    """The card after each run; no rows where there is no card. runs: in words."""
    known = [key for key in _STATE if states and states[0] and key in states[0]]
    table = Table.of_numbers("The card after each run", ["After", *(_STATE[key] for key in known)])
    for run, state in zip(runs, states, strict=False):
        values = [(state or {}).get(key) for key in known]
        table.row(run, *(words.DASH if value is None else f"{value:g}" for value in values))
    return table


def panels(record: CompareRecord) -> list[tuple[str, str]]:
    """Title of what the picture of seconds shows, and which `times_of`: the warm runs' medians, and the cold runs."""
    runs = len(record.contenders[0].warm)
    warm = f"Warm: {f'the median of {runs} runs' if runs > 1 else 'one run'} of each"
    if record.extrapolated:
        return [("Extrapolated from single steps", "median")]
    cold = ("Cold: one run of each", "cold")
    return [(warm, "median"), cold] if runs else [cold]
