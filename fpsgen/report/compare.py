"""What an end-to-end comparison says, on a terminal and on its page: how fast, how true, and why."""

from __future__ import annotations

from typing import Any

from fpsgen.report import words
from fpsgen.report.contenders import compared, cosine, others, reference, sided, too_close
from fpsgen.tables import Cell, Table
from fpsgen.timing import STAGES

WHOLE = (*STAGES, "total")
PARTS = {"attention": "attention", "linear": "linear layers", "rest": "rest"}
EXTRAPOLATED = ("denoise", "decode", "total")  # where anything is
_MEASURES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """For templates/compare.html.j2. record: of "kind" compare, as its JSON has it."""
    every, first = record["contenders"], others(record)[0]
    labels = {one["name"]: one["label"] for one in every}
    order = [labels[name] for name in record["order"]]
    cold = [] if record["extrapolated"] else [f"{label}, cold" for label in labels.values()]
    speedups = [one["speedup"][name] for one in others(record) if one["speedup"] for name in ("total", "denoise")]
    return {
        "title": f"{compared(record)}: {record['model']}",
        "first": first,
        "base": reference(record),
        "runs": len(every[0]["warm"]),
        "close": bool(first["speedup"]) and too_close(first["speedup"]["total"]),
        "any_close": any(map(too_close, speedups)),
        "mark": "≈\N{NO-BREAK SPACE}" if record["extrapolated"] else "",
        "time": of_time(record),
        "cold": of_cold(record) if all(one["cold"] for one in every) else None,
        "steps": of_steps(record),
        "fidelity": of_fidelity(record) if any(one["fidelity"] for one in every) else None,
        "tried": _tried(record["tried"]),
        "split": any(phase["split"] for one in every for phase in one["phases"]),
        "bars_told": _bars_told(record),
        "steps_told": _steps_told(record),
        "warm_order": order,
        "states": _states([*cold, *(f"{label}, warm" for label in order)], record["states"] or []),
    }


def tables(record: dict[str, Any]) -> list[Table]:
    """Time by stage, steps by the preset's phases, and how near the frames are to the reference's."""
    every = record["contenders"]
    found = [of_time(record)]
    if all(one["cold"] and one["warm"] for one in every):
        found.append(of_cold(record))
    found.append(of_steps(record))
    return [*found, of_fidelity(record)] if any(one["fidelity"] for one in every) else found


def of_time(record: dict[str, Any]) -> Table:
    """Medians of the warm runs, or of the cold one; in brackets the least and the most. Memory; speed-ups."""
    every = record["contenders"]
    runs = len(every[0]["warm"])
    how = f"median of {runs} warm runs each" if runs > 1 else "one warm run each" if runs else "one cold run each"
    table = sided(f"Seconds, {'extrapolated from single steps' if record['extrapolated'] else how}", every)
    for name in _stages(record, "median"):
        mark = "≈\N{NO-BREAK SPACE}" if record["extrapolated"] and name in EXTRAPOLATED else ""
        table.row(name, *(_seconds(one["median"][name], one["spread"][name], mark, name) for one in every))
    if any(peak(one) for one in every):
        table.row("peak memory", *(words.gigabytes(peak(one)) for one in every))
    for name, title in (("total", "speed-up"), ("denoise", "speed-up, denoise")) if runs else ():
        table.row(title, *(_speedup(one, name, record) for one in every))
    return table


def of_cold(record: dict[str, Any]) -> Table:
    every = record["contenders"]
    table = sided("Seconds, cold: the first run of each in this process, which also compiles its kernels", every)
    for name in _stages(record, "cold"):
        table.row(name, *(_seconds(one["cold"][name], None, "", name) for one in every))
    return table


def _stages(record: dict[str, Any], runs: str) -> list[str]:
    """The stages and the total; no compilation where there is none."""
    return [name for name in WHOLE if name != "compile" or any(one[runs][name] for one in record["contenders"])]


def _seconds(value: float | None, spread: list[float] | None, mark: str, name: str) -> Cell:
    apart = value is not None and spread and spread[1] > spread[0]
    notes = (words.DASH.join(words.precise(end) for end in spread),) if spread and apart else ()
    return Cell(f"{mark if value else ''}{words.precise(value)}", "bold" if name == "total" else "", notes)


def _speedup(one: dict[str, Any], name: str, record: dict[str, Any]) -> Cell:
    """The median, and the ratio of each pair of runs; the median is no claim where it may as well be 1."""
    if one["name"] == record["reference"]:
        return Cell("1")
    told = one["speedup"][name]
    mark = "≈\N{NO-BREAK SPACE}" if record["extrapolated"] else ""
    median, each = f"{mark}{words.ratio(told['median'])}", [words.ratio(ratio) for ratio in sorted(told["each"])]
    pairs = ", ".join(each) if len(each) <= 4 else f"{each[0]} to {each[-1]}, {len(each)} pairs"
    several = (pairs,) if len(each) > 1 else ()
    return Cell("too close to call", notes=(median, *several)) if too_close(told) else Cell(median, notes=several)


def peak(one: dict[str, Any]) -> int | None:
    """The most memory of a contender's runs, in bytes."""
    runs = [*one["warm"], *([one["cold"]] if one["cold"] else [])]
    return max((run["peak_memory_bytes"] or 0 for run in runs), default=0) or None


def of_steps(record: dict[str, Any]) -> Table:
    """A row for each phase of each contender: how long a step takes, and its parts, from a run of their own."""
    table = Table("A step, by the preset's phases; its parts are from a separate run, in seconds and shares")
    for head, right, spare in (("", False, 0), ("steps", False, 0), ("sigma", False, 4), ("density", True, 0)):
        table.column(head, right=right, spare=spare)
    table.column("seconds a step", right=True)
    for head in PARTS.values():
        table.column(head, right=True, spare=2)
    for one in record["contenders"]:
        for phase in one["phases"]:
            parts, whole = phase["split"], sum((phase["split"] or {}).get(part, 0.0) for part in PARTS)
            shares = [
                Cell(words.percent(parts[part] / whole), notes=(f"{words.precise(parts[part])} s",))
                if whole
                else words.DASH
                for part in PARTS
            ]
            density = words.DASH if phase["density"] is None else f"{phase['density']:.2f}"
            sigma, step = words.sigmas(phase["sigma"]), words.precise(phase["step"])
            table.row(one["label"], span(phase), sigma, density, step, *shares)
    return table


def span(phase: dict[str, Any]) -> str:
    first, last = phase["first"], phase["last"]
    return words.span(f"{first}" if first == last else f"{first}-{last}")


def heights(phase: dict[str, Any]) -> dict[str, float]:
    """Seconds of attention, linear layers and rest in a median step: shares of the step that was split, taken of it."""
    parts = phase["split"]
    if parts is None or not (whole := sum(parts[part] for part in PARTS)):
        return {"": phase["step"]}
    return {part: phase["step"] * parts[part] / whole for part in PARTS}


def of_fidelity(record: dict[str, Any]) -> Table:
    """Of the contenders that were compared with the reference."""
    table = sided(
        f"Fidelity to {reference(record)['label']}", every := [c for c in record["contenders"] if c["fidelity"]]
    )
    near = [one["fidelity"] for one in every]
    table.row("latent cosine", *(cosine(one["latent_cosine"], words.number(one["latent_error"])) for one in near))
    same = Cell("∞", notes=("identical",))
    table.row("PSNR", *(same if one["identical"] else words.decibels(one["psnr"]) for one in near))
    table.row("SSIM", *(f"{one['ssim']:.4f}" for one in near))
    if any(one["lpips"] is not None for one in near):
        table.row("LPIPS", *(words.number(one["lpips"]) for one in near))
    table.row("NaN, Inf", *(str(one["nonfinite"]) for one in near))
    return table


def _tried(kernels: list[dict[str, Any]]) -> Table:
    table = Table.of_numbers("", ["Kernel", "Milliseconds", ""], [""])
    for number, one in enumerate(kernels):
        took = words.DASH if one["milliseconds"] is None else f"{one['milliseconds']:.3g}"
        table.row(one["name"], took, one["why_not"] or ("taken" if number == 0 else ""))
    return table


def _states(runs: list[str], states: list[dict[str, Any]]) -> Table:
    """The card after each run; no rows where there is no card. runs: in words."""
    titles = {"clocks.sm": "SM clock, MHz", "clocks.mem": "Memory clock, MHz", "power.draw": "Power, W",
              "temperature.gpu": "Temperature, °C"}  # fmt: skip
    known = [key for key in titles if states and key in states[0]]
    table = Table.of_numbers("The card after each run", ["After", *(titles[key] for key in known)])
    for run, state in zip(runs, states, strict=False):
        table.row(run, *(words.DASH if state[key] is None else f"{state[key]:g}" for key in known))
    return table


def panels(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and key of what the picture of seconds shows: the warm runs' medians, and the cold runs."""
    every, runs = record["contenders"], len(record["contenders"][0]["warm"])
    warm = f"Warm: {f'the median of {runs} runs' if runs > 1 else 'one run'} of each"
    if record["extrapolated"]:
        warm = "Extrapolated from single steps"
    cold = [("Cold: one run of each", "cold")] if all(one["cold"] for one in every) else []
    return [(warm, "median"), *cold] if runs else cold


def _bars_told(record: dict[str, Any]) -> str:
    told = []
    for title, key in panels(record):
        for one in record["contenders"]:
            stages = [f"{name} {words.precise(one[key][name])}" for name in WHOLE if one[key][name]]
            told.append(f"{title}, {one['label']}: {', '.join(stages)} seconds")
    return ". ".join(told)


def _steps_told(record: dict[str, Any]) -> str:
    told = []
    for one in record["contenders"]:
        phases = []
        for phase in one["phases"]:
            parts = ", ".join(f"{part} {words.duration(value)}" for part, value in heights(phase).items() if part)
            phases.append(f"{span(phase)} {words.duration(phase['step'])}{f' ({parts})' if parts else ''}")
        told.append(f"{one['label']}: {'; '.join(phases)}")
    return ". ".join(told)
