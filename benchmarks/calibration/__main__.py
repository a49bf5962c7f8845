"""Is calibration worth it? The pocket model on held-out prompts, at equal cost; `PROTOCOL.md` says what is compared.

    python -m benchmarks.calibration --out benchmarks/results/calibration

Every clip is kept in fpsgen's cache (FPSGEN_CACHE_DIR), so that a run which was ended goes on where it was. Writes
.json and .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.calibration.page import document, rows_of
from benchmarks.calibration.worker import CPU, Spec, Worker, job_for
from benchmarks.record import RESULTS
from fpsgen import files
from fpsgen.attention.plan import AttentionPlan
from fpsgen.calibrate import solve
from fpsgen.calibrate.candidates import PRECISIONS
from fpsgen.calibrate.job import Job, mean_cost, problem
from fpsgen.calibrate.record import Checked
from fpsgen.calibrate.run import calibrate
from fpsgen.calibrate.schedule import to_preset
from fpsgen.calibrate.solve import Axis
from fpsgen.events import Event, Notice
from fpsgen.machine import provenance
from fpsgen.presets import cost, shipped
from fpsgen.target import Target
from fpsgen.wan.plan import StepPlan, mean_density
from recipes.pocket.evaluate import NOISE_SEED, prompts_for

LEVELS = {"high": 0.600, "middle": 0.478, "low": 0.265}  # densities of the uniform INT8 plans whose costs they are
HELD_OUT, FIRST = 24, 32
WITHOUT: dict[str, Axis] = {"without steps": "phase", "without layers": "layer", "without heads": "head"}
SPREAD = 0.15  # below a level: what counts as a uniform plan of that cost


class Pool:
    """Clips side by side, and how many are done."""

    def __init__(self, workers: int, console: Console):
        # Processes of their own: torch's threads do not survive a fork.
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), Worker.start)
        self._console = console

    def run(self, title: str, specs: list[Spec], contenders: list[list[StepPlan]]) -> list[list[Checked]]:
        """By contender, then by clip."""
        found = []
        for number, one in enumerate(self._pool.map(Worker.run, specs, [contenders] * len(specs)), 1):
            found.append(one)
            self._console.print(f"{title}: {number} of {len(specs)} clips")
        return [list(own) for own in zip(*found, strict=True)]


@dataclasses.dataclass(frozen=True)
class Uniform:
    """One plan everywhere."""

    job: Job
    precision: int
    window: int

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.job.candidates.windows[self.window]))}, {PRECISIONS[self.precision]}"

    @cached_property
    def plans(self) -> list[StepPlan]:
        config = self.job.model.config
        plan = self.job.candidates.plan(self.precision, [self.window] * config.num_heads)
        return [StepPlan((plan,) * config.num_layers)] * self.job.settings.steps

    @property
    def cost(self) -> float:
        return float(self.job.candidates.costs[self.precision, self.window])


def uniform_near(job: Job, level: float) -> list[Uniform]:
    """8-bit plans that cost at most `level`, and not much less."""
    every = [Uniform(job, p, w) for p in (1, 2) for w in range(len(job.candidates.windows))]
    return [one for one in every if level * (1 - SPREAD) <= one.cost <= level + 1e-9]


def mean(checked: list[Checked]) -> float:
    return sum(one.error for one in checked) / len(checked)


def contenders_of(job: Job, level: float, pool: Pool, console: Console) -> dict[str, list[StepPlan]]:
    """All of one level, the two best uniform plans among them."""

    def watch(event: Event) -> None:
        if isinstance(event, Notice):
            console.print(event.text)

    result = calibrate(job, Target(CPU, torch.float32, torch.bfloat16), watch)
    found = {"calibrated": result.preset.steps(job.model, job.settings)}
    task = problem(job, result.measurement.errors)
    for name, axis in WITHOUT.items():
        solved = solve.within_cost(dataclasses.replace(task, tied=frozenset({axis})), level)
        assert solved is not None
        found[name] = to_preset(job, solved).steps(job.model, job.settings)
    uniform = uniform_near(job, level)
    specs = [(prompt, job.seed + i) for i, prompt in enumerate(job.prompts[: job.effort.clips])]
    errors = [
        mean(own) for own in pool.run("uniform plans on calibration clips", specs, [one.plans for one in uniform])
    ]
    ranked = sorted(range(len(uniform)), key=errors.__getitem__)
    for at in ranked[:2]:
        found[f"uniform {uniform[at].name}"] = uniform[at].plans
        console.print(f"{uniform[at].name}: {errors[at]:.4f} on calibration clips")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration")
    parser.add_argument("--clips", type=int, default=HELD_OUT, help="the first so many of the protocol's, for a look")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    args = parser.parse_args()
    if not 2 <= args.clips <= HELD_OUT or args.workers < 1:
        parser.error(f"2 to {HELD_OUT} clips, and 1 worker at least")
    console = Console(stderr=True, highlight=False)
    begin = provenance(["python", "-m", "benchmarks.calibration", *sys.argv[1:]])  # of the code that is running
    pool = Pool(args.workers, console)
    base = job_for(1.0)
    every: dict[tuple[str, str], list[StepPlan]] = {}
    costs = {}
    for level, density in LEVELS.items():
        costs[level] = cost.of_pairs(next_density(base, density), "int8", base.candidates.tokens)
        job = job_for(costs[level])
        every |= {(level, name): plans for name, plans in contenders_of(job, costs[level], pool, console).items()}
    dense = AttentionPlan(base.tiles, qk="int8", pv="fp8")
    config = base.model.config
    every["", "dense, int8"] = [StepPlan((dense,) * config.num_layers)] * base.settings.steps
    every["", "paper"] = shipped.load("paper").steps(base.model, base.settings)
    prompts, _ = prompts_for(FIRST + HELD_OUT, True, True)
    specs = [(prompt, NOISE_SEED + 1000 + i) for i, prompt in enumerate(prompts[FIRST:][: args.clips])]
    checked = pool.run("held-out clips", specs, list(every.values()))
    told = [
        {
            "level": level,
            "name": name,
            "cost": mean_cost(base, plans),
            "density": mean_density(plans),
            "error": [one.error for one in own],
            "psnr": [one.psnr for one in own],
        }
        for ((level, name), plans), own in zip(every.items(), checked, strict=True)
    ]
    pocket = base.model.pocket or {}
    begin["pocket"] = {key: pocket[key] for key in ("version", "sha256")}
    record = {
        **begin,
        "planned_clips": HELD_OUT,
        "levels": costs,
        "prompts": [prompt for prompt, _ in specs],
        "contenders": told,
    }
    record["rows"] = rows_of(record)
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))


def next_density(job: Job, density: float) -> float:
    """The density of the window that comes nearest to it, more exactly."""
    return min(job.candidates.densities, key=lambda own: abs(own - density))


if __name__ == "__main__":
    main()
