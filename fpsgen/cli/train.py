"""`fpsgen train`: a model learns to be run through a preset."""

from __future__ import annotations

import dataclasses
import functools
import json as jsonlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fpsgen import assets, choices, files
from fpsgen.cli import options, train_prepare
from fpsgen.cli.command import App, CommandGroup
from fpsgen.cli.output import Output
from fpsgen.cli.progress import drawn
from fpsgen.cli.prompts import read_prompts
from fpsgen.cli.records import deliver, keep
from fpsgen.errors import Stopped, UsageError
from fpsgen.errors import option as setting
from fpsgen.printable import printable, readable
from fpsgen.report.words import counted
from fpsgen.report.words import number as in_digits
from fpsgen.seeds import check_seed
from fpsgen.tables import Column, Table
from fpsgen.train import file as settings_file
from fpsgen.train.settings import TrainSettings
from fpsgen.wan import sizes
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    from fpsgen.presets import Preset
    from fpsgen.target import Target
    from fpsgen.train.estimate import TrainEstimate
    from fpsgen.train.loop import TrainJob
    from fpsgen.train.run import TrainResult
    from fpsgen.weights.models import Model

EXAMPLES = """
fpsgen train pocket --preset fast --data data -o out
fpsgen train 14b --lora 64 --data data -o out
fpsgen train 14b --lora 64 --data data -o out --resume
fpsgen train 14b --lora 64 --dry-run --cards 8
"""
SETTINGS = "settings.toml"  # in the output folder: what says that it holds a run

app = App(cls=CommandGroup, epilog=EXAMPLES)
app.command("prepare", epilog=train_prepare.EXAMPLES)(train_prepare.prepare)


@app.callback(invoke_without_command=True, no_args_is_help=True)
@options.with_fields(TrainSettings)
def train(
    context: typer.Context,
    model: str,
    preset: str = "quality",
    data: Path | None = None,
    output: Path | None = None,
    settings: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    cards: int = 1,
    prompts: Path | None = None,
    no_report: bool = False,
    device: str | None = None,
    dtype: choices.Dtype | None = None,
    json: bool = False,
    verbose: bool = False,
    parts: Given = NOTHING,
    **given: Any,
) -> None:
    """Train a model for a preset, so that its videos come close to the dense model's again.

    The model computes attention through the preset while it learns, and by default it learns to predict what it
    predicted when attention was dense. The result is a model, or a LoRA; beside it lies the preset's file, which says
    how close the videos are now.
    """
    if context.invoked_subcommand is not None:
        return
    first = os.environ.get("RANK", "0") == "0"  # of several processes, if torchrun started them: the one that speaks
    if not first:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    out = Output(json, verbose)
    choices.check_device(device)
    own = read_prompts(prompts) if prompts is not None else None
    folder = None if output is None else options.expand(output)
    wanted = settings_of(settings, folder if resume and not dry_run else None, given)
    if dry_run:
        tell_estimate(out, model, parts, preset, wanted, cards)
        return
    if data is None or folder is None:
        told = f"{setting('data' if data is None else 'output')} is missing"
        raise UsageError(told, hint="fpsgen train prepare makes the data; an empty folder takes the result")
    data = options.expand(data)
    check_output(folder, resume or not first, data)  # the first one may have begun the run in this moment
    out.loading()
    from fpsgen.presets import shipped
    from fpsgen.weights import models

    named = None if preset in shipped.GRADES else shipped.find(preset)
    subject = models.find(model, parts)
    check_subject(subject, named, wanted, folder)
    if not (data / "index.json").exists():
        told = f"there is no training data in {printable(data)}"
        raise UsageError(told, hint=f"make it: fpsgen train prepare {shlex.quote(model)} … -o {shlex.quote(str(data))}")
    check_room(subject, wanted, folder)
    target = choices.find_target(device, dtype)  # which imports torch: so far, whatever cannot be is told at once
    job = make_job(subject, named or preset, wanted, data, own, target, folder)
    from fpsgen.train import state

    if (checkpoint := state.latest(folder / "checkpoints")) is not None:  # before its settings' file is written anew
        state.check_same(state.about(checkpoint), {"settings": wanted.as_dict(), "on": {}})
    with files.refused(folder, f"choose another folder with {setting('output')}", "output"):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / SETTINGS, settings_file.text(wanted))
    from fpsgen.train.run import run

    if wanted.warm_up_steps >= wanted.steps:
        out.note(f"all {counted(wanted.steps, 'step')} warm up: the run ends before attention is the preset's")
    again = f"fpsgen train {shlex.quote(model)} … -o {shlex.quote(str(folder))} --resume continues it"
    with drawn(out, True, Stopped("stopped before the first checkpoint", again)) as watch:
        result = run(job, ["fpsgen", *sys.argv[1:]], watch)
    if result is not None:
        tell(out, result, job, model, no_report)


def settings_of(file: Path | None, resumed: Path | None, given: dict[str, Any]) -> TrainSettings:
    """The settings of a run: those in a file, or with which the run in the folder `resumed` began, but for what was
    given. UsageError where they cannot be."""
    if resumed is not None:
        if file is not None:
            told = "--settings and --resume contradict each other: a run continues with the settings that it began with"
            raise UsageError(told, hint="leave --settings out")
        file = resumed / SETTINGS
        if not file.is_file():
            raise UsageError(f"there is no run to continue in {printable(resumed)}", hint="leave --resume out")
    said = {} if file is None else settings_file.read(options.expand(file))
    flags = {name: value for name, value in given.items() if value is not False}
    wanted = TrainSettings().override(**said).override(**flags)
    wanted.check()
    check_seed(wanted.seed)
    return wanted


def check_output(folder: Path, resume: bool, data: Path) -> None:
    """UsageError where no run can be kept in a folder, or another one is there."""
    name, hint = setting("output", folder), f"choose another folder with {setting('output')}"
    with files.refused(folder, hint, "output"):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{name} is not a folder", hint)
        if files.resolved(data) in (real := files.resolved(folder), *real.parents):
            raise UsageError(f"{name} lies in the training data", hint)
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        there = [name for name in names if not name.startswith(".fpsgen-")]  # which a killed run may leave
        if SETTINGS in there and not resume:
            again = f"{setting('resume')} continues it, or choose another folder with {setting('output')}"
            raise UsageError(f"{name} holds a run already", hint=again)
        if there and SETTINGS not in there:
            raise UsageError(f"{name} exists, and holds other things than a run", hint)
        files.check_writable(assets.existing(folder) / SETTINGS)


def check_subject(model: Model, preset: Preset | None, settings: TrainSettings, folder: Path) -> None:
    """UsageError where a model cannot be trained in that way. preset: None for a grade, which fits any model."""
    choices.check_trains(model)
    in_folder = (model.folder / model.name).suffix != ".safetensors"  # else a file, in a folder of anything
    if in_folder and files.resolved(model.folder) in (real := files.resolved(folder), *real.parents):
        told = f"{setting('output', folder)} lies in the model's own folder"
        raise UsageError(told, hint=f"choose another folder with {setting('output')}")
    if settings.lora is not None and settings.lora > model.config.dim:
        told = f"{setting('lora', settings.lora)}: the matrices of {printable(model.name)} have rank {model.config.dim}"
        raise UsageError(told, hint=f"try {setting('lora', max(1, model.config.dim // 8))}")
    if preset is None:
        return
    preset.check_family(model.family)
    if preset.name == SETTINGS:  # the result's preset has the same name
        told = f"{setting('preset', SETTINGS)} has the name of the file that keeps the settings of the run"
        raise UsageError(told, hint="rename the preset's file")
    if preset.is_exact and settings.distil and not settings.flow:
        told = f"there is nothing to learn for the preset {preset.name}: attention is dense and exact"
        raise UsageError(told, hint=f"choose another {setting('preset')}, or use {setting('flow', 1.0)}")


def check_room(model: Model, settings: TrainSettings, folder: Path) -> None:
    """UsageError where the disk has no room for the checkpoints that stay, the best one, and one that is being
    written."""
    from fpsgen.train import estimate

    there = sum(path.stat().st_size for path in (folder / "checkpoints").glob("step-*/*"))
    needed = (settings.keep + 2) * estimate.checkpoint_bytes(model.config, settings) - there
    if (free := shutil.disk_usage(assets.existing(folder)).free) < needed:
        told = f"{printable(folder)} has room for {readable(free)}, and the checkpoints would take {readable(needed)}"
        raise UsageError(told, hint=f"make room there, or use {setting('keep', 1)} or {setting('lora', 64)}")


def make_job(
    model: Model,
    preset: Preset | str,
    settings: TrainSettings,
    data: Path,
    own: tuple[str, ...] | None,
    target: Target,
    folder: Path,
) -> TrainJob:
    """What is trained. preset: or its grade. UsageError where data, preset and
    model do not fit together, all before weights are read."""
    from fpsgen.presets import shipped
    from fpsgen.train import held_out
    from fpsgen.train.data import Data
    from fpsgen.train.loop import TrainJob
    from fpsgen.weights import load

    load.check(model.checkpoint)
    content = Data.open(data)
    content.check(model)
    if settings.guided and content.index.made.get("teacher"):
        told = f"{printable(data)} holds the dense model's velocities of each branch alone, not guided ones"
        raise UsageError(told, hint=f"leave {setting('guided')} out, or prepare data without {setting('teacher')}")
    width, height = content.index.size
    if model.pocket and (width, height) != (model.defaults.width, model.defaults.height):
        told = f"{printable(data)} holds clips of {width}x{height}, and {model.name} renders {model.defaults.size} only"
        raise UsageError(told, hint="prepare data in its size")
    video = model.defaults.override(width=width, height=height, frames=content.index.frames, **content.index.sampling)
    video.check()
    if isinstance(preset, str):
        preset = shipped.of_grade(preset, model.family, width, height)
    preset.steps(model, video)
    count = 0 if settings.from_scratch else settings.checks  # there is no model to compare with
    texts = held_out.prompts(model.family, count, own, (origin.prompt for origin in content.index.origins))
    return TrainJob(model, content, preset, video, settings, target, folder, texts)


def tell(out: Output, result: TrainResult, job: TrainJob, name: str, no_report: bool) -> None:
    """What became of it, and how to use it. name: of the model, as it was given."""
    from fpsgen import report

    folder, record = job.folder, result.record
    page = folder / "report.html"
    if record.checks:
        before, after = record.checks[0], record.checks[-1]
        out.line(
            f"error    {in_digits(before.error)} before, {in_digits(after.error)} now: 1 - cosine of final latents"
        )
        out.line(f"PSNR     {before.psnr:.1f} dB before, {after.psnr:.1f} dB now, against {job.model.name} with bf16")
    if record.skipped:
        out.note(f"{record.skipped} of {record.steps} steps were skipped: see the report")
    flag = "--lora" if job.settings.lora else "--model"
    model = f"--model {shlex.quote(name)} " if job.settings.lora else ""
    own, usual = job.video, job.model.defaults
    size = "" if own.size == usual.size else f" --res {own.size}"
    size += "" if own.frames == usual.frames else f" --frames {own.frames}"
    through = f" --preset {shlex.quote(str(result.preset))}" if result.preset else ""
    out.line(
        f"use it   fpsgen generate PROMPT {model}{flag} {shlex.quote(str(result.weights))}{through}{size}", copied=True
    )
    draw = None if no_report else functools.partial(report.write, record, result.pairs, page)
    told = jsonlib.dumps(record.as_json(), indent=2) + "\n"
    kept = keep("record", folder / "record.json", told, draw, "make room there; --resume writes it again")
    kept.files |= {"weights_file": result.weights, "preset_file": result.preset}
    deliver(out, kept, record.as_json())


def tell_estimate(out: Output, name: str, parts: Given, preset: str, settings: TrainSettings, cards: int) -> None:
    """Memory and speed at Wan2.1's two sizes, at its own of a pocket model."""
    from fpsgen.presets import shipped
    from fpsgen.train import estimate
    from fpsgen.weights import models

    named = None if preset in shipped.GRADES else shipped.find(preset)
    model = models.absent(name.lower()) if models.is_known(name) and not parts else models.find(name, parts)
    choices.check_trains(model)
    if named is not None:
        named.check_family(model.family)
    own = model.defaults
    shapes = (
        [(own.width, own.height)]
        if model.pocket
        else [sizes.of_model(*size, own.stride) for size in sizes.NAMED.values()]
    )
    videos = [own.override(width=width, height=height) for width, height in shapes]
    found = estimate.estimates(model, named or preset, settings, videos, cards)
    if not out.json:
        out.show(memory_table(found))
    what = f"LoRA of rank {settings.lora}" if settings.lora else "all weights"
    how = f"{what}, micro-batch {settings.micro}, {settings.optimizer}"
    out.line(f"memory: GB on each of {counted(cards, 'card')}, by a formula ({how})")
    share = f"{estimate.SHARE:.0%} of an H100's {estimate.PEAK / 1e12:.0f} TFLOPS"
    assumed = f"speed: for batches of {settings.batch}; modelled, not measured: {share}"
    told = {"model": name, "cards": cards, "assumed_share": estimate.SHARE, "peak_flops": estimate.PEAK}
    out.result(
        assumed, told | {"settings": settings.as_dict(), "estimates": [dataclasses.asdict(one) for one in found]}
    )


def memory_table(found: Iterable[TrainEstimate]) -> Table:
    """A row for each size, with and without recomputing."""
    from fpsgen.train import estimate

    heads = "weights", "gradients", "optimizer", "average", "teacher", "whole", "activations", "total"
    columns = [Column("video"), Column("recompute", spare=1)]
    columns += [Column(head, right=True, spare=0 if head == "total" else 2) for head in heads]
    table = Table(
        columns=[*columns, Column("fits"), *(Column(head, right=True) for head in ("model s/step", "model tokens/s"))]
    )
    for one in found:
        parts = dataclasses.asdict(one.memory) | {"total": one.memory.total}
        fits = next((f"{card} GB" for card in estimate.CARDS if one.memory.total < card * 1e9), "no card")
        sizes_told = (in_digits(parts[head] / 1e9) for head in heads)
        table.row(
            f"{one.size}, {one.frames} frames", "yes" if one.recompute else "no", *sizes_told, fits,
            in_digits(one.seconds), f"{one.tokens_per_second:.0f}",
        )  # fmt: skip
    return table
