"""`fpsgen generate`: a prompt becomes a video."""

from __future__ import annotations

import contextlib
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
from fpsgen.settings import check_settings
from fpsgen.tables import Cell, Table
from fpsgen.timing import Timings
from fpsgen.wan import sizes

if TYPE_CHECKING:
    import torch

    from fpsgen.events import Event, Written
    from fpsgen.request import VideoPlan
    from fpsgen.target import Target
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
    check_settings(frames, steps, guidance, shift)  # before torch is even imported
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
    with timings.stage("load"):  # importing torch and the libraries around it is part of the wait
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
        target = options.parse_target(device, dtype)
        from fpsgen import machine, pipeline
        from fpsgen.request import Request

        machine.settle()
        chosen = named_model or choose_model(size, target.device, out, timings)
    width, height, scale_to = fit(chosen, size, out)
    if chosen.card and size is None:
        scale_to = width * ENLARGED, height * ENLARGED
    settings = chosen.defaults.override(
        width=width, height=height, frames=frames, steps=steps, guidance=guidance, shift=shift, negative=negative,
        solver=solver.value, sigmas=grid.value,
    )  # fmt: skip
    if named is None and wanted is not None:
        named = shipped.of_grade(wanted, chosen.family, width, height)
    if named is not None:
        with preferences.using("preset", preset):
            named.check_family(chosen.family)
    request = Request(prompt.strip(), settings, seed, output, named, scale_to, may_replace)
    if chosen.card and settings.frames > chosen.defaults.frames:
        out.note(f"the pocket model was trained on clips of {chosen.defaults.frames} frames; longer ones may drift")
    out.detail(f"model {chosen.name} from {chosen.folder}; {target.device}, {target.dtype_name}")
    levels = f"{settings.solver} on the {settings.sigmas} sigmas, shift {settings.shift:g}"
    out.detail(f"{settings.steps} steps of {levels}, guidance {settings.guidance:g}")
    before = state(output)
    try:
        # Closed here, not whenever it is collected: a failure while drawing must not leave an encoder running.
        with contextlib.closing(pipeline.generate([request], chosen, target, [timings])) as events:
            made = draw(events, target, out)
        signals.check()
    except KeyboardInterrupt:
        if state(output) == before:
            raise Stopped("stopped; no video was written") from None
        raise Stopped(f"stopped; the video was complete by then, in {output}") from None
    plan, about = made.plan, made.about
    out.table(
        timing_table(timings, target.device, (label(plan.preset.name, target.dtype_name), preset_remark(plan, about)))
    )
    out.detail("seconds per step: " + " ".join(f"{seconds:.2f}" for seconds in timings.steps))
    if made.path != output:
        out.note(f"{output} was taken by another file when the video was complete; the video is now in {made.path}")
    out.result(str(made.path), {"output": as_text(str(made.path)), **about}, copied=True)


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


def draw(stream: Iterator[Event], target: Target, out: Output) -> Written:
    """Show the pipeline's events as they come, to the last one: the video is complete."""
    from fpsgen import events
    from fpsgen.sampling import not_finite

    written: Written | None = None
    with out.progress() as progress:
        task = progress.add_task("load", total=None, rate="")
        for event in stream:
            if isinstance(event, events.Stage):
                progress.refresh()  # the last step may be a moment ago
                progress.remove_task(task)
                task = progress.add_task(" ".join((event.name, event.what)).strip(), total=None, rate="")
            elif isinstance(event, events.Step):
                if not event.finite:
                    raise not_finite(target.dtype, f" at step {event.done}")
                progress.update(task, completed=event.done, total=event.total, rate=f"{event.seconds:.2f} s/step")
                if event.done * 10 // event.total > (event.done - 1) * 10 // event.total:  # every tenth of the way
                    left = (event.total - event.done) * event.seconds
                    out.milestone(f"step {event.done} of {event.total}, {event.seconds:.2f} s each, {left:.0f} s left")
            elif isinstance(event, events.Frames):
                progress.update(task, completed=event.done, total=event.total, rate="frames")
            elif isinstance(event, events.Branches):
                how = "in one batch" if event.together else "one after the other"
                out.detail(f"guidance branches run {how}")
            elif isinstance(event, events.Written):
                written = event
            elif isinstance(event, events.Notice):
                (out.detail if event.detail else out.note)(event.text)
    assert written is not None
    return written


def preset_remark(plan: VideoPlan, about: dict) -> str:
    """The preset's mean density, and what it was measured to cost, where that holds for this video."""
    preset, remarks = plan.preset, [f"density {plan.density:.2f} of token pairs"]
    if preset.measured is None:
        remarks += [] if preset.is_exact else ["not calibrated"]
    elif others := preset.differences(about["weights"], plan.request.settings):
        remarks.append("measured on other weights" if "other weights" in others else "measured at other settings")
    else:
        remarks.append(f"measured PSNR {preset.measured.psnr_told} dB")
    return ", ".join(remarks)


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
