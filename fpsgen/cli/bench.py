"""`fpsgen bench`: the same video by a preset and by others, how long each phase takes, how near the frames are."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fpsgen import files
from fpsgen.cli import bench_attention, bench_quality, complete, options
from fpsgen.cli.command import App
from fpsgen.cli.errors import explained
from fpsgen.cli.generate import choose_model, find_model, fit
from fpsgen.cli.help import MEASURING, OUTPUT, SAMPLING, option
from fpsgen.cli.output import Output
from fpsgen.cli.prompts import as_text, check_prompts
from fpsgen.cli.records import deliver, free_record, keep_record, record_place, report_place
from fpsgen.errors import Stopped, UsageError
from fpsgen.printable import printable
from fpsgen.report.compare import tables
from fpsgen.report.contenders import CLEAR, SMALL, too_close
from fpsgen.report.words import counted
from fpsgen.report.words import duration as duration_told
from fpsgen.seeds import check_seed
from fpsgen.settings import check_settings
from fpsgen.timing import Timings
from fpsgen.wan import sizes

if TYPE_CHECKING:
    from rich.progress import Progress

    from fpsgen.events import Event
    from fpsgen.metrics import Pair

EXAMPLES = """
fpsgen bench --compare bf16
fpsgen bench --preset fast --compare bf16,diffusers
fpsgen bench --random-weights 14b --res 720p
fpsgen bench attention --model 14b
fpsgen bench quality --prompts mine.txt
"""
PROMPT = "a cat surfing"  # which the pocket model knows, too
MOST_PAIRS = 50
_SOON = 120.0  # seconds that nobody is asked about

app = App(epilog=EXAMPLES)
app.command("attention", epilog=bench_attention.EXAMPLES)(bench_attention.attention)
app.command("quality", epilog=bench_quality.EXAMPLES)(bench_quality.quality)


@app.callback(invoke_without_command=True)
@explained
def bench(
    context: typer.Context,
    compare: Annotated[
        list[str] | None,
        option(
            "NAME",
            "What to compare with: bf16 (dense attention by the fastest kernel found here), a preset, a kernel "
            "(sdpa-flash, sdpa-cudnn, sdpa-efficient, sdpa-math, flex, fa2, fa3, fa4, sage) or diffusers. Repeat the "
            "option, or separate names with commas. bf16 is the reference if it is among them, else the first.",
            MEASURING,
            shown="bf16",
        ),
    ] = None,
    preset: options.Measured = "quality",
    prompt: Annotated[str | None, option("TEXT", "What the video shows.", MEASURING, shown=PROMPT)] = None,
    model: options.ModelName = None,
    random_weights: Annotated[
        str | None,
        option(
            "MODEL",
            "Random weights in the shapes of 1.3b or 14b: no checkpoint is needed; one step of each phase is "
            "timed, and the whole is extrapolated from them.",
            MEASURING,
            offers=complete.wan_models,
        ),
    ] = None,
    res: options.Resolution = None,
    frames: options.Frames = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    shift: options.Shift = None,
    solver: options.Solver = options.SolverName.UNIPC,
    grid: options.Grid = options.GridName.ORIGINAL,
    seed: Annotated[int, option("N", "The seed of the noise, which is the same for all.", SAMPLING)] = 0,
    pairs: Annotated[
        int,
        option(
            "N",
            "How many warm runs of each, in the order A B B A; 0 measures only the cold runs.",
            MEASURING,
            min=0,
            max=MOST_PAIRS,
        ),
    ] = 2,
    output: Annotated[
        Path | None, option("-o, --output FILE", "The record, a .json file.", OUTPUT, shown="bench-MODEL-PRESET.json")
    ] = None,
    report: options.Report = None,
    no_report: options.NoReport = False,
    videos: Annotated[Path | None, option("FOLDER", "The folder to keep the videos in.", OUTPUT)] = None,
    device: options.DeviceName = None,
    dtype: options.Precision = None,
    yes: Annotated[
        bool, option("-y, --yes", "Do not ask before --random-weights takes minutes on a CPU.", MEASURING)
    ] = False,
    json: options.Json = False,
    verbose: options.Verbose = False,
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
    check_settings(frames, steps, guidance, shift)
    names = options.several("--compare", compare) or ["bf16"]
    options.check_report(report, no_report)
    if random_weights is not None and videos is not None:
        raise UsageError("--random-weights makes no videos", hint="leave --videos out")
    if random_weights is not None and prompt is not None:
        raise UsageError("--random-weights encodes random words, not a prompt", hint="leave --prompt out")
    from fpsgen.bench import names as known
    from fpsgen.weights import models

    known.check(preset, names)  # it imports no torch: so far, whatever cannot be is told at once
    if random_weights is not None:
        check_random(random_weights, model)
    record_at = page = None
    if output is not None:
        record_at = record_place(options.expand(output), out)
        page = report_place(record_at, report, no_report)
    out.loading()
    named = find_model(model) if random_weights is None else models.absent(random_weights.lower())
    target = options.parse_target(device, dtype)
    chosen = named or choose_model(size, target.device, out, Timings())
    width, height, scale_to = fit(chosen, size, out)
    if record_at is None:
        default = f"bench-{files.safe_name(chosen.name)}-{files.safe_name(preset)}.json"
        record_at = record_place(free_record(default), out)
        page = report_place(record_at, report, no_report)
    with kept_in(videos) as folder:
        from fpsgen.bench import compare as end_to_end
        from fpsgen.bench import duration, lineup, synthetic
        from fpsgen.request import Request
        from fpsgen.video import check_encoder

        if random_weights is None:
            check_encoder(folder / "video.mp4")
        settings = chosen.defaults.override(
            width=width, height=height, frames=frames, steps=steps, guidance=guidance, shift=shift,
            solver=solver.value, sigmas=grid.value,
        )  # fmt: skip
        request = Request(text.strip(), settings, seed, Path(), scale_to=scale_to)
        job = end_to_end.CompareJob(
            request, chosen, target, lineup.resolve(preset, names, chosen, (width, height), target), pairs,
            ["fpsgen", *sys.argv[1:]],
        )  # fmt: skip
        if random_weights is not None:
            synthetic.check_memory(chosen.checkpoint, target)
            if target.device.type == "cpu":
                agree(out, duration.seconds(job), yes)
        job = dataclasses.replace(job, line_up=lineup.line_up(preset, names, request, chosen, target))
        for one in job.line_up.tried:
            out.detail(f"dense attention by {one.name}: {one.why_not or f'{one.milliseconds:.3g} ms'}")
        for path in end_to_end.places(job.line_up, folder).values():
            if path.exists():
                out.note(f"{printable(path)} exists: the new video will replace it")
        try:
            with out.progress() as progress:
                watch = Bar(progress, out).watch
                clips: list[Pair] = []
                if random_weights is not None:
                    found = synthetic.measure(job, watch)
                else:
                    found, clips = end_to_end.measure(job, folder, watch)
        except KeyboardInterrupt:
            kept = None if videos is None else f"what was rendered is in {folder}"
            raise Stopped("stopped; no record was written", hint=kept) from None
    record = dataclasses.asdict(found)
    for one in record["contenders"]:
        out.line(f"{one['name']}: {one['told']}; {record['dtype']} on {record['device']}")
    if not json:
        for table in tables(record):
            out.show(table)
        if told := remark(record):
            out.line(told)
    deliver(out, keep_record(record, clips, record_at, page), record)


def remark(record: dict[str, Any]) -> str | None:
    """Why a ratio is not called though all its pairs lie on one side of 1: they are few."""
    for one in record["contenders"]:
        for speedup in (one["speedup"] or {}).values():
            each = speedup["each"]
            if too_close(speedup) and not min(each) <= 1 <= max(each):
                few = f"with only {counted(len(each), 'pair')} of runs"
                chance = f"a speed-up between {1 - SMALL:g} and {1 + SMALL:g} may be chance"
                return f"too close to call: {few}, {chance}; --pairs {CLEAR} tells more"
    return None


def check_alone(context: typer.Context) -> None:
    """UsageError where options stand before a subcommand, which has its own."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        told = (
            f"--{given[0].replace('_', '-')} stands before {context.invoked_subcommand}, which has options of its own"
        )
        raise UsageError(told, hint=f"fpsgen bench {context.invoked_subcommand} OPTIONS")


def check_random(random: str, name: str | None) -> None:
    """UsageError for a model whose shapes are not known, or another one beside it."""
    from fpsgen.wan.config import FAMILIES

    if name is not None:
        raise UsageError("--random-weights and --model contradict each other", hint="leave one out")
    if random.lower() not in FAMILIES:
        raise UsageError(f"--random-weights {printable(random)}: there is no such model", hint="give 1.3b or 14b")


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


class Bar:
    """Watches a comparison for the terminal; in a log, a line for each run."""

    def __init__(self, progress: Progress, out: Output):
        self._progress, self._out = progress, out
        self._title = "prepare"
        self._task = progress.add_task(self._title, total=None, rate="")

    def watch(self, event: Event) -> None:
        from fpsgen import events

        if isinstance(event, events.Run):
            self._title = f"run {event.number} of {event.total}: {event.title}"
            self._out.milestone(self._title)
        elif isinstance(event, events.Stage):
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(escape(f"{self._title}, {event.name}"), total=None, rate="")
        elif isinstance(event, events.Step):
            self._progress.update(self._task, completed=event.done, total=event.total, rate="steps")
        elif isinstance(event, events.Notice):
            self._out.note(event.text)
