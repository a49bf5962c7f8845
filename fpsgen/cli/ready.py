"""What a command's videos are made of and with: found and checked before anything loads."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import choices, files
from fpsgen.choices import check_no_image, check_spared
from fpsgen.cli import chosen, dry_run, preferences, several_gpus
from fpsgen.cli.lines import Faults, Wanted
from fpsgen.cli.many import Place, Share
from fpsgen.cli.output import Output
from fpsgen.errors import UsageError
from fpsgen.formats import Encoding
from fpsgen.timing import Timings

if TYPE_CHECKING:
    from fpsgen.cli.again import Again
    from fpsgen.presets import Preset
    from fpsgen.request import Request
    from fpsgen.target import Target
    from fpsgen.weights.models import Model

Looked = dict[tuple[Path | None, Path | None], choices.Images]


@dataclass(frozen=True)
class Ready:
    """What a command's videos are made of and with, before anything is loaded."""

    model: Model
    target: Target
    requests: list[Request]
    encoding: Encoding


def make_ready(
    wanted: Wanted,
    todo: Sequence[Place],
    faults: Faults,
    share: Share,
    solver: str | None,
    again: Again | None,
    timings: Timings,
    out: Output,
) -> Ready:
    """Model, device and requests of the videos `todo`; UsageError where one cannot be made. What needs no torch, which
    takes seconds to import, is refused before it. solver: what the user gave."""
    if again:
        again.check_places(todo)
    looked = check_places(wanted, todo, faults)
    encoding = chosen.with_last_frame(wanted.encoding, todo[0].path, wanted.no_clobber)
    if encoding.last_frame_to:
        check_spared(
            encoding.last_frame_to, "image", todo[0].line.image, todo[0].line.last_image, field="last_frame_to"
        )
    named = (again and again.preset) or chosen.find_preset(wanted.preset)
    loras = choices.find_loras(wanted.lora)
    find = dry_run.find_model if wanted.dry_run else chosen.find_model
    if (model := find(wanted.model, wanted.parts)) is None:
        check_no_image(next((one.line.image or one.line.last_image for one in todo), None))
    for place in todo:
        if place.path.is_file() and not wanted.resume:
            out.note(f"{place.path} exists: the new video will replace it")
            out.loading()
    target = choices.find_target(share.device(wanted.device), wanted.dtype, wanted.graphs)
    target = again.target(target) if again else target
    if not wanted.dry_run:
        target = several_gpus.own_target(target, wanted.gpus)
    if model is None:
        choose = dry_run.choose_model if wanted.dry_run else chosen.choose_model
        model = choose(largest(todo), target.device, out, timings, wanted.parts)
    model = choices.with_loras(model, loras, out, solver)
    if again:
        again.tell(model, target, out)
    return Ready(model, target, requests_of(todo, looked, model, target, wanted, named, faults, out), encoding)


def check_places(wanted: Wanted, todo: Sequence[Place], faults: Faults) -> Looked:
    """UsageError where a video cannot be written, would replace what it is made of, or begins with an image that cannot
    be read. Returns the images of all videos, as they were found."""
    from fpsgen.video import check_path

    looked: Looked = {}
    for place in {(one.path.parent, one.path.suffix): one for one in todo}.values():
        if wanted.no_clobber and place.path.exists() and not place.of_frames:
            raise UsageError(f"{place.path} exists, and --no-clobber keeps it", hint="choose another name with -o")
        complete = wanted.resume and place.of_frames and is_of_frames(place.path)  # which `resume` says
        unmade = wanted.dry_run and place.makes_folder and not place.path.parent.exists()
        if not complete and not unmade:
            check_path(place.path, place.of_frames)
    with preferences.using("preset", wanted.preset) as name:
        given = None if name is None else Path(name).expanduser()
    for place in todo:
        line, path = place.line, place.path
        with faults.of(line):
            with files.refused(path, "choose another name with -o", "output"), contextlib.suppress(FileNotFoundError):
                os.lstat(f"{path}{files.UNFINISHED}")  # what is kept of it meanwhile, whose name is longer
            wanted.encoding.check_fits(path, line.frames)
            if (line.image, line.last_image) not in looked:
                looked[line.image, line.last_image] = choices.find_images(line.image, line.last_image)
            check_spared(path, "image", line.image, line.last_image)
        check_spared(path, "preset", given)
    faults.tell()
    return looked


def is_of_frames(path: Path) -> bool:
    """Whether a folder holds the frames of a video of fpsgen's, and says how they were made."""
    from fpsgen import comment

    try:
        return path.is_dir() and bool(comment.read(path))
    except UsageError:
        return False


def largest(todo: Sequence[Place]) -> choices.Size | None:
    """The largest of the sizes that are given, which the model is chosen by."""
    given = [size for place in todo if (size := place.line.size) is not None]
    return max(given, key=math.prod, default=None)


def requests_of(
    todo: Sequence[Place],
    looked: Looked,
    model: Model,
    target: Target,
    wanted: Wanted,
    named: Preset | None,
    faults: Faults,
    out: Output,
) -> list[Request]:
    """What the videos come to with the model; UsageError where it cannot make one. named: the preset that the user, or
    an earlier video, named."""
    from fpsgen.request import resolve

    requests, tried = [], set()
    for place in todo:
        with faults.of(place.line):
            images = looked[place.line.image, place.line.last_image]
            request = request_of(place, images, model, wanted, named, out)
            requests.append(request)
            if len(todo) > 1 and (kind := (request.settings, images[1] is None)) not in tried:
                resolve(request, model, target)  # the pipeline would not know of which line it complains
                tried.add(kind)
    faults.tell()
    return requests


def request_of(
    place: Place, images: choices.Images, model: Model, wanted: Wanted, named: Preset | None, out: Output
) -> Request:
    """As `requests_of` has it, of one video."""
    from fpsgen.request import Request

    line, (image, last_image, _) = place.line, images
    settings, scale_to = choices.fit_request(
        model, images, line.res, out, frames=line.frames, steps=line.steps, guidance=line.guidance,
        guidance_low=line.guidance_low, shift=line.shift, negative=line.negative, solver=line.solver,
        sigmas=line.sigmas, fps=wanted.encoding.fps,
    )  # fmt: skip
    with preferences.using("preset", wanted.preset) as name:
        named = choices.fit_preset(name, named, model, settings)
    assert line.seed is not None
    return Request(
        line.prompt.strip(), settings, line.seed, place.path, named, scale_to, place.may_replace, image, last_image,
        place.asked,
    )  # fmt: skip
