"""What the page of a training run says beside what its record has."""

from __future__ import annotations

from typing import Any

from fpsgen.report import words
from fpsgen.tables import Cell, Table
from fpsgen.train.record import TrainRecord


def facts(record: TrainRecord) -> dict[str, Any]:
    """For templates/training.html.j2."""
    kind = f"LoRA of rank {record.settings['lora']}" if "lora" in record.settings else "All weights"
    return {
        "title": f"Training of {record.model}",
        "trained_what": kind,
        "clips": words.counted(len(record.prompts), "held-out clip"),
        "gained": gained(record),
        "quality": quality(record),
        "rate": record.tokens / record.seconds if record.seconds else None,
    }


def gained(record: TrainRecord) -> float | None:
    """The share of the error that training took away, of what the preset had on the untrained model; None where that
    was none, or nobody looked."""
    if len(record.checks) < 2 or not record.checks[0].error:
        return None
    return 1 - record.checks[-1].error / record.checks[0].error


def quality(record: TrainRecord) -> Table:
    """A row for each check."""
    table = Table.of_numbers("", ["Step", "Error", "PSNR, dB", "Worst clip, dB"])
    for number, check in enumerate(record.checks):
        last = number == len(record.checks) - 1
        notes = ("the preset, untrained",) if not check.step else ("the result, as its file has it",) if last else ()
        error = words.number(check.error, half=check.error_ci95)
        psnr = words.number(check.psnr, half=check.psnr_ci95)
        table.row(Cell(str(check.step), notes=notes), error, psnr, words.number(check.psnr_worst))
    return table
