"""What the page of a calibration says beside what its record has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from math import prod
from statistics import fmean
from typing import Any

from fpsgen.calibrate.record import CalibrationRecord, Checked, FrontierPoint
from fpsgen.kernels.sm90_attention import HEAD_DIM
from fpsgen.presets import cost, file
from fpsgen.report import words
from fpsgen.tables import Cell, Column, Table

_COMPUTED = {
    "full": "both branches",
    "reuse": "the conditional branch; the difference of both is used again",
    "off": "the conditional branch, without guidance",
}
KINDS = {"calibrated": "calibrated", "preset": "shipped preset", "uniform": "one plan everywhere",
         "dense": "dense, fewer steps"}  # of schedules  # fmt: skip


def facts(record: CalibrationRecord) -> dict[str, Any]:
    """For templates/calibration.html.j2."""
    cells = [name for row in record.precision for name in row]
    errors = [(e, p, n) for p, row in enumerate(record.error) for n, e in enumerate(row) if e > 0]
    worst = "no cell has any error"
    if errors:
        most, phase, layer = max(errors)
        steps = words.span(record.phases[phase].steps)
        worst = f"the largest error is {words.number(most)}, by layer {layer} in {steps}"
    return {
        "title": f"Calibration of {record.model}",
        "card": cost.CARD,
        "tflops": cost.TFLOPS,
        "linear_tflops": cost.LINEAR_TFLOPS,
        "rounding": cost.of_pairs(0, "int8", record.cost_tokens),
        "tokens": prod(record.grid),
        "parts": len(cells),
        "dense": cells.count("bf16"),
        "kernel_heads": HEAD_DIM,
        "unseen": not {clip.prompt for clip in record.clips} & set(record.prompts),
        "worst": worst,
        "seen": _seen(record),
        "steps": _steps(record),
        "linear": _linear(record),
        "schedules": _schedules(record.frontier),
        "clips": _clips(record.clips),
    }


def _seen(record: CalibrationRecord) -> Table:
    """What heads see in each phase: the share of the heads that have each kind of key tiles, and what that comes to."""
    heads = ["Steps", "All tiles", "A window", "The best tiles", "Their share, mean", "Summary of the rest"]
    table = Table.of_numbers("", heads)
    for phase, layers in zip(record.phases, record.sees, strict=False):
        every = [own for layer in layers for own in layer]
        tops = [own.top for own in every if own.top is not None]
        windows, summed = sum(own.window is not None for own in every), sum(own.rest == "summary" for own in every)
        counts = (len(every) - windows - len(tops), windows, len(tops), summed)
        dense, window, top, rest = (f"{100 * count / len(every):.0f} %" for count in counts)
        table.row(phase.steps, dense, window, top, f"{100 * fmean(tops):.0f} %" if tops else "", rest)
    return table


def _steps(record: CalibrationRecord) -> Table:
    """What the schedule leaves out of steps, as far as it does: successive ones that are obtained alike."""
    table, last = Table(columns=[Column("Steps"), Column("What is computed")]), 0
    for done, alike in groupby(record.steps_done):
        first, last = last + 1, last + len(list(alike))
        words_of = (
            _COMPUTED[done.guidance] if done.compute == "full" else "nothing: the velocities before are continued"
        )
        table.row(file.ranges(range(first, last + 1)), words_of)
    return table


def _linear(record: CalibrationRecord) -> str:
    """Of linear layers, the share that each precision has."""
    every = Counter(own for layers in record.linear for own in layers)
    return ", ".join(f"{own}: {100 * count / every.total():.0f} %" for own, count in every.most_common())


def unbeaten(points: Iterable[FrontierPoint]) -> list[FrontierPoint]:
    """The points, by cost, that have less error than all cheaper ones."""
    kept: list[FrontierPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, point.error)):
        if not kept or point.error < kept[-1].error:
            kept.append(point)
    return kept


def _schedules(points: Sequence[FrontierPoint]) -> Table:
    """What was measured, the shipped presets, and the uniform plans that no cheaper one of them beats."""
    uniform = unbeaten(point for point in points if point.kind == "uniform")
    table = Table.of_numbers("", ["Schedule", "Kind", "Cost", "Error", "PSNR"], ["Kind"])
    for point in sorted(points, key=lambda point: point.cost):
        if point.measured or point.chosen or point.kind == "preset" or point in uniform:
            name = Cell(point.name or ("chosen" if point.chosen else "tried"), "bold" if point.chosen else "")
            error = Cell(words.number(point.error), notes=() if point.measured else ("predicted",))
            table.row(name, KINDS[point.kind], f"{point.cost:.2f}", error, words.decibels(point.psnr))
    return table


def _clips(clips: Iterable[Checked]) -> Table:
    rows = ((one.prompt, str(one.seed), words.number(one.error), words.decibels(one.psnr)) for one in clips)
    return Table.of_numbers("", ["Prompt", "Seed", "Error", "PSNR"], rows=rows)
