"""`fpsgen generate`: a prompt becomes a video."""

from __future__ import annotations

import contextlib
import functools
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import files
from fpsgen.cli import chosen, options, preferences, signals
from fpsgen.cli.output import Output
from fpsgen.cli.progress import drawn
from fpsgen.cli.prompts import as_text, check_prompts, read_prompt
from fpsgen.errors import Stopped, UsageError
from fpsgen.events import Written
from fpsgen.formats import PLAIN, Encoding
from fpsgen.printable import printable, readable
from fpsgen.report.words import counted
from fpsgen.seeds import check_seed
from fpsgen.settings import check_settings
from fpsgen.solvers import Sigmas, SolverName
from fpsgen.tables import Cell, Column, Table
from fpsgen.timing import Timings
from fpsgen.wan import sizes
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    import torch

    from fpsgen.request import VideoPlan
    from fpsgen.settings import Settings

EXAMPLES = """
fpsgen generate "a cat surfing"
fpsgen generate "a cat surfing" --seed 7 -o cat.mp4
fpsgen generate "a lighthouse" --model 14b --res 720p
fpsgen generate "it jumps" --model 2.2-i2v --image a.png
echo "a dog in the city" | fpsgen generate - --json
"""

ENLARGED = 4  # the pocket's file, 640x384: its own 160x96 would be a stamp on a screen


def generate(
    prompt: str,
    res: str | None = None,
    frames: int | None = None,
    model: str | None = None,
    lora: list[str] | None = None,
    image: Path | None = None,
    last_image: Path | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    guidance_low: float | None = None,
    shift: float | None = None,
    solver: SolverName | None = None,
    sigmas: Sigmas = "original",
    negative: str | None = None,
    seed: int | None = None,
    preset: str | None = None,
    output: str | None = None,
    no_clobber: bool = False,
    device: str | None = None,
    dtype: chosen.Dtype | None = None,
    graphs: bool = False,
    json: bool = False,
    verbose: bool = False,
    parts: Given = NOTHING,
    encoding: Encoding = PLAIN,
) -> None:
    """Make a video from a prompt.

    Your own defaults for model, preset and output folder can be set with `fpsgen config`.
    """
    timings = Timings.of_process()
    out = Output(json, verbose)
    prompt = read_prompt() if prompt == "-" else as_text(prompt)
    negative = None if negative is None else as_text(negative)
    check_prompts(prompt, negative)
    size = sizes.parse_resolution(res) if res is not None else None
    check_settings(frames, steps, guidance, shift, solver, sigmas, guidance_low)  # before torch is even imported
    encoding.check()
    chosen.check_device(device)
    if seed is not None:
        check_seed(seed)
    seed = secrets.randbelow(2**31) if seed is None else seed
    may_replace = output is not None and not no_clobber
    if output is None:  # a name of its own, also beside the video of another prompt or of other settings
        place, of_frames = files.free(preferences.output_folder() / chosen.video_name(prompt, seed)), False
    else:
        place, of_frames = options.place(output)
    out.loading()
    with timings.stage("load"):  # importing torch and the libraries around it is part of the wait
        # What needs no torch, which takes seconds, is refused before it.
        from fpsgen.video import check_path

        if no_clobber and place.exists() and not of_frames:
            raise UsageError(f"{place} exists, and --no-clobber keeps it", hint="choose another name with -o")
        check_path(place, of_frames)
        encoding.check_fits(place, frames)
        encoding = chosen.with_last_frame(encoding, place, no_clobber)
        image, last_image, size_of_image = chosen.find_images(image, last_image)
        if any(each and place.exists() and place.samefile(each) for each in (image, last_image)):
            raise UsageError(f"{place} is the image: the video would replace it", hint="choose another -o")
        from fpsgen.presets import label, shipped

        with preferences.using("preset", preset) as wanted:
            named = None if wanted is None or wanted in shipped.GRADES else shipped.find(wanted)
        if wanted and place.exists() and (given := Path(wanted).expanduser()).exists() and place.samefile(given):
            raise UsageError(f"{place} is the preset: the video would replace it", hint="choose another -o")
        loras = chosen.find_loras(lora)
        named_model = chosen.find_model(model, parts)
        if named_model is None and (given_image := image or last_image):
            told = f"--image {printable(given_image.name)}: the models that are chosen by default take none"
            raise UsageError(told, hint="name one that does, such as --model i2v-480p")
        if place.is_file():
            out.note(f"{place} exists: the new video will replace it")
            out.loading()
        target = chosen.find_target(device, dtype, graphs)
        from fpsgen import machine, pipeline
        from fpsgen.request import Request, check_images
        from fpsgen.texts import Texts

        machine.settle()
        found = named_model or chosen.choose_model(size, target.device, out, timings, parts)
        found = chosen.with_loras(found, loras, out, solver)
    check_images(image, last_image, found)
    size = chosen.size_with(size_of_image, res, size, found)
    settings, scale_to = chosen.fit(
        found, size, out, frames=frames, steps=steps, guidance=guidance, guidance_low=guidance_low, shift=shift,
        negative=negative, solver=solver, sigmas=sigmas, fps=encoding.fps,
    )  # fmt: skip
    if found.pocket and size is None:
        scale_to = settings.width * ENLARGED, settings.height * ENLARGED
    if named is None and wanted is not None:
        named = shipped.of_grade(wanted, found.family, settings.width, settings.height)
    if named is not None:
        with preferences.using("preset", preset):
            named.check_family(found.family)
    request = Request(prompt.strip(), settings, seed, place, named, scale_to, may_replace, image, last_image)
    if found.pocket and settings.frames > found.defaults.frames:
        out.note(f"the pocket model was trained on clips of {found.defaults.frames} frames; longer ones may drift")
    out.detail(f"model {found.name} from {found.folder}; {target.device}, {target.dtype_name}")
    tell_sampling(settings, out)
    before = state(place)
    try:
        # Closed here, not whenever it is collected: a failure while drawing must not leave an encoder running.
        events = pipeline.generate(
            [request],
            found,
            target,
            [timings],
            known=functools.partial(Texts, found, target),
            decode_in_bf16=True,
            encoding=encoding,
        )
        with contextlib.closing(events), drawn(out) as watch:
            for event in events:
                watch(event)
        signals.check()
    except KeyboardInterrupt:
        if state(place) == before:
            raise Stopped("stopped; no video was written") from None
        raise Stopped(f"stopped; the video was complete by then, in {place}") from None
    assert isinstance(event, Written)  # the last of them
    plan, about, written = event.plan, event.about, event.path
    out.table(
        timing_table(timings, target.device, (label(plan.preset.name, target.dtype_name), preset_remark(plan, about)))
    )
    out.detail("seconds per step: " + " ".join(f"{seconds:.2f}" for seconds in timings.steps))
    if written != place:
        out.note(f"{place} was taken by another file when the video was complete; the video is now in {written}")
    out.result(str(written), {"output": as_text(str(written)), **about}, copied=True)


def tell_sampling(own: Settings, out: Output) -> None:
    """Solver, steps and guidance, and which expert computes how many of them."""
    levels = f"{own.solver} on the {own.sigmas} sigmas, shift {own.shift:g}"
    out.detail(f"{own.steps} steps of {levels}, guidance {own.guidance:g}")
    if own.boundary is not None:
        low = f"the low-noise expert {own.steps - own.high_steps}, with guidance {own.guidance_at(own.steps):g}"
        out.detail(f"the high-noise expert computes {own.high_steps} of them, {low}; boundary {own.boundary:g}")


def state(path: Path) -> tuple[int, int] | None:
    """What a file's name stands for, which a new file changes."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def preset_remark(plan: VideoPlan, about: dict) -> str:
    """The preset's mean density, and what it was measured to cost, where that holds for this video."""
    preset, remarks = plan.preset, [f"density {plan.density:.2f} of token pairs"]
    if preset.measured is None:
        remarks += [] if preset.is_exact or preset.name == plan.model.own_preset else ["not calibrated"]
    elif others := preset.differences(about["weights"], plan.request.settings):
        remarks.append("measured on other weights" if "other weights" in others else "measured at other settings")
    else:
        remarks.append(f"measured PSNR {preset.measured.psnr_told} dB")
    return ", ".join(remarks)


def timing_table(timings: Timings, device: torch.device, preset: tuple[str, str]) -> Table:
    table = Table(heads=False, columns=[Column(""), Column("", right=True), Column("", prose=True)])
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
        table.row("memory", readable(timings.peak_memory), Cell(remark, "dim"))
    return table
