"""What one budget over the whole step is worth; `PROTOCOL.md`, the third measurement, says what is compared.

    python -m benchmarks.calibration.denoising --out benchmarks/results/denoising

Every clip is kept in fpsgen's cache (FPSGEN_CACHE_DIR), so that a run which was ended goes on where it was. Writes
.json, .md, and docs/denoising.png.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.calibration import held_out
from benchmarks.calibration.denoising_page import document, picture, rows_of
from benchmarks.calibration.worker import CPU, Plans, Pool, Worker, job_for
from benchmarks.record import RESULTS
from fpsgen import files
from fpsgen.calibrate import solve
from fpsgen.calibrate.budget import Budget
from fpsgen.calibrate.candidates import EVERYTHING, Choice
from fpsgen.calibrate.job import Job, problem
from fpsgen.calibrate.measurement import Measurement
from fpsgen.calibrate.run import calibrate
from fpsgen.calibrate.schedule import to_preset
from fpsgen.events import Event, Notice
from fpsgen.machine import provenance
from fpsgen.presets import BF16, DENSE_INT8
from fpsgen.presets.account import denoising_cost
from fpsgen.target import Target

LEVELS = {"high": 0.40, "middle": 0.25, "low": 0.15}  # of denoising's cost
ATTENTION: frozenset[Choice] = frozenset({"attention"})
SETS: dict[str, frozenset[Choice]] = {
    "attention only": ATTENTION,
    "+ linear layers": ATTENTION | {"linear"},
    "+ guidance": ATTENTION | {"guidance"},
    "+ reused steps": ATTENTION | {"compute"},
    "all": EVERYTHING,
}
SHEET = Path(__file__).parents[2] / "docs" / "denoising.png"


def cost_of(job: Job, plans: Plans) -> float:
    """Of the whole video; BF16 in the job's steps is 1."""
    own = denoising_cost(plans, job.model, job.settings.branches)
    return own * len(plans) / job.settings.steps


def contenders_of(level: str, measurement: Measurement) -> dict[str, Plans]:
    """All of one level, by name."""
    limit, found = LEVELS[level], {}
    for name, choose in SETS.items():
        job = replace(job_for(limit), choose=choose)
        if (schedule := solve.within_cost(problem(job, measurement), limit)) is not None:
            found[name] = to_preset(job, schedule).steps(job.model, job.settings)
    job = job_for(limit)
    for name, preset in (("fewer steps, bf16", BF16), ("fewer steps, int8", DENSE_INT8)):
        dense = preset.steps(job.model, job.settings)
        steps = max(2, math.floor(limit / cost_of(job, dense[:1]) + 1e-9))
        found[f"{name}: {steps}"] = dense[:steps]
    return found


def main() -> None:
    args = held_out.arguments(__doc__, RESULTS / "denoising")
    console = Console(stderr=True, highlight=False)
    begin = provenance(["python", "-m", "benchmarks.calibration.denoising", *sys.argv[1:]])

    def watch(event: Event) -> None:
        if isinstance(event, Notice):
            console.print(event.text)

    base = job_for(LEVELS["middle"])
    base = replace(base, budget=Budget("cost", LEVELS["middle"]), choose=EVERYTHING)
    result = calibrate(base, Target(CPU, torch.float32, torch.bfloat16), watch)
    every = {
        (level, name): plans for level in LEVELS for name, plans in contenders_of(level, result.measurement).items()
    }
    specs = held_out.specs(args.clips)
    checked = Pool(args.workers, console).run("held-out clips", Worker.check, specs, list(every.values()))
    record = {
        **begin,
        **held_out.about(base, LEVELS, specs),
        "contenders": [
            {
                "level": level,
                "name": name,
                "cost": cost_of(base, plans),
                "steps": [f"{step.compute}, {step.guidance}" for step in plans],
                "error": [one.error for one in clips],
                "psnr": [one.psnr for one in clips],
            }
            for ((level, name), plans), clips in zip(every.items(), checked, strict=True)
        ],
    }
    record["rows"] = rows_of(record)
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))
    SHEET.write_bytes(picture(record))


if __name__ == "__main__":
    main()
