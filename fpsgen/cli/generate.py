"""`fpsgen generate`: a prompt becomes a video."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fpsgen import files
from fpsgen.cli import complete, options, preferences, signals
from fpsgen.cli.errors import explained
from fpsgen.cli.help import OUTPUT, SAMPLING, VIDEO, argument, option
from fpsgen.cli.output import Output
from fpsgen.cli.prompts import as_text, check_prompts, read_prompt
from fpsgen.errors import Stopped, UsageError
from fpsgen.report.words import counted
from fpsgen.seeds import check_seed
from fpsgen.tables import Cell, Table
from fpsgen.timing import Timings
from fpsgen.wan import sizes

if TYPE_CHECKING:
    import torch

    from fpsgen.pipeline import Event, Request
    from fpsgen.weights.models import Model

EXAMPLES = """
fpsgen generate "a cat surfing"
fpsgen generate "a cat surfing" --seed 7 -o cat.mp4
fpsgen generate "a lighthouse" --model 14b --res 720p
echo "a dog in the city" | fpsgen generate - --json
"""

ENLARGED = 4  # the pocket's file, 640x384: its own 160x96 would be a stamp on a screen


@explained
def generate(
    prompt: Annotated[str, argument("PROMPT", "What the video shows; - reads it from standard input.")],
    res: Annotated[str | None, options.size("640x384")] = None,
    frames: options.Frames = None,
    model: options.ModelName = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    shift: options.Shift = None,
    solver: options.Solver = options.SolverName.UNIPC,
    grid: options.Grid = options.GridName.ORIGINAL,
    negative: Annotated[
        str | None,
        option("TEXT", "What the video should not show.", VIDEO, shown="Wan2.1's own text; nothing for pocket"),
    ] = None,
    seed: Annotated[
        int | None,
        option(
            "N", "The seed of the noise: the same seed and settings make the same video again.", VIDEO, shown="random"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        option(
            "PRESET",
            "How sparse and how precise attention is: bf16 (dense and exact), quality, balanced, fast, another "
            "that `fpsgen presets` lists, or a .toml file.",
            SAMPLING,
            shown="quality where our kernels run it, else bf16",
            offers=complete.presets,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option(
            "-o, --output FILE",
            "The video: an .mp4, .webm or .gif file.",
            OUTPUT,
            shown="a free name from prompt and seed",
        ),
    ] = None,
    no_clobber: Annotated[bool, option("--no-clobber", "Refuse to replace an existing file.", OUTPUT)] = False,
    device: options.DeviceName = None,
    dtype: options.Precision = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
) -> None:
    """Make a video from a prompt.

    Your own defaults for model, preset and output folder can be set with `fpsgen config`.
    """
    timings = Timings()
    out = Output(json, verbose)
    prompt = read_prompt() if prompt == "-" else as_text(prompt)
    negative = None if negative is None else as_text(negative)
    check_prompts(prompt, negative)
    size = sizes.parse_resolution(res) if res is not None else None
    sizes.check_settings(frames, steps, guidance, shift)  # before torch is even imported
    options.check_device(device)
    if seed is not None:
        check_seed(seed)
    seed = secrets.randbelow(2**31) if seed is None else seed
    may_replace = output is not None and not no_clobber
    if output is None:  # a name of its own, also beside the video of another prompt or of other settings
        output = files.free(preferences.output_folder() / default_name(prompt, seed))
    else:
        output = options.expand(output)
    out.loading()
    with timings.phase("load"):  # importing torch and the libraries around it is part of the wait
        # What needs no torch, which takes seconds, is refused before it.
        from fpsgen.video import check_path

        if no_clobber and output.exists():
            raise UsageError(f"{output} exists, and --no-clobber keeps it", hint="choose another name with -o")
        check_path(output, size)
        from fpsgen.presets import label, shipped

        with preferences.using("preset", preset) as wanted:
            named = None if wanted is None or wanted in shipped.GRADES else shipped.find(wanted)
        if wanted and output.exists() and (given := Path(wanted).expanduser()).exists() and output.samefile(given):
            raise UsageError(f"{output} is the preset: the video would replace it", hint="choose another -o")
        named_model = find_model(model)
        if output.exists():
            out.note(f"{output} exists: the new video will replace it")
            out.loading()
        target = options.parse_device(device)
        from fpsgen import machine, pipeline

        machine.settle()
        chosen = named_model or choose_model(size, target, out, timings)
    width, height, scale_to = fit(chosen, size, out)
    if chosen.card and size is None:
        scale_to = width * ENLARGED, height * ENLARGED
    settings = chosen.defaults.override(
        width=width, height=height, frames=frames, steps=steps, guidance=guidance, shift=shift, negative=negative
    )
    if named is None and wanted is not None:
        named = shipped.of_grade(wanted, chosen.family, settings.width, settings.height)
    if named is not None:
        with preferences.using("preset", preset):
            named.check_family(chosen.family)
    chosen_preset = named or pipeline.default_preset(chosen, settings.width, settings.height, settings.frames, target)
    request = pipeline.Request(
        prompt=prompt.strip(), seed=seed, output=output, scale_to=scale_to, may_replace=may_replace,
        solver=solver.value, grid=grid.value, preset=chosen_preset,
        **dataclasses.asdict(settings),
    )  # fmt: skip
    if chosen.card and request.frames > chosen.defaults.frames:
        out.note(f"the pocket model was trained on clips of {chosen.defaults.frames} frames; longer ones may drift")
    precision = options.choose_dtype(dtype, target)
    out.detail(f"model {chosen.name} from {chosen.folder}; {target}, {str(precision).removeprefix('torch.')}")
    levels = f"{request.solver} on the {request.grid} grid, shift {request.shift:g}, guidance {request.guidance:g}"
    out.detail(f"{request.steps} steps of {levels}")
    text_precision = options.choose_text_dtype(dtype)
    before = state(output)
    try:
        # Closed here, not whenever it is collected: a failure while drawing must not leave an encoder running.
        events = pipeline.generate(request, chosen, target, precision, text_precision, timings)
        with contextlib.closing(events):
            surprised, written = draw(events, out)
        signals.check()
    except KeyboardInterrupt:
        if state(output) == before:
            raise Stopped("stopped; no video was written") from None
        raise Stopped(f"stopped; the video was complete by then, in {output}") from None
    told = pipeline.describe(request, chosen, target, precision, text_precision)
    remark = preset_remark(request, told["attention"], surprised)
    out.table(timing_table(timings, target, (label(chosen_preset.name, told["dtype"]), remark)))
    out.detail("seconds per step: " + " ".join(f"{seconds:.2f}" for seconds in timings.steps))
    if written != output:
        out.note(f"{output} was taken by another file when the video was complete; the video is now in {written}")
    out.result(str(written), {"output": as_text(str(written)), **told, "timings": timings.as_dict()}, copied=True)


def find_model(name: str | None) -> Model | None:
    """The model that was named, or the user's own default, if there is one; its files are looked at."""
    with preferences.using("model", name) as wanted:
        if wanted is None:
            return None
        from fpsgen.weights import models

        chosen = models.find(wanted)
        from fpsgen.weights import load  # which imports torch

        load.check(chosen.checkpoint)  # a file that does not fit is told now, not after the denoising
    return chosen


def choose_model(size: tuple[int, int] | None, device: torch.device, out: Output, timings: Timings) -> Model:
    """The default model; where its weights are absent and somebody can be asked, fetched first."""
    from fpsgen.weights import hub, load, models

    cuda = device.type == "cuda"
    try:
        chosen, surprise = models.choose(size, cuda)
    except models.NoWeightsError as absent:
        if not out.may_ask:
            raise
        with timings.pause():  # a download is no part of making a video
            question = f"{absent}. Fetch Wan2.1 {absent.key} now, {absent.size}?"
            if not typer.confirm(question, err=True):
                raise
            hub.pull(hub.plan(absent.repository))
        chosen, surprise = models.choose(size, cuda)
    load.check(chosen.checkpoint)
    if surprise:
        out.note(surprise)
    return chosen


def state(path: Path) -> tuple[int, int] | None:
    """What a file's name stands for, which a new file changes."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def fit(model: Model, size: tuple[int, int] | None, out: Output) -> tuple[int, int, tuple[int, int] | None]:
    """Width and height to render, and the size to scale to where the model cannot render what was asked for."""
    own = (model.defaults.width, model.defaults.height)
    if size is None or size == own:
        return *own, None
    if model.card is None:
        sizes.check_model_size(*size)
        return *size, None
    sizes.check_scaled_size(*size)
    out.note(f"the pocket model renders {own[0]}x{own[1]}; its pixels are scaled to {size[0]}x{size[1]}")
    return *own, size


def default_name(prompt: str, seed: int) -> str:
    """A file name that says what is inside."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    words = words.encode()[:60].decode(errors="ignore").rstrip("-")  # file systems count bytes
    return os.fsdecode(f"{words or 'video'}-{seed}.mp4".encode())  # names are UTF-8, whatever the locale


def draw(events: Iterator[Event], out: Output) -> tuple[bool, Path]:
    """Show the pipeline's events as they come; whether the preset's measurement is of something else, and the video."""
    from fpsgen import pipeline

    surprised, written = False, Path()
    with out.progress() as progress:
        task = progress.add_task("load", total=None, rate="")
        for event in events:
            surprised |= isinstance(event, pipeline.Surprise)
            if isinstance(event, pipeline.Phase):
                progress.refresh()  # the last step may be a moment ago
                progress.remove_task(task)
                task = progress.add_task(" ".join((event.name, event.what)).strip(), total=None, rate="")
            elif isinstance(event, pipeline.Step):
                progress.update(task, completed=event.done, total=event.total, rate=f"{event.seconds:.2f} s/step")
                if event.done * 10 // event.total > (event.done - 1) * 10 // event.total:  # every tenth of the way
                    left = (event.total - event.done) * event.seconds
                    out.milestone(f"step {event.done} of {event.total}, {event.seconds:.2f} s each, {left:.0f} s left")
            elif isinstance(event, pipeline.Frames):
                progress.update(task, completed=event.done, total=event.total, rate="frames")
            elif isinstance(event, pipeline.Branches):
                how = "in one batch" if event.together else "one after the other"
                out.detail(f"guidance branches run {how}")
            elif isinstance(event, pipeline.Written):
                written = event.path
            elif isinstance(event, pipeline.Notice):
                (out.detail if event.detail else out.note)(event.text)
    return surprised, written


def preset_remark(request: Request, ran: dict, surprised: bool) -> str:
    """The preset's mean density, and what it was measured to cost, with weights and settings as here."""
    preset, told = request.preset, [f"density {ran['density']:.2f} of token pairs"]
    here = (f"{request.width}x{request.height}", request.frames, request.steps, request.shift, request.guidance)
    if (of := preset.measured) is None:
        told += [] if preset.is_exact else ["not calibrated"]
    elif (of.size, of.frames, of.steps, of.shift, of.guidance) != here:
        told.append("measured at other settings")
    else:
        told.append("measured on other weights" if surprised else f"measured PSNR {of.psnr_told} dB")
    return ", ".join(told)


def timing_table(timings: Timings, device: torch.device, preset: tuple[str, str]) -> Table:
    table = Table(heads=False)
    table.column("")
    table.column("", right=True)
    table.column("", prose=True)
    table.row("preset", preset[0], Cell(preset[1], "dim"))
    count = len(timings.steps)
    remarks = {"load": "imports included"}
    if count:
        each = " each" if count > 1 else ""
        remarks["denoise"] = f"{counted(count, 'step')}, {sum(timings.steps) / count:.2f} s{each}"
    for name, seconds in timings.seconds.items():
        if round(seconds, 2) or name != "compile":  # most runs have nothing to compile
            table.row(name, f"{seconds:.2f} s", Cell(remarks.get(name, ""), "dim"))
    table.row(Cell("total", "bold"), Cell(f"{timings.total:.2f} s", "bold"), "")
    if timings.peak_memory is not None:
        remark = (
            f"peak, allocated on {device}" if device.type == "cuda" else "peak of the process, mapped weights included"
        )
        table.row("memory", f"{timings.peak_memory / 2**30:.2f} GiB", Cell(remark, "dim"))
    return table
