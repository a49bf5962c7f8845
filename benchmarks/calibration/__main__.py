"""Is calibration worth it? The pocket model on held-out prompts, at equal cost; `PROTOCOL.md` says what is compared.

    python -m benchmarks.calibration --out benchmarks/results/calibration

Every clip is kept in fpsgen's cache (FPSGEN_CACHE_DIR), so that a run which was ended goes on where it was. Writes
.json and .md.
"""

from __future__ import annotations

import sys
from typing import TypeVar

import torch
from rich.console import Console

from benchmarks.calibration import held_out
from benchmarks.calibration.contenders import LEVELS, attention_cost, contenders_of, dense, video_cost
from benchmarks.calibration.page import document, rows_of
from benchmarks.calibration.worker import CPU, Plans, Pool, Worker, job_for
from benchmarks.record import RESULTS
from fpsgen import files
from fpsgen.calibrate.run import calibrate
from fpsgen.events import Event, Notice
from fpsgen.machine import provenance
from fpsgen.target import Target
from fpsgen.wan.plan import mean_density

T = TypeVar("T")


def main() -> None:
    args = held_out.arguments(__doc__, RESULTS / "calibration")
    console = Console(stderr=True, highlight=False)
    begin = provenance(["python", "-m", "benchmarks.calibration", *sys.argv[1:]])  # of the code that is running

    def watch(event: Event) -> None:
        if isinstance(event, Notice):
            console.print(event.text)

    base = job_for(LEVELS["middle"])
    result = calibrate(base, Target(CPU, torch.float32, torch.bfloat16), watch)
    pool = Pool(args.workers, console)
    own = [(prompt, base.seed + i) for i, prompt in enumerate(base.prompts[: base.effort.clips])]

    def trial(every: list[Plans]) -> list[float]:
        return [sum(each) / len(each) for each in pool.run("calibration clips", Worker.errors, own, every)]

    every: dict[tuple[str, str], Plans] = {("", "dense, int8"): (dense(base),) * base.settings.steps}
    for level in LEVELS:
        console.print(f"{level}: at most {LEVELS[level]}")
        found = contenders_of(level, result.measurement, trial)
        every |= {(level, name): plans for name, plans in found.items()}
    specs = held_out.specs(args.clips)
    checked = pool.run("held-out clips", Worker.check, specs, list(every.values()))
    record = {
        **begin,
        **held_out.about(base, LEVELS, specs),
        "contenders": [
            {
                "level": level,
                "name": name,
                "steps": len(plans),
                "cost": attention_cost(base, plans),
                "video_cost": video_cost(base, plans),
                "density": mean_density(plans, base.settings.branches),
                "error": [one.error for one in clips],
                "psnr": [one.psnr for one in clips],
            }
            for ((level, name), plans), clips in zip(every.items(), checked, strict=True)
        ],
    }
    record["rows"] = rows_of(record)
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))


if __name__ == "__main__":
    main()
