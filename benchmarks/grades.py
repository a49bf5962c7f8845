"""The pocket model's shipped grades on prompts that calibration never saw, beside the former ones, of windows alone,
and beside dense attention in as many steps as cost the same.

    python -m benchmarks.grades --out benchmarks/results/grades

The clips are those that benchmarks/calibration is judged on. Writes .json, .md, and docs/grades.png: "a cat surfing" by
bf16, the former `fast` and `fast`.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from math import ceil
from multiprocessing import get_context
from pathlib import Path

from benchmarks.calibration import held_out
from benchmarks.calibration.contenders import attention_cost, dense, video_cost
from benchmarks.calibration.worker import Plans, Worker, job_for
from benchmarks.markdown import page
from benchmarks.record import RESULTS
from fpsgen import assets, files
from fpsgen.calibrate.record import Checked
from fpsgen.machine import provenance
from fpsgen.metrics import mean_ci95
from fpsgen.presets import Preset, file
from fpsgen.presets.account import account
from fpsgen.tables import Table
from recipes.pocket.world import contact_sheet

GRADES = ("quality", "balanced", "fast")
FORMER, SHIPPED = Path(__file__).parent / "former", assets.folder("presets")
SHOWN = ("fast, former", "fast")
SHEET, PROMPT, SEED = Path(__file__).parents[1] / "docs" / "grades.png", "a cat surfing", 7


def preset_of(folder: Path, grade: str) -> Preset:
    path = folder / f"pocket-{grade}.toml"
    return file.parse(path.read_bytes(), path.name)


def contenders() -> dict[str, Plans]:
    """By name: each grade, the former one, and dense steps, as many as cost what a grade costs or a little more, with
    linear layers and without."""
    job, found, fewer = job_for(1.0), {}, set[int]()
    for grade in GRADES:
        for name, folder in ((f"{grade}, former", FORMER), (grade, SHIPPED)):
            found[name] = preset_of(folder, grade).steps(job.model, job.settings)
        same = account(preset_of(SHIPPED, grade), job.model, job.settings).dense_steps
        fewer |= {ceil(same.attention), ceil(same.video)}
    return found | {f"dense, {steps} steps": (dense(job),) * steps for steps in sorted(fewer, reverse=True)}


def row_of(name: str, plans: Plans, checked: list[Checked]) -> dict:
    job = job_for(1.0)
    return {
        "preset": name,
        "cost": attention_cost(job, plans),
        "video_cost": video_cost(job, plans),
        "error": [one.error for one in checked],
        "psnr": [one.psnr for one in checked],
    }


def document(record: dict) -> str:
    """What is published, in Markdown."""
    head = page(
        "The pocket model's grades",
        f"""{len(record["prompts"])} clips of held-out combinations, which calibration never saw, are rendered with each
        preset, each clip from the same noise, in float32 on a CPU by the `reference` backend. The former presets had
        windows alone. Beside them stands dense attention in INT8 in as many steps as cost what a preset costs, or a
        little more. The costs are those of a stated model (`fpsgen/presets/cost.py`): of attention, where dense BF16
        attention in 20 steps has cost 1, and of the whole video, where linear layers count as at 14B 720p. The error
        is 1 - cosine of the final latents, and PSNR is that of the frames, both against dense attention in 20 steps
        that is not rounded; ± 95 %.""",
        f"`{' '.join(record['command'])}` makes this page.",
    )
    table = Table.of_numbers("", ["preset", "attention", "video", "error", "PSNR, dB"])
    for row in record["rows"]:
        (error, half), (psnr, half_psnr) = mean_ci95(row["error"]), mean_ci95(row["psnr"])
        costs = f"{row['cost']:.3f}", f"{row['video_cost']:.3f}"
        table.row(row["preset"], *costs, f"{error:.4f} ± {half:.4f}", f"{psnr:.1f} ± {half_psnr:.1f}")
    return head + table.markdown()


def main() -> None:
    args = held_out.arguments(__doc__, RESULTS / "grades")
    begin = provenance(["python", "-m", "benchmarks.grades", *sys.argv[1:]])  # of the code that is running
    every = contenders()
    specs = held_out.specs(args.clips)
    # Processes of their own: torch's threads do not survive a fork.
    with ProcessPoolExecutor(args.workers, get_context("spawn"), Worker.start) as pool:
        shown = pool.submit(Worker.frames, (PROMPT, SEED), [every[name] for name in SHOWN])
        checked = pool.map(Worker.check, specs, [list(every.values())] * len(specs))
        by_contender = [list(clips) for clips in zip(*checked, strict=True)]
        videos = shown.result()
    rows = [row_of(name, plans, clips) for (name, plans), clips in zip(every.items(), by_contender, strict=True)]
    record = {**begin, "prompts": [prompt for prompt, _ in specs], "rows": rows}
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))
    costs = {row["preset"]: row["cost"] for row in rows}
    labels = ["bf16", *(f"{name}, cost {costs[name]:.2f}" for name in SHOWN)]
    contact_sheet(videos, labels, columns=6).quantize(256).save(SHEET, optimize=True)
    print(document(record), end="")


if __name__ == "__main__":
    main()
