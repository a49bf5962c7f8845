"""`fpsgen bench`: the same video by a preset and by others, how long each stage takes, how near the frames are."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fpsgen import files
from fpsgen.choices import Dtype, find_images, find_loras, find_target, fit, size_with, with_loras
from fpsgen.cli import bench_attention, bench_quality, options
from fpsgen.cli.chosen import choose_model, find_model
from fpsgen.cli.command import App
from fpsgen.cli.output import Output
from fpsgen.cli.progress import drawn
from fpsgen.cli.prompts import as_text, check_prompts
from fpsgen.cli.records import deliver, keep_record, result_places
from fpsgen.errors import Stopped, UsageError
from fpsgen.printable import printable
from fpsgen.report.compare import tables
from fpsgen.report.contenders import CLEAR, SMALL, too_close
from fpsgen.report.words import counted
from fpsgen.report.words import duration as duration_told
from fpsgen.seeds import check_seed
from fpsgen.settings import AS_USUAL, Sampling
from fpsgen.solvers import Sigmas
from fpsgen.wan import sizes
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    from fpsgen.bench.compare import CompareJob
    from fpsgen.bench.record import CompareRecord
    from fpsgen.metrics import Pair

EXAMPLES = """
fpsgen bench --compare bf16
fpsgen bench --preset fast --compare bf16,diffusers
fpsgen bench --compare steps:13
fpsgen bench --random-weights 14b --res 720p
fpsgen bench attention --model 14b
fpsgen bench quality --prompts mine.txt
"""
PROMPT = "a cat surfing"  # which the pocket model knows, too
_SOON = 120.0  # seconds that nobody is asked about

app = App(epilog=EXAMPLES)
app.command("attention", epilog=bench_attention.EXAMPLES)(bench_attention.attention)
app.command("quality", epilog=bench_quality.EXAMPLES)(bench_quality.quality)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    compare: list[str] | None = None,
    preset: str = "quality",
    prompt: str | None = None,
    model: str | None = None,
    lora: list[str] | None = None,
    image: Path | None = None,
    last_image: Path | None = None,
    random_weights: str | None = None,
    res: str | None = None,
    sampling: Sampling = AS_USUAL,
    sigmas: Sigmas = "original",
    seed: int = 0,
    pairs: int = 2,
    output: Path | None = None,
    report: Path | None = None,
    no_report: bool = False,
    videos: Path | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    yes: bool = False,
    json: bool = False,
    verbose: bool = False,
    parts: Given = NOTHING,
) -> None:
    """Measure the speed and the fidelity of a preset.

    The preset and the contenders that it is compared with make the same video from the same noise. The result is the
    seconds of each stage, the speed-up, and how close the frames are. Each contender runs once cold, then warm in the
    order A B B A. The record is a JSON file, with a report beside it.
    """
    if context.invoked_subcommand is not None:
        check_alone(context)
        return
    out = Output(json, verbose)
    text = PROMPT if prompt is None else as_text(prompt)
    check_prompts(text, None)
    check_seed(seed)
    size = sizes.parse_resolution(res) if res is not None else None
    sampling.check(sigmas)
    names = options.several("--compare", compare) or ["bf16"]
    options.check_report(report, no_report)
    if random_weights is not None:
        others: dict[str, object] = {
            "--model": model,
            "--lora": lora,
            "--image": image,
            "--videos": videos,
            "--prompt": prompt,
        }
        others |= {f"--{name.replace('_', '-')}": value for name, value in vars(parts).items()}
        check_random(random_weights, others)
    from fpsgen.bench import names as known
    from fpsgen.weights import models

    names = known.check(preset, names)  # it imports no torch: so far, whatever cannot be is told at once
    places = None if output is None else result_places(output, report, no_report, out)
    out.loading()
    loras = find_loras(lora)
    image, last_image, size_of_image = find_images(image, last_image)
    named = find_model(model, parts) if random_weights is None else models.absent(random_weights.lower())
    target = find_target(device, dtype)
    chosen = with_loras(named or choose_model(size, target.device, out, parts=parts), loras, out, sampling.solver)
    from fpsgen.request import Request, check_images

    check_images(image, last_image, chosen)
    size = size_with(size_of_image, res, size, chosen)
    settings, scale_to = fit(chosen, size, out, sigmas=sigmas, **vars(sampling))
    default = f"bench-{files.safe_name(chosen.name)}-{files.safe_name(preset)}.json"
    places = places or result_places(default, report, no_report, out)
    from fpsgen.bench import lineup, synthetic
    from fpsgen.bench.compare import CompareJob

    shown = Request(text.strip(), settings, seed, Path(), scale_to=scale_to, image=image, last_image=last_image)
    line_up = lineup.resolve(preset, names, shown, chosen, target)
    job = CompareJob(line_up, pairs, ["fpsgen", *sys.argv[1:]])
    if random_weights is not None:
        job = dataclasses.replace(job, passes=max(1, pairs))
        synthetic.check_memory(chosen.checkpoint, target)
        if target.device.type == "cpu":
            agree(out, synthetic.least_seconds(job), yes)
    with kept_in(videos) as folder:
        record, clips = run(job, folder, random_weights is not None, out, videos is not None)
    for one in record.contenders:
        out.line(f"{one.name}: {one.told}; {record.dtype} on {record.device}")
    if not json:
        for table in tables(record):
            out.show(table)
        if told := remark(record):
            out.line(told)
    deliver(out, keep_record(record, clips, *places), record.as_json())


def run(job: CompareJob, folder: Path, random: bool, out: Output, kept: bool) -> tuple[CompareRecord, list[Pair]]:
    """The record, and clips for the report. kept: whether the videos stay in `folder`."""
    from fpsgen.bench import compare, lineup, synthetic
    from fpsgen.video import check_encoder

    if not random:
        check_encoder(folder / "video.mp4")
    job = dataclasses.replace(job, line_up=lineup.with_fastest(job.line_up))
    for one in job.line_up.tried:
        out.detail(f"dense attention by {one.name}: {one.why_not or f'{one.milliseconds:.3g} ms'}")
    for path in compare.places(job.line_up, folder).values():
        if path.exists():
            out.note(f"{printable(path)} exists: the new video will replace it")
    stopped = Stopped("stopped; no record was written", f"what was rendered is in {folder}" if kept else None)
    with drawn(out, stopped=stopped) as watch:
        return (synthetic.measure(job, watch), []) if random else compare.measure(job, folder, watch)


def remark(record: CompareRecord) -> str | None:
    """Why a ratio is not called though all its pairs lie on one side of 1: they are few."""
    for one in record.contenders:
        for speedup in (one.speedup or {}).values():
            if too_close(speedup) and not min(speedup.each) <= 1 <= max(speedup.each):
                few = f"with only {counted(len(speedup.each), 'pair')} of runs"
                chance = f"a speed-up between {1 - SMALL:g} and {1 + SMALL:g} may be chance"
                return f"too close to call: {few}, {chance}; --pairs {CLEAR} tells more"
    return None


def check_alone(context: typer.Context) -> None:
    """UsageError where options stand before a subcommand, which has its own."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        command, flag = context.invoked_subcommand, f"--{given[0].replace('_', '-')}"
        told = f"{flag} stands before {command}, which has options of its own"
        raise UsageError(told, hint=f"fpsgen bench {command} OPTIONS")


def check_random(name: str, others: dict[str, object]) -> None:
    """UsageError for a model whose shapes are not known, or beside options that need a checkpoint."""
    from fpsgen.wan.config import SHAPES

    for flag, value in others.items():
        if value is not None:
            told = f"--random-weights and {flag} contradict each other: random weights make no video of a prompt"
            raise UsageError(told, hint=f"leave {flag} out")
    if name.lower() not in SHAPES:
        told = f"--random-weights {printable(name)}: there are no shapes of that name"
        raise UsageError(told, hint="give 1.3b, 14b, 2.2-14b or 5b")
    if SHAPES[name.lower()].condition_channels:
        told = f"--random-weights {name}: it begins with an image, which random weights do not look at"
        raise UsageError(told, hint="give 14b or 2.2-14b, whose steps take as long")


def agree(out: Output, seconds: float, yes: bool) -> None:
    """Say how long it takes, and go on where that is nothing, agreed to, or agreed to now."""
    told = f"at least {duration_told(seconds)} on this CPU, estimated from its speed in matrix products"
    if seconds < _SOON or yes:
        out.note(f"this takes {told}")
    elif not out.may_ask:
        hint = "add --yes to begin; a smaller --res, fewer --frames or --pairs 1 take less time"
        raise UsageError(f"this would take {told}, and there is no terminal to ask on", hint)
    elif not typer.confirm(f"This takes {told}. Begin?", err=True):
        raise Stopped("nothing was measured")


@contextmanager
def kept_in(folder: Path | None) -> Iterator[Path]:
    """Where the videos go: `folder`, made where it is not there, or one that is gone afterwards."""
    if folder is None:
        with files.temporary_folder("bench") as temporary:
            yield temporary
        return
    folder = options.expand(folder)
    with files.refused(folder, "name a folder", "videos"):
        folder.mkdir(parents=True, exist_ok=True)
        files.check_writable(folder / "video.mp4")
    yield folder
