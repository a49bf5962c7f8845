"""What the page of a calibration says beside what its record has."""

from __future__ import annotations

from math import prod
from typing import Any

from fpsgen.kernels.sm90_attention import HEAD_DIM
from fpsgen.presets import cost
from fpsgen.report import words
from fpsgen.tables import Cell, Table

KINDS = {"calibrated": "calibrated", "preset": "shipped preset", "uniform": "one plan everywhere"}  # of schedules


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """For templates/calibration.html.j2. record: what the calibration measured and chose."""
    cells = [name for row in record["precision"] for name in row]
    errors = [(e, p, n) for p, row in enumerate(record["error"]) for n, e in enumerate(row) if e > 0]
    worst = "no cell has any error"
    if errors:
        most, phase, layer = max(errors)
        steps = words.span(str(record["phases"][phase]["steps"]))
        worst = f"the largest error is {words.number(most)}, by layer {layer} in {steps}"
    tokens = record["cost_tokens"]
    return {
        "title": f"Calibration of {record['model']}",
        "card": cost.CARD,
        "tflops": cost.TFLOPS,
        "rounding": cost.of_pairs(0, "int8", tokens),
        "tokens": prod(record["grid"]),
        "parts": len(cells),
        "dense": cells.count("bf16"),
        "kernel_heads": HEAD_DIM,
        "unseen": not {clip["prompt"] for clip in record["clips"]} & set(record["prompts"]),
        "worst": worst,
        "schedules": _schedules(record["frontier"]),
        "clips": _clips(record["clips"]),
    }


def unbeaten(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points, by cost, that have less error than all cheaper ones."""
    kept: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point["cost"], point["error"])):
        if not kept or point["error"] < kept[-1]["error"]:
            kept.append(point)
    return kept


def _schedules(points: list[dict[str, Any]]) -> Table:
    """What was measured, the shipped presets, and the uniform plans that no cheaper one of them beats."""
    uniform = unbeaten([point for point in points if point["kind"] == "uniform"])
    table = Table.of_numbers("", ["Schedule", "Kind", "Cost", "Error", "PSNR"], ["Kind"])
    for point in sorted(points, key=lambda point: point["cost"]):
        if point["measured"] or point["chosen"] or point["kind"] == "preset" or point in uniform:
            name = point["name"] or ("chosen" if point["chosen"] else "tried")
            error = Cell(words.number(point["error"]), notes=() if point["measured"] else ("predicted",))
            style = "bold" if point["chosen"] else ""
            table.row(
                Cell(name, style), KINDS[point["kind"]], f"{point['cost']:.2f}", error, words.decibels(point["psnr"])
            )
    return table


def _clips(clips: list[dict[str, Any]]) -> Table:
    cells = (
        (clip["prompt"], clip["seed"], words.number(clip["error"]), words.decibels(clip["psnr"])) for clip in clips
    )
    return Table.of_numbers("", ["Prompt", "Seed", "Error", "PSNR"], rows=(map(str, row) for row in cells))
