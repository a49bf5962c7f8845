"""The pocket model's shipped grades on prompts that calibration never saw, beside the former ones, of windows alone.

    python -m benchmarks.grades --out benchmarks/results/grades

The clips are those that benchmarks/calibration is judged on. Writes .json, .md, and docs/grades.png: "a cat surfing" by
bf16, the former `fast` and `fast`.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.calibration import held_out
from benchmarks.calibration.worker import Plans, Worker, job_for
from benchmarks.markdown import page
from benchmarks.record import RESULTS
from fpsgen import files
from fpsgen.calibrate.job import mean_cost
from fpsgen.calibrate.record import Checked
from fpsgen.machine import provenance
from fpsgen.metrics import mean_ci95
from fpsgen.presets import file
from fpsgen.tables import Table
from recipes.pocket.world import contact_sheet

GRADES = ("quality", "balanced", "fast")
FOLDERS = {"former": Path(__file__).parent / "former", "shipped": Path(__file__).parents[1] / "presets"}
SHEET, PROMPT, SEED = Path(__file__).parents[1] / "docs" / "grades.png", "a cat surfing", 7


def plans_of(which: str, grade: str) -> Plans:
    job, path = job_for(1.0), FOLDERS[which] / f"pocket-{grade}.toml"
    return file.parse(path.read_bytes(), path.name).steps(job.model, job.settings)


def row_of(which: str, grade: str, checked: list[Checked]) -> dict:
    return {
        "preset": f"{grade}{', former' if which == 'former' else ''}",
        "cost": mean_cost(job_for(1.0), plans_of(which, grade)),
        "error": [one.error for one in checked],
        "psnr": [one.psnr for one in checked],
    }


def document(record: dict) -> str:
    """What is published, in Markdown."""
    head = page(
        "The pocket model's grades",
        f"""{len(record["prompts"])} clips of held-out combinations, which calibration never saw, are rendered with each
        preset, each clip from the same noise, in float32 on a CPU by the `reference` backend. The former presets had
        windows alone. The cost is that of a stated model (`fpsgen/presets/cost.py`), where dense BF16 attention has
        cost 1. The error is 1 - cosine of the final latents, and PSNR is that of the frames, both against dense
        attention that is not rounded; ± 95 %.""",
        f"`{' '.join(record['command'])}` makes this page.",
    )
    table = Table.of_numbers("", ["preset", "cost", "error", "PSNR, dB"])
    for row in record["rows"]:
        (error, half), (psnr, half_psnr) = mean_ci95(row["error"]), mean_ci95(row["psnr"])
        table.row(row["preset"], f"{row['cost']:.3f}", f"{error:.4f} ± {half:.4f}", f"{psnr:.1f} ± {half_psnr:.1f}")
    return head + table.markdown()


def main() -> None:
    args = held_out.arguments(__doc__, RESULTS / "grades")
    begin = provenance(["python", "-m", "benchmarks.grades", *sys.argv[1:]])  # of the code that is running
    every = [(which, grade) for grade in GRADES for which in FOLDERS]
    plans = [plans_of(*each) for each in every]
    specs = held_out.specs(args.clips)
    # Processes of their own: torch's threads do not survive a fork.
    with ProcessPoolExecutor(args.workers, get_context("spawn"), Worker.start) as pool:
        shown = pool.submit(Worker.frames, (PROMPT, SEED), plans[-2:])
        checked = list(zip(*pool.map(Worker.check, specs, [plans] * len(specs)), strict=True))
        videos = shown.result()
    rows = [row_of(*each, list(own)) for each, own in zip(every, checked, strict=True)]
    record = {**begin, "prompts": [prompt for prompt, _ in specs], "rows": rows}
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))
    labels = ["bf16", *(f"{rows[i]['preset']}, cost {rows[i]['cost']:.2f}" for i in (-2, -1))]
    contact_sheet(videos, labels, columns=6).quantize(256).save(SHEET, optimize=True)
    print(document(record), end="")


if __name__ == "__main__":
    main()
