"""What training through a preset wins back, on the pocket model; `PROTOCOL.md` says what is compared.

    python -m benchmarks.training --out benchmarks/results/training

Makes the data, trains, and judges on held-out clips, all in `--work`; what is there already is not made again, so that
a run which was ended goes on where it was. Writes .json, .md, and docs/training.png.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path

from benchmarks.calibration import held_out
from benchmarks.calibration.contenders import attention_cost
from benchmarks.calibration.worker import job_for
from benchmarks.record import RESULTS
from benchmarks.training.judge import Clip, Contender, Found, Worker
from benchmarks.training.page import DENSE, FREE, document
from benchmarks.training.runs import BATCH, CLIPS, COLUMNS, EVERYWHERE, PLANS, RUNS, STEPS, preset, prompts
from fpsgen import files
from fpsgen.machine import provenance
from recipes.pocket.world import contact_sheet

SHEET = Path(__file__).parents[2] / "docs" / "training.png"


def fpsgen(*arguments: str, **environment: str) -> None:
    """Run a command of the product; its words go to our standard error."""
    command = [sys.executable, "-m", "fpsgen", *arguments]
    subprocess.run(command, env={**os.environ, **environment}, stdout=sys.stderr, check=True)


def prepare(work: Path) -> Path:
    """The data that all trainings share."""
    listed, data = work / "prompts.txt", work / "data"
    work.mkdir(parents=True, exist_ok=True)
    files.write_text(listed, "\n".join(prompts()) + "\n")
    fpsgen("train", "prepare", "pocket", "--from-model", "--prompts", str(listed), "-o", str(data))
    return data


def row_of(found: list[Found]) -> dict:
    return {field.name: [getattr(one, field.name) for one in found] for field in fields(Found)}


def contenders(work: Path) -> list[Contender]:
    """In the order of the table."""
    found = [Contender(DENSE)]
    for plan in PLANS:
        found.append(Contender(FREE, plan))
        found += [Contender(run.column, plan, run.folder(work)) for run in RUNS if run.plan == plan]
    return found


def main() -> None:
    args = held_out.arguments(__doc__, RESULTS / "training", Path("build/training"))
    begin, clock = provenance(["python", "-m", "benchmarks.training", *sys.argv[1:]]), time.monotonic()
    anew = not args.work.exists()
    data = prepare(args.work)
    with ThreadPoolExecutor(args.workers) as pool:
        longest_first = sorted(RUNS, key=lambda run: "--guided" not in COLUMNS[run.column])
        for _ in pool.map(lambda run: fpsgen(*run.command(data, args.work), OMP_NUM_THREADS="1"), longest_first):
            pass
    every, job = contenders(args.work), job_for(1.0)
    specs = zip(held_out.specs(args.clips), held_out.labels(args.clips), strict=True)
    clips = [Clip(*spec, label) for spec, label in specs]
    with ProcessPoolExecutor(args.workers, get_context("spawn"), Worker.start, (args.work,)) as pool:
        by_clip = list(pool.map(Worker.check, clips, [every] * len(clips)))
        shown = [one for one in every if one.column in (DENSE, FREE, *EVERYWHERE)]
        videos = list(pool.map(Worker.frames, [clips[0]] * len(shown), shown))
    found = dict(zip(every, zip(*by_clip, strict=True), strict=True))
    costs = {plan: attention_cost(job, preset(plan).steps(job.model, job.settings)) for plan in PLANS}
    record = {
        **begin,
        "prompts": [clip.prompt for clip in clips],
        "clips": CLIPS, "steps": STEPS, "batch": BATCH,
        "seconds": round(time.monotonic() - clock) if anew else None,  # of a run that was continued it would be a part
        "dense": row_of(found[every[0]]),
        "rows": [
            {"plan": one.plan, "column": one.column, "cost": costs[one.plan], **row_of(found[one])}
            for one in every if one.plan is not None
        ],
    }  # fmt: skip
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))
    labels = [DENSE if one.plan is None else f"{one.plan}, {one.column}" for one in shown]
    contact_sheet(videos, labels, columns=6).quantize(256).save(SHEET, optimize=True)


if __name__ == "__main__":
    main()
