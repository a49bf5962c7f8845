"""`fpsgen calibrate`: from a model and a budget to a preset that was verified, and the record of how it came about."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fpsgen import __version__, assets, experts, machine, metrics
from fpsgen import journal as journals
from fpsgen.attention import door
from fpsgen.calibrate import budget as budgets
from fpsgen.calibrate import frontier
from fpsgen.calibrate.budget import Tried
from fpsgen.calibrate.candidates import LINEARS, PRECISIONS
from fpsgen.calibrate.job import Job, mean_cost, problem
from fpsgen.calibrate.measure import Measuring
from fpsgen.calibrate.measurement import Measurement
from fpsgen.calibrate.record import CalibrationRecord, Checked, FrontierPoint, PhaseSteps, StepDone
from fpsgen.calibrate.schedule import to_preset
from fpsgen.calibrate.solve import Schedule
from fpsgen.calibrate.trajectory import Clip, Renderer
from fpsgen.calibrate.verify import Checker
from fpsgen.errors import UsageError, option
from fpsgen.events import Notice, Stage, Watch, Work, finish, notices
from fpsgen.journal import Journal
from fpsgen.metrics import Pair
from fpsgen.presets import BF16, Measured, Preset, file, label
from fpsgen.presets.account import denoising_cost
from fpsgen.seeds import next_seed
from fpsgen.solvers import FEW_STEPS
from fpsgen.target import Target
from fpsgen.texts import encode_prompts
from fpsgen.wan.plan import StepPlan, mean_density
from fpsgen.weights.load import fingerprint, load_vae

# Raised where the table of errors changes its meaning, so that older measurements are not taken for new ones.
_VERSION = 2


@dataclass(frozen=True)
class Result:
    """preset: verified. record and pairs (the first clips and the worst): what `report.calibration.write` takes.
    measurement: what it was solved from."""

    preset: Preset
    record: CalibrationRecord
    pairs: list[Pair]
    measurement: Measurement


@torch.inference_mode()
def calibrate(job: Job, target: Target, watch: Watch, fresh: bool = False) -> Result:
    """Measure, solve, verify. UsageError where nothing but dense BF16 attention holds the budget.

    Everything measured is kept, and found again by the next run of the same job, whatever its budget, unless `fresh`.
    """
    budgets.check_possible(job.budget, job.least_cost)
    cache = assets.cache("calibration")
    journals.check(cache)
    watch(Work(job.work))
    watch(Stage("load"))
    clips, negative = _encoded(job, target, watch)
    device = target.device
    transformer, low = experts.load_all(job.model, target)
    weights = fingerprint(job.model.checkpoint, transformer)
    config = job.model.config
    backend = door.choose(device, job.candidates.probe_plan(config.num_heads), config.head_dim).name
    if device.type == "cuda" and backend == "reference":
        watch(Notice("plain PyTorch runs 8-bit attention here, which may take days: see `fpsgen doctor`"))
    journal = Journal(cache, _key(job, weights, backend, target))
    if fresh:
        journal.forget()
    renderer = Renderer(transformer, job.tiles, job.settings, negative, device, journal, watch, low)
    watch(Stage("measure"))
    begin = time.perf_counter()
    measurement = Measuring(renderer, job.candidates, job.phases, job.effort, job.choose).measure(
        clips[: job.effort.clips], job.seed
    )
    watch(Stage("verify"))
    between = time.perf_counter()
    vae = load_vae(job.model.checkpoint, device)
    checker = Checker(renderer, clips[job.effort.clips :], vae, job.effort.decode)
    verify = _verifier(job, checker, watch)
    task = problem(job, measurement)
    tried = budgets.search(task, job.budget, job.effort.rounds, verify)
    taken = tried[-1]
    found = to_preset(job, taken.schedule)
    plans = found.steps(job.model, job.settings)
    measured = _measured(job, weights, plans, taken, device)
    merged = f", with {job.model.loras} merged" if job.model.loras else ""
    found = replace(found, measured=measured, about=f"calibrated for {job.budget}{merged}")
    baseline = label(BF16.name, target.dtype_name)
    pairs = _pairs(taken, checker, plans, baseline)
    fewer = _fewer_steps(job, plans, taken, checker, len(tried), watch)
    seconds = {"measure": round(between - begin, 1), "verify": round(time.perf_counter() - between, 1)}
    points = [*frontier.points(job, task, measurement, tried), *fewer]
    told = record(job, measurement, tried, found, points, seconds=seconds, backend=backend, baseline=baseline)
    return Result(found, told, pairs, measurement)


def _encoded(job: Job, target: Target, watch: Watch) -> tuple[list[Clip], torch.Tensor]:
    """The clips that are rendered, and the encoded negative prompt; the text encoder is gone afterwards."""
    prompts = job.prompts[: job.effort.clips + job.effort.checks]
    events = encode_prompts(prompts, [job.settings.negative], job.model, target)
    *texts, negative = finish(events, notices(watch))
    clips = [
        Clip(prompt, next_seed(job.seed, i), text) for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    return clips, negative


def _verifier(job: Job, checker: Checker, watch: Watch) -> Callable[[Schedule], list[Checked]]:
    rounds = 0

    def verify(solved: Schedule) -> list[Checked]:
        nonlocal rounds
        rounds += 1
        if rounds > 1:
            watch(Work(job.work + (rounds - 1) * job.round))
        checked = checker.check(to_preset(job, solved).steps(job.model, job.settings))
        watch(Notice(f"round {rounds}: cost {solved.cost:.3f} reaches {job.budget.reached(checked)}", detail=True))
        return checked

    return verify


def _fewer_steps(
    job: Job, plans: Sequence[StepPlan], taken: Tried, checker: Checker, rounds: int, watch: Watch
) -> list[FrontierPoint]:
    """Dense steps, fewer of them, rendered; UsageError where they make the schedule worthless."""
    rivals, found = frontier.fewer_steps(job, plans), []
    work = sum(job.effort.checks * (len(own) + job.effort.decode) for own in rivals)
    watch(Work(job.work + (rounds - 1) * job.round + work))
    error = metrics.mean_ci95([one.error for one in taken.checked])[0]
    for own in rivals:
        point = frontier.of_dense(job, own, checker.check(own))
        found.append(point)
        if point.cost <= taken.schedule.cost + 1e-9 and point.error <= error:
            told = f"{len(own)} dense steps cost no more than the schedule that was found, and are as close to bf16"
            raise UsageError(told, hint=f"generate with {option('steps', len(own))}, or give another budget")
    return found


def _key(job: Job, weights: str, backend: str, target: Target) -> dict:
    """All that the measurements depend on; not the budget, nor the preset's name."""
    effort = asdict(job.effort) | {"rounds": None}
    del effort["rivals"]
    return {
        **journals.surroundings(job.model, weights, target),
        "version": _VERSION,
        "backend": backend,
        "video": asdict(job.settings),
        "tiles": asdict(job.tiles),
        "effort": effort,
        "prompts": job.prompts[: job.effort.clips + job.effort.checks],
        "seed": job.seed,
    }


def _measured(job: Job, weights: str, plans: Sequence[StepPlan], taken: Tried, device: torch.device) -> Measured:
    error, error_ci95 = metrics.mean_ci95([one.error for one in taken.checked])
    psnr, psnr_ci95 = metrics.mean_ci95([one.psnr for one in taken.checked])
    return Measured.rounded(
        weights=weights,
        **{key: getattr(job.settings, key) for key in ("size", "frames", "steps", "shift", "guidance")},
        clips=len(taken.checked),
        density=mean_density(plans, job.settings.branches),
        cost=mean_cost(job, plans),
        denoising=denoising_cost(plans, job.model, job.settings.branches),
        error=error,
        error_ci95=error_ci95,
        psnr=psnr,
        psnr_ci95=psnr_ci95,
        psnr_worst=min(one.psnr for one in taken.checked),
        device=machine.device_name(device),
        fpsgen=__version__,
        torch=torch.__version__,
        solver=job.settings.solver if job.settings.solver in FEW_STEPS else None,
        guidance_low=job.settings.guidance_low,
    )


def _pairs(taken: Tried, checker: Checker, plans: Sequence[StepPlan], baseline: str) -> list[Pair]:
    """The frames of the first clips and of the worst."""
    pairs = []
    for number, which in metrics.shown_clips([one.psnr for one in taken.checked], baseline):
        one, frames = taken.checked[number], checker.frames(plans, number)
        pairs.append(Pair(one.prompt, one.psnr, *frames, (baseline, "this schedule"), which))
    return pairs


_SHARED = ("weights", "device", "size", "frames", "steps", "shift", "guidance")  # fields of Measured and the record


def record(
    job: Job, measurement: Measurement, tried: list[Tried], preset: Preset, points: list[FrontierPoint], **where: Any
) -> CalibrationRecord:
    """What the page shows. points: of the frontier; where: the fields that the run alone knows: backend, baseline,
    seconds."""
    taken, measured, tiles, config = tried[-1], preset.measured, job.tiles, job.model.config
    assert measured is not None
    densities = torch.tensor(job.candidates.densities)
    choices = job.candidates.choices
    precision, probe = job.candidates.probe
    solved, rows = taken.schedule, list(range(len(job.phases)))
    if solved.runs:  # of each phase the first step that is computed; of one without, that which it continues from
        phases = [run.phase for run in solved.runs]
        rows = [phases.index(max(own for own in phases if own <= phase)) for phase in rows]
    steps = [[step for step, own in enumerate(job.phase_of_step, 1) if own == i] for i in range(len(job.phases))]
    return CalibrationRecord(
        model=job.model.name_with_loras,
        loras=[each.as_dict() for each in job.model.checkpoint.loras],
        **{key: getattr(measured, key) for key in _SHARED},
        versions={"fpsgen": measured.fpsgen, "torch": measured.torch},
        fps=job.model.defaults.fps,
        solver=job.settings.solver,
        grid=tiles.grid,
        tile=tiles.tile,
        tiles=tiles.counts,
        layers=config.num_layers,
        heads=config.num_heads,
        head_dim=config.head_dim,
        cost_tokens=job.candidates.tokens,
        budget=str(job.budget),
        holds=taken.holds,
        phases=[PhaseSteps(file.ranges(own), span.sigma) for own, span in zip(steps, job.phases, strict=True)],
        error=measurement.probed.tolist(),
        probe=f"{choices[probe]}, {PRECISIONS[precision]}",
        density=densities[solved.choice].mean(2)[rows].tolist(),
        precision=[[PRECISIONS[int(p)] for p in layers] for layers in solved.precision[rows]],
        sees=[[[choices[c] for c in heads] for heads in layers] for layers in solved.choice[rows].tolist()],
        linear=[[str(LINEARS[int(own)]) for own in layers] for layers in solved.linear],
        steps_done=[StepDone(step.guidance, step.compute) for step in preset.steps(job.model, job.settings)],
        denoising=measured.denoising,
        cost=measured.cost,
        mean_density=measured.density,
        frontier=points,
        clips=taken.checked,
        summary={key: value for key, value in measured.as_dict().items() if key.startswith(("error", "psnr"))},
        prompts=job.prompts[: job.effort.clips],
        preset=file.text(preset),
        **where,
    )
