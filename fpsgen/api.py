"""Videos for programs: `generate`, with the rules and defaults of the command line (`choices`).

It reads no settings file and asks nothing; without an output it leaves no file.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args, overload

import numpy as np

from fpsgen import choices, files
from fpsgen.choices import Dtype
from fpsgen.errors import UsageError, option, plain
from fpsgen.events import Event, Frames, Notice, VideoFailed, Watch, Written
from fpsgen.formats import Encoding
from fpsgen.pipeline import generate as events_of
from fpsgen.presets import Preset
from fpsgen.request import Request
from fpsgen.seeds import check_seed
from fpsgen.settings import Offload, check_settings
from fpsgen.solvers import Sigmas, SolverName
from fpsgen.target import Target
from fpsgen.texts import Texts
from fpsgen.timing import RunTimes, Timings, of_all
from fpsgen.video import check_path
from fpsgen.wan import sizes
from fpsgen.weights.known import Given
from fpsgen.weights.models import Model

AnyPath = str | Path
_log = logging.getLogger("fpsgen")
# What options are, where nothing else would refuse what is of another kind.
_KINDS: dict[str, tuple[Any, str]] = dict.fromkeys(("seed", "frames", "steps", "crf", "fps"), (Integral, "an int"))
_KINDS |= dict.fromkeys(("guidance", "guidance_low", "shift"), (Real, "a float"))
_KINDS |= dict.fromkeys(("res", "lora", "negative", "device"), (str, "a str"))
_KINDS |= dict.fromkeys(("model", "image", "last_image"), ((str, os.PathLike), "a str or a Path"))
_KINDS |= dict.fromkeys(("text_encoder", "vae", "image_encoder"), ((str, os.PathLike), "a str or a Path"))


class Options(TypedDict, total=False):
    """What `generate` takes beside a prompt: each as the command line's option of the same name, with its default, but
    for output, seed and preset, which may be more than there. watch is called with each event."""

    res: str | None
    frames: int | None
    model: AnyPath | None
    lora: str | Sequence[str]
    image: AnyPath | None
    last_image: AnyPath | None
    steps: int | None
    guidance: float | None
    guidance_low: float | None
    shift: float | None
    solver: SolverName | None
    sigmas: Sigmas | None
    negative: str | None
    seed: int | Sequence[int] | None  # several: one for each prompt
    preset: AnyPath | Preset | None
    output: AnyPath | Sequence[AnyPath] | None  # several: one for each prompt
    keep_frames: bool  # beside a file, too
    crf: int | None
    fps: int | None
    device: str | None
    dtype: Dtype | None
    graphs: bool
    offload: Offload
    text_encoder: AnyPath | None
    vae: AnyPath | None
    image_encoder: AnyPath | None
    watch: Watch | None


@dataclass(frozen=True, eq=False)
class Video:
    """A video that was made.

    path: of its file, None where none was asked for. frames: as they were rendered, uint8 [n, height, width, 3]; None
    where there is a file and they were not to be kept. fps: frames per second. about: what it was made with, as its
    file's comment says.
    """

    path: Path | None
    frames: np.ndarray | None = field(repr=False)
    fps: int
    seed: int
    timings: RunTimes = field(repr=False)
    about: dict[str, Any] = field(repr=False)


@overload
def generate(prompt: str, **options: Unpack[Options]) -> Video: ...
@overload
def generate(prompt: list[str] | tuple[str, ...], **options: Unpack[Options]) -> list[Video]: ...
def generate(prompt: str | list[str] | tuple[str, ...], **options: Unpack[Options]) -> Video | list[Video]:
    """Make a video of a prompt, or one of each prompt, with one load of the model.

    options: see `fpsgen.api.Options`. Where no watch is given, what the user should know goes to the logger "fpsgen".

    UsageError, before any weight loads, where something cannot be, and TypeError where a value is of another type;
    RenderError where a video is none. Of several videos, those that are complete by then keep their files.
    """
    if unknown := sorted(options.keys() - Options.__annotations__.keys()):
        raise TypeError(f"generate() got an unexpected keyword argument {unknown[0]!r}")
    options = _of_kinds(options)
    prompts = [*prompt] if isinstance(prompt, (list, tuple)) else [prompt]
    for each in prompts:
        if not isinstance(each, str):
            raise TypeError(f"a prompt is a str, not {type(each).__name__}")
    if not prompts:
        return []
    watch = functools.partial(_tell, options.get("watch"))
    with files.temporary_folder("video") as scratch:
        outputs = _for_each(prompts, options.get("output"), "output")
        paths = [None if own is None else files.place(str(own)) for own in outputs]
        if twice := next((place for place in paths if place and paths.count(place) > 1), None):
            raise UsageError(f"{option('output', twice[0])}: two videos cannot have one place", "give each its own")
        clocks = [Timings() for _ in prompts]
        with of_all(clocks, "load"):
            encoding = Encoding(options.get("crf"), options.get("fps"))
            seeds = _checked(prompts, encoding, options)
            requests, known, target = _requests(prompts, seeds, paths, scratch, encoding, watch, options)
        keeps = options.get("keep_frames", False) or None in paths
        own = functools.partial(Texts, known, target)
        videos: dict[int, Video] = {}
        pieces: list[np.ndarray] = []
        events = events_of(
            requests, known, target, clocks, known=own, decode_in_bf16=True, encoding=encoding,
            offload=options.get("offload", "auto"),
        )  # fmt: skip
        with contextlib.closing(events):
            for event in events:
                watch(event)
                if isinstance(event, VideoFailed):
                    raise event.fault
                if isinstance(event, Frames) and keeps:
                    pieces.append(event.pixels)
                if isinstance(event, Written):
                    number = [request.output for request in requests].index(event.plan.request.output)
                    path = None if paths[number] is None else event.path
                    pixels = np.concatenate(pieces) if path is None or options.get("keep_frames") else None
                    pieces.clear()
                    fps, times = requests[number].settings.fps, clocks[number].rounded()
                    videos[number] = Video(path, pixels, fps, seeds[number], times, event.about)
    return videos[0] if isinstance(prompt, str) else [videos[number] for number in range(len(prompts))]


def _of_kinds(given: Options) -> Options:
    """The options, with Python's own numbers in place of numpy's; TypeError where one is of another kind."""
    own: Any = dict(given)
    for name, kind in _KINDS.items():
        value = own.get(name)
        if name in ("seed", "lora") and isinstance(value, Iterable) and not isinstance(value, str):
            own[name] = [_of_kind(name, each, *kind) for each in value]
        else:
            own[name] = _of_kind(name, value, *kind)
    return own


def _of_kind(name: str, value: Any, kind: Any, words: str) -> Any:
    """A value as Python has it; TypeError where it is of another kind. None is that of an option that was left out."""
    if value is None:
        return None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} is {words}, not {type(value).__name__}")
    if kind is Integral:
        return int(value)
    return float(value) if kind is Real and not isinstance(value, int) else value


def _for_each(prompts: Sequence[str], given: Any, field: str) -> list[Any]:
    """An option's value for each prompt, of one for all or of a sequence."""
    if given is None or isinstance(given, (str, Path, int)):
        if given is not None and field == "output" and len(prompts) > 1:
            told = f"{option(field, given)} is one place, and there are {len(prompts)} videos"
            raise UsageError(told, hint="give a list, one place for each prompt")
        return [given] * len(prompts)
    if len(found := [*given]) != len(prompts):
        values = "1 value" if len(found) == 1 else f"{len(found)} values"
        told = f"{option(field)} has {values}, and there are {len(prompts)} prompts"
        raise UsageError(told, hint="give one for each prompt")
    return found


def _checked(prompts: Sequence[str], encoding: Encoding, given: Options) -> list[int]:
    """The seeds, drawn where none was given; UsageError for what no model could make."""
    seeds = _for_each(prompts, given.get("seed"), "seed")
    for prompt in prompts:
        choices.check_prompts(prompt, given.get("negative"))
    if (res := given.get("res")) is not None:
        sizes.parse_resolution(res)
    check_settings(
        given.get("frames"), given.get("steps"), given.get("guidance"), given.get("shift"), given.get("solver"),
        given.get("sigmas") or "original", given.get("guidance_low"),
    )  # fmt: skip
    for seed in seeds:
        if seed is not None:
            check_seed(seed)
    offload, dtype = given.get("offload", "auto"), given.get("dtype")
    chosen = (("offload", offload, get_args(Offload)), ("dtype", dtype or "bf16", get_args(Dtype)))
    for name, choice, every in chosen:
        if choice not in every:
            raise UsageError(f"{option(name, choice)}: there is no such choice", f"use {', '.join(every)}")
    encoding.check()
    choices.check_device(given.get("device"))
    return [secrets.randbelow(2**31) if seed is None else seed for seed in seeds]


def _requests(
    prompts: Sequence[str],
    seeds: Sequence[int],
    paths: Sequence[tuple[Path, bool] | None],
    scratch: Path,
    encoding: Encoding,
    watch: Watch,
    given: Options,
) -> tuple[list[Request], Model, Target]:
    """What all videos come to, with their model and target. scratch: where files go that nobody asked for."""
    out = _Voice(watch)
    preset = given.get("preset")
    wanted = None if preset is None or isinstance(preset, Preset) else str(preset)
    images = choices.find_images(_path(given.get("image")), _path(given.get("last_image")))
    for path, is_folder in filter(None, paths):
        check_path(path, is_folder)
        encoding.check_fits(path, given.get("frames"))
        choices.check_spared(path, "image", *images[:2])
        choices.check_spared(path, "preset", _path(wanted))
    named = preset if isinstance(preset, Preset) else choices.find_preset(wanted)
    loras = given.get("lora") or ()
    found_loras = choices.find_loras([loras] if isinstance(loras, str) else loras)
    parts = Given(*(_path(each) for each in (given.get("text_encoder"), given.get("vae"), given.get("image_encoder"))))
    model = None if (name := given.get("model")) is None else choices.named_model(str(name), parts)
    if model is None:
        choices.check_no_image(images[0] or images[1])
    target = choices.find_target(given.get("device"), given.get("dtype"), given.get("graphs", False))
    res, solver = given.get("res"), given.get("solver")
    size = None if res is None else sizes.parse_resolution(res)
    model = choices.with_loras(
        model or choices.default_model(size, target.device, out, parts), found_loras, out, solver
    )
    settings, scale_to = choices.fit_request(
        model, images, res, out, frames=given.get("frames"), steps=given.get("steps"), guidance=given.get("guidance"),
        guidance_low=given.get("guidance_low"), shift=given.get("shift"), negative=given.get("negative"),
        solver=solver, sigmas=given.get("sigmas"), fps=encoding.fps,
    )  # fmt: skip
    fitted = choices.fit_preset(wanted, named, model, settings)
    requests = []
    for number, (prompt, seed, place) in enumerate(zip(prompts, seeds, paths, strict=True)):
        path, to = (scratch / f"{number}.mp4", None) if place is None else (place[0], scale_to)
        requests.append(
            Request(prompt.strip(), settings, seed, path, fitted, to, image=images[0], last_image=images[1])
        )
    return requests, model, target


def _path(given: AnyPath | None) -> Path | None:
    return None if given is None else files.expand(Path(given))


def _tell(watch: Watch | None, event: Event) -> None:
    """Tell whoever watches, in plain text; else the log."""
    if isinstance(event, Notice):
        event = Notice(plain(event.text), event.detail)
        if watch is None:
            _log.log(logging.INFO if event.detail else logging.WARNING, event.text)
    if watch is not None:
        watch(event)


class _Voice:
    """A `choices.Voice` that tells events."""

    def __init__(self, watch: Watch):
        self._watch = watch

    def note(self, text: str) -> None:
        self._watch(Notice(text))

    def detail(self, text: str) -> None:
        self._watch(Notice(text, detail=True))
