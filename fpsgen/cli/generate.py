"""`fpsgen generate`: a prompt becomes a video."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen.choices import check_no_image, check_spared
from fpsgen.cli import chosen, many, options, preferences, several_gpus, signals
from fpsgen.cli import dry_run as dry_run_
from fpsgen.cli import resume as resuming
from fpsgen.cli.lines import Faults, PromptLine, Several, asked
from fpsgen.cli.made import Made, tell_sampling
from fpsgen.cli.many import Place
from fpsgen.cli.output import Output
from fpsgen.cli.pictures import shown
from fpsgen.cli.progress import drawn
from fpsgen.cli.prompts import as_text
from fpsgen.errors import RenderError, UsageError
from fpsgen.formats import PLAIN, Encoding
from fpsgen.settings import Placement
from fpsgen.solvers import Sigmas, SolverName
from fpsgen.timing import Timings
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    from fpsgen.presets import Preset
    from fpsgen.request import Request
    from fpsgen.target import Target
    from fpsgen.weights.models import Model

EXAMPLES = """
fpsgen generate "a cat surfing"
fpsgen generate "a cat surfing" --seed 7 -o cat.mp4
fpsgen generate "a lighthouse" --model 14b --res 720p
fpsgen generate "it jumps" --model 2.2-i2v --image a.png
fpsgen generate --from cat.mp4 --steps 30
fpsgen generate "a cat surfing" --seeds 0-7 -o cats/
fpsgen generate --prompts shots.jsonl -o shots/
echo "a dog in the city" | fpsgen generate - --json
"""

ONE = Several()
AUTO = Placement()


def generate(
    prompt: str | None = None,
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
    sigmas: Sigmas | None = None,
    negative: str | None = None,
    seed: int | None = None,
    preset: str | None = None,
    from_: Path | None = None,
    output: str | None = None,
    no_clobber: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    device: str | None = None,
    dtype: chosen.Dtype | None = None,
    graphs: bool = False,
    json: bool = False,
    verbose: bool = False,
    parts: Given = NOTHING,
    encoding: Encoding = PLAIN,
    several: Several = ONE,
    gpus: int | None = None,
    placement: Placement = AUTO,
) -> None:
    """Make a video from a prompt, or many videos with one load.

    Your own defaults for model, preset and output folder can be set with `fpsgen config`.
    """
    several_gpus.begin(None if dry_run else gpus, device)
    timings = Timings.of_process()
    out = Output(json, verbose)
    usual = PromptLine(
        seed=seed, res=res, frames=frames, steps=steps, guidance=guidance, guidance_low=guidance_low, shift=shift,
        solver=solver, sigmas=sigmas, negative=None if negative is None else as_text(negative),
        image=image and options.expand(image), last_image=last_image and options.expand(last_image),
    )  # fmt: skip
    again = None
    if from_ is not None:
        from fpsgen.cli.again import Again  # which knows presets and models: a help needs neither

        video = options.expand(from_)
        again = Again(video, prompt, several, usual, model, lora, preset, device, dtype, parts, encoding, output)
        prompt, usual, encoding = again.prompt, again.usual, again.encoding
        model, lora, parts, device = again.model, again.lora, again.parts, again.device
    if several and encoding.last_frame_to:
        raise UsageError("--last-frame-to is for one video", hint="leave it out, or make one video at a time")
    lines, faults = asked(several, prompt, usual)
    encoding.check()
    chosen.check_device(device)
    same = many.spelled(model, preset, lora=lora, dtype=dtype, parts=parts, crf=encoding.crf, fps=encoding.fps)
    same |= again.asked if again else {}
    share = many.Share.of_process() if several and gpus is None else many.Share()
    out.draws = share.world == 1
    result: Made | many.Tally
    if several:
        result = many.Tally(many.places(lines, many.folder(output, not dry_run), same, faults), share)
    else:
        suffix = again.suffix if again else ".mp4"
        result = Made(many.one_place(lines[0], output, no_clobber, same, suffix), timings)
    todo = result.todo
    if not todo:
        result.tell(out)
        return
    out.loading()
    with timings.stage("load"):  # importing torch and the libraries around it is part of the wait
        # What needs no torch, which takes seconds, is refused before it.
        if again:
            again.check_places(todo)
        looked = check_places(todo, preset, no_clobber, encoding, faults, unmade=dry_run and bool(several))
        encoding = chosen.with_last_frame(encoding, todo[0].path, no_clobber)
        named = (again and again.preset) or chosen.find_preset(preset)
        loras = chosen.find_loras(lora)
        found = (dry_run_.find_model if dry_run else chosen.find_model)(model, parts)
        if found is None:
            check_no_image(next((one.line.image or one.line.last_image for one in todo), None))
        for place in todo:
            if place.path.is_file() and not resume:
                out.note(f"{place.path} exists: the new video will replace it")
                out.loading()
        target = chosen.find_target(share.device(device), dtype, graphs)
        target = again.target(target) if again else target
        target = several_gpus.own_target(target, None if dry_run else gpus)
        from fpsgen import machine, pipeline
        from fpsgen.several_gpus import of_first
        from fpsgen.texts import Texts

        machine.settle()
        if found is None and dry_run:
            found = dry_run_.choose_model(largest(todo), target.device, out, parts)
        found = found or chosen.choose_model(largest(todo), target.device, out, timings, parts)
        found = chosen.with_loras(found, loras, out, usual.solver)
        if again:
            again.tell(found, target, out)
        requests = requests_of(todo, looked, found, target, preset, named, encoding.fps, faults, out)
    if dry_run:
        dry_run_.tell(requests, found, target, placement.offload, gpus, out)
        return
    out.detail(f"model {found.name} from {found.folder}; {target.device}, {target.dtype_name}")
    for settings in dict.fromkeys(request.settings for request in requests):
        tell_sampling(settings, out)
    if isinstance(result, Made):
        given = resuming.GivenByUser(usual.seed is not None, output is not None)
        if not resume:
            resuming.tell(requests[0], found, target, given, out)
        elif (request := result.take_up(requests[0], found, target, given, same, out)) is not None:
            requests = [request]
        else:
            return
    try:
        with several_gpus.together(target, gpus) as group:
            # Closed here, not whenever it is collected: a failure while drawing must not leave an encoder running.
            events = pipeline.generate(
                of_first(requests, group), found, target, [timings], known=functools.partial(Texts, found, target),
                decode_in_bf16=True, encoding=encoding, resume=resume, group=group, offload=placement.offload,
            )  # fmt: skip
            with contextlib.closing(events), drawn(out, run="video") as watch, shown(out) as show:
                for event in resuming.steps_finished(events, out):
                    watch(event)
                    show(event)
                    result.watch(event, out)
                    if again:
                        again.watch(event, out)
        signals.check()
    except KeyboardInterrupt:
        raise result.stopped() from None
    except RenderError as fault:
        result.fail(fault, out)
    result.tell(out)


def check_places(
    todo: Sequence[Place],
    preset: str | None,
    no_clobber: bool,
    encoding: Encoding,
    faults: Faults,
    unmade: bool = False,
) -> dict[tuple[Path | None, Path | None], chosen.Images]:
    """UsageError where a video cannot be written, would replace what it is made of, or begins with an image that cannot
    be read. unmade: whether their folder may be absent. Returns the images of all videos, as they were found."""
    from fpsgen.video import check_path

    looked: dict[tuple[Path | None, Path | None], chosen.Images] = {}
    for place in {(one.path.parent, one.path.suffix): one for one in todo}.values():
        if no_clobber and place.path.exists() and not place.of_frames:
            raise UsageError(f"{place.path} exists, and --no-clobber keeps it", hint="choose another name with -o")
        if not (unmade and not place.path.parent.exists()):
            check_path(place.path, place.of_frames)
    with preferences.using("preset", preset) as wanted:
        given = None if wanted is None else Path(wanted).expanduser()
    for place in todo:
        line, path = place.line, place.path
        with faults.of(line):
            encoding.check_fits(path, line.frames)
            if (line.image, line.last_image) not in looked:
                looked[line.image, line.last_image] = chosen.find_images(line.image, line.last_image)
            check_spared(path, "image", line.image, line.last_image)
        check_spared(path, "preset", given)
    faults.tell()
    return looked


def largest(todo: Sequence[Place]) -> chosen.Size | None:
    """The largest of the sizes that are given, which the model is chosen by."""
    given = [size for place in todo if (size := place.line.size) is not None]
    return max(given, key=math.prod, default=None)


def requests_of(
    todo: Sequence[Place],
    looked: dict[tuple[Path | None, Path | None], chosen.Images],
    model: Model,
    target: Target,
    preset: str | None,
    named: Preset | None,
    fps: int | None,
    faults: Faults,
    out: Output,
) -> list[Request]:
    """What the videos come to with the model; UsageError where it cannot make one. preset: what the user wrote for
    `named`."""
    from fpsgen.request import resolve

    requests, tried = [], set()
    for place in todo:
        with faults.of(place.line):
            images = looked[place.line.image, place.line.last_image]
            request = request_of(place, images, model, preset, named, fps, out)
            requests.append(request)
            if len(todo) > 1 and (kind := (request.settings, images[1] is None)) not in tried:
                resolve(request, model, target)  # the pipeline would not know of which line it complains
                tried.add(kind)
    faults.tell()
    return requests


def request_of(
    place: Place,
    images: chosen.Images,
    model: Model,
    preset: str | None,
    named: Preset | None,
    fps: int | None,
    out: Output,
) -> Request:
    """As `requests_of` has it, of one video."""
    from fpsgen.request import Request

    line, (image, last_image, _) = place.line, images
    settings, scale_to = chosen.fit_request(
        model, images, line.res, out, frames=line.frames, steps=line.steps, guidance=line.guidance,
        guidance_low=line.guidance_low, shift=line.shift, negative=line.negative, solver=line.solver,
        sigmas=line.sigmas, fps=fps,
    )  # fmt: skip
    with preferences.using("preset", preset) as wanted:
        named = chosen.fit_preset(wanted, named, model, settings)
    assert line.seed is not None
    return Request(
        line.prompt.strip(), settings, line.seed, place.path, named, scale_to, place.may_replace, image, last_image,
        place.asked,
    )  # fmt: skip
