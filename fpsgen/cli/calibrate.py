"""`fpsgen calibrate`: a preset for a model, measured and verified."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import choices, files
from fpsgen.cli import chosen, options
from fpsgen.cli.output import Output, in_flags
from fpsgen.cli.progress import drawn
from fpsgen.cli.prompts import read_prompts
from fpsgen.cli.records import Kept, deliver, keep, report_place
from fpsgen.errors import Stopped, UsageError
from fpsgen.errors import option as setting
from fpsgen.printable import printable, readable
from fpsgen.report.words import counted
from fpsgen.seeds import check_seed
from fpsgen.settings import AS_USUAL, Sampling
from fpsgen.solvers import FEW_STEPS
from fpsgen.tables import Column, Table
from fpsgen.wan import sizes
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    import torch

    from fpsgen.calibrate.budget import Budget
    from fpsgen.calibrate.candidates import Choice
    from fpsgen.calibrate.job import Job
    from fpsgen.calibrate.record import CalibrationRecord
    from fpsgen.calibrate.run import Result
    from fpsgen.settings import Settings
    from fpsgen.weights.models import Model

EXAMPLES = """
fpsgen calibrate --model pocket --min-psnr 30 -o my.toml
fpsgen calibrate --model 14b --res 720p --dry-run
fpsgen calibrate --target-cost 0.3 --prompts mine.txt
fpsgen calibrate --choose guidance,compute
"""


def calibrate(
    model: str | None = None,
    lora: list[str] | None = None,
    min_psnr: float | None = None,
    max_error: float | None = None,
    target_cost: float | None = None,
    choose: list[str] | None = None,
    output: Path | None = None,
    report: Path | None = None,
    no_report: bool = False,
    res: str | None = None,
    sampling: Sampling = AS_USUAL,
    prompts: Path | None = None,
    clips: int | None = None,
    checks: int | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: choices.Dtype | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    json: bool = False,
    verbose: bool = False,
    parts: Given = NOTHING,
) -> None:
    """Find what may be left out of a model's steps, and write it as a preset.

    The dense model makes a few clips. From them fpsgen finds the cheapest schedule that stays within a budget: what
    each head of a layer attends to, how precise products are, and which steps reuse what others computed. It is
    verified on other prompts. Measurements are kept: a run that was stopped continues
    where it was, and another budget only needs a new verification.
    """
    out = Output(json, verbose)
    size = sizes.parse_resolution(res) if res is not None else None
    sampling.check()
    check_seed(seed)
    budget = budget_of(min_psnr, max_error, target_cost)
    which = choices_of(choose)
    own = read_prompts(prompts) if prompts is not None else None
    options.check_report(report, no_report)
    if output is not None and not dry_run and (replaced := check_output(output := options.expand(output))):
        out.note(f"{printable(output)} is replaced: {replaced}")
    page = None if output is None or dry_run else report_place(output, report, no_report)
    out.loading()
    loras = choices.find_loras(lora)
    named = chosen.find_model(model, parts, may_be_absent=dry_run)
    target = choices.find_target(device, dtype)  # which imports torch: so far, whatever cannot be is told at once
    found = named or chosen.choose_model(size, target.device, out, parts=parts)
    found = choices.with_loras(found, loras, out, sampling.solver)
    choices.check_of_text(found, "calibration")
    settings = choices.settings_of(found, size, **vars(sampling))
    settings.check()
    if output is None:
        output = files.free(Path(f"{files.safe_name(found.name)}-calibrated.toml"), ".html")
        if not dry_run:
            check_output(output)
            page = report_place(output, report, no_report)
    job = make_job(found, settings, budget, own, (clips, checks), seed, output.name, which)
    if dry_run:
        tell_estimate(out, job, target.device, target.dtype)
        return
    out.detail(f"model {found.name} from {found.folder}; {target.device}, {target.dtype_name}")
    from fpsgen.calibrate.run import calibrate as run

    hint = f"run the same command {'without --fresh' if fresh else 'again'}: it continues from there"
    with drawn(out, True, Stopped("stopped; what was measured is kept", hint)) as watch:
        result = run(job, target, watch, fresh)
    tell(out, result, job, keep_preset(result, output, page))


def budget_of(min_psnr: float | None, max_error: float | None, target_cost: float | None) -> Budget:
    """The one that was given; UsageError where it is none, or two."""
    from fpsgen.calibrate.budget import FIELDS, Budget, Kind

    every: dict[Kind, float | None] = {"psnr": min_psnr, "error": max_error, "cost": target_cost}
    given = {kind: value for kind, value in every.items() if value is not None} or {"psnr": 30.0}
    budget, *more = (Budget(kind, value, in_flags(setting(FIELDS[kind], value))) for kind, value in given.items())
    if more:
        raise UsageError(f"{budget} and {more[0]} are two budgets", hint="give one of them")
    low, high = {"psnr": (0, 100), "error": (0, 1), "cost": (0, 1)}[budget.kind]
    if not low < budget.value < high:  # nan is neither
        raise UsageError(f"{budget} is out of range", hint=f"give a number between {low} and {high}")
    return budget


def choices_of(choose: list[str] | None) -> frozenset[Choice]:
    """What calibration may choose."""
    from fpsgen.calibrate.candidates import EVERYTHING

    named = options.among("--choose", options.several("--choose", choose), sorted(EVERYTHING))
    return frozenset(own for own in EVERYTHING if own in named)


def make_job(
    model: Model,
    settings: Settings,
    budget: Budget,
    prompts: tuple[str, ...] | None,
    counts: tuple[int | None, int | None],
    seed: int,
    name: str,
    which: frozenset[Choice],
) -> Job:
    """All settings together; UsageError where they do not fit the model, or the prompts do not suffice."""
    from fpsgen.calibrate.budget import check_possible
    from fpsgen.calibrate.candidates import EVERYTHING
    from fpsgen.calibrate.job import Job, defaults, phases_of

    effort, ours = defaults(model.family)
    steps = min(effort.steps, settings.steps)
    clips, checks = counts[0] or effort.clips, counts[1] or effort.checks
    effort = dataclasses.replace(
        effort, clips=clips, checks=checks, probed=min(effort.probed, clips), steps=steps,
        phases=phases_of(steps, effort.phases), layers=min(effort.layers, model.config.num_layers),
    )  # fmt: skip
    prompts = ours if prompts is None else prompts
    if len(prompts) < clips + checks:
        told = f"{counted(clips, 'prompt')} to measure on and {checks} to verify on are needed"
        told += f"; there are {len(prompts)}"
        raise UsageError(told, hint="give more with --prompts FILE, or ask for fewer with --clips and --checks")
    if settings.branches == 1 and "guidance" in which:
        if which != EVERYTHING:
            raise UsageError("--guidance 1 leaves no guidance to choose", hint="leave guidance out of --choose")
        which -= {"guidance"}
    if (few := FEW_STEPS.get(settings.solver)) and few.renoises and "compute" in which:
        if which != EVERYTHING - ({"guidance"} if settings.branches == 1 else set()):
            told = f"the solver {settings.solver} adds noise between steps, so none can continue from those before"
            raise UsageError(told, hint="leave compute out of --choose")
        which -= {"compute"}
    job = Job(model, settings, effort, budget, prompts, seed, printable(name), which)
    check_possible(budget, job.least_cost)
    return job


def check_output(output: Path) -> str | None:
    """What is told of the preset that is replaced, if one is; UsageError where none can be written, or what is there is
    not its like."""
    if output.suffix != ".toml":
        near = output.with_suffix(".toml") if output.name else output / "my.toml"
        raise UsageError(f"-o {output}: a preset is a .toml file", hint=f"try -o {near}")
    if files.check_place(output, "my.toml"):
        from fpsgen.presets import file

        try:
            before = file.read(output, str(output))
        except UsageError:
            before = None
        if before is None or before.measured is None:
            raise UsageError(f"{printable(output)} exists, and no calibration wrote it", hint="choose another -o")
        return before.about or "a calibrated preset"
    return None


def keep_preset(result: Result, output: Path, page: Path | None) -> Kept:
    from fpsgen import report
    from fpsgen.presets import file

    record = dataclasses.replace(result.record, command=("fpsgen", *sys.argv[1:]))
    draw = None if page is None else functools.partial(report.write, record, result.pairs, page)
    hint = "run the same command again with another -o: what was measured is kept"
    return keep("preset", output, file.text(result.preset), draw, hint)


def tell(out: Output, result: Result, job: Job, kept: Kept) -> None:
    measured = result.preset.measured
    assert measured is not None
    assert measured.denoising is not None
    out.line(f"cost     {100 * measured.denoising:.1f} % of bf16's denoising, modelled for an H100")
    pairs = f"{100 * measured.density:.1f} % of all pairs of tokens"
    out.line(f"         attention alone costs {100 * measured.cost:.1f} % and computes {pairs}")
    out.line(f"steps    {steps_told(result.record)}")
    spread = "" if measured.error_ci95 is None else f" ± {measured.error_ci95:.1g}"
    clips = f"means over {measured.clips} clips" if measured.clips > 1 else "one clip"
    out.line(f"error    {measured.error:.2g}{spread}, 1 - cosine of the final latents")
    out.line(f"PSNR     {measured.psnr_told} dB against bf16, worst {measured.psnr_worst:.1f}")
    out.line(f"         {clips} of prompts that calibration did not measure on; the budget was {job.budget}")
    if result.record.backend == "reference" and any(
        own != "bf16" for layers in result.record.precision for own in layers
    ):
        told = "on this machine plain PyTorch runs 8-bit attention and saves no time in it"
        out.line(f"         {told}: the cost is for a Hopper GPU")
    if preset := kept.files["preset"]:
        out.line(f"use it   fpsgen generate PROMPT --preset {shlex.quote(str(preset))}", copied=True)
    deliver(out, kept, {**result.record.as_json(), "toml": result.record.preset})


def steps_told(record: CalibrationRecord) -> str:
    """How steps are obtained, in words."""
    computed = [own for own in record.steps_done if own.compute == "full"]
    alone = sum(own.guidance != "full" for own in computed)
    told = f"{len(computed)} of {record.steps} computed"
    return told + (f", {alone} of them without the unconditional branch" if alone else "")


def tell_estimate(out: Output, job: Job, device: torch.device, dtype: torch.dtype) -> None:
    """What a calibration would take: of Wan2.1 on one H100, of a pocket model, which is quick to try, here."""
    from fpsgen.calibrate import estimate

    if job.model.pocket is None:
        parts, clip = estimate.parts(job), estimate.clip_seconds(job)
        where = "on one H100, calculated from published figures, not measured"
    else:
        step = estimate.step_here(job, device, dtype)
        parts, clip = estimate.parts_here(job, step), job.settings.steps * step
        where = f"on {device} of this machine, from two steps that were run: {step:.2g} s each"
    total = sum(part.seconds for part in parts)
    unit, name = (3600, "hours") if total > 3600 else (60, "minutes")
    numbers = [Column(head, right=True, spare=spare) for spare, head in ((2, "forwards"), (0, name), (1, "bf16 clips"))]
    table = Table(columns=[Column("part"), *numbers])
    for part in parts:
        table.row(part.name, f"{part.forwards:.0f}", f"{part.seconds / unit:.2f}", f"{part.seconds / clip:.2f}")
    total_forwards = sum(part.forwards for part in parts)
    table.row("total", f"{total_forwards:.0f}", f"{total / unit:.2f}", f"{total / clip:.2f}")
    if not out.json:
        out.show(table)
    choices, size = len(job.candidates.choices), readable(estimate.disk_bytes(job))
    out.line(f"The estimate is for {choices} choices of key tiles in 2 precisions, and bf16, {where}.")
    out.line("Each further round of verification takes as long as the row says, and fewer dense steps at most as long.")
    out.line(f"The cache grows by at most {size}.")
    told = {
        "model": job.model.name,
        **{key: getattr(job.settings, key) for key in ("size", "frames", "steps")},
        "choices": choices,
        "where": where,
        "parts": [dataclasses.asdict(part) for part in parts],
        "seconds": total,
        "bf16_clips": total / clip,
        "cache_bytes": estimate.disk_bytes(job),
    }
    out.result(f"{total / unit:.2f} {name}, as long as {total / clip:.2f} clips take in bf16", told)
