"""Model, size, device and precision as the user chose them, for every command that renders."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from fpsgen import files, images, machine
from fpsgen.cli import options, preferences
from fpsgen.cli.output import Output
from fpsgen.errors import UsageError
from fpsgen.formats import Encoding
from fpsgen.printable import printable, typed
from fpsgen.settings import at_size
from fpsgen.timing import Timings
from fpsgen.wan import sizes
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    import torch

    from fpsgen.settings import Settings
    from fpsgen.target import Target
    from fpsgen.weights.lora import Lora
    from fpsgen.weights.models import Model

Dtype = Literal["bf16", "fp32"]
Size = tuple[int, int]  # width and height
Images = tuple[Path | None, Path | None, Size | None]  # the files of a first and a last one, and the first one's size
_IMAGES = ("image", "last_image")  # what the settings are called


def check_device(name: str | None) -> None:
    """UsageError where a device is none, without asking torch, which takes seconds to load."""
    if name is not None and not re.fullmatch(r"cpu|cuda(:(\d|[1-9]\d))?", name):
        why = "fpsgen runs on cpu and cuda"
        if name.partition(":")[0] in ("cpu", "cuda"):
            why = "there is one CPU, without a number" if name.startswith("cpu:") else "that is no GPU's number"
        hint = "use cpu, cuda or cuda:N, the first GPU being cuda:0"
        raise UsageError(f"--device {typed(name)}: {why}", hint)


def find_device(name: str | None) -> torch.device:
    """The device called `name`, or the best one here; UsageError where it cannot be had."""
    check_device(name)
    import torch

    from fpsgen import machine

    device = torch.device(name) if name else machine.best_device()
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA GPU"
        raise UsageError(f"--device {name}: {why}", hint="leave --device out, or use --device cpu")
    if device == torch.device("cuda"):  # tensors have a number, and caches are keyed by it
        return machine.best_device()
    if device.index >= (count := torch.cuda.device_count()):
        raise UsageError(f"--device {name}: the last GPU here is cuda:{count - 1}", hint="try --device cuda:0")
    return device


def find_target(name: str | None, dtype: Dtype | None, graphs: bool = False) -> Target:
    """Device and precisions together; UsageError where the device, or CUDA graphs on it, cannot be had.

    Without a choice, bf16 on a GPU and fp32 on a CPU, where bf16 is seldom faster; the text encoder in bf16, as the
    original runs it, unless fp32 was asked for in so many words.
    """
    device = find_device(name)
    import torch

    from fpsgen.target import Target

    if device.type == "cpu":
        if graphs:
            told = "--graphs: CUDA graphs need a CUDA GPU, and this video is made on the CPU"
            raise UsageError(told, hint="leave --graphs out")
        machine.reuse_memory()

    in_bf16 = dtype == "bf16" or (dtype is None and device.type == "cuda")
    text_dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
    return Target(device, torch.bfloat16 if in_bf16 else torch.float32, text_dtype, graphs)


def find_model(name: str | None, parts: Given = NOTHING, may_be_absent: bool = False) -> Model | None:
    """The model that was named, or the user's own default, if there is one, with the parts that were named; its files
    are looked at. may_be_absent: whether a known model, of which no part is named, need not be on this disk."""
    with preferences.using("model", name) as wanted:
        if wanted is None:
            return None
        from fpsgen.weights import models

        if may_be_absent and not parts and models.is_known(wanted):
            return models.absent(wanted.lower())
        model = models.find(wanted, parts)
        from fpsgen.weights import load  # which imports torch

        load.check(model.checkpoint)  # a file that does not fit is told now, not after the denoising
    return model


def choose_model(
    size: Size | None, device: torch.device, out: Output, timings: Timings | None = None, parts: Given = NOTHING
) -> Model:
    """The default model; where its weights are absent and somebody can be asked, fetched first."""
    from fpsgen.weights import hub, load, models

    cuda = device.type == "cuda"
    try:
        model, surprise = models.choose(size, cuda, parts)
    except models.NoWeightsError as absent:
        if not out.may_ask:
            raise
        with (timings or Timings()).pause():  # a download is no part of making a video
            question = f"{absent}. Fetch Wan2.1 {absent.key} now, {absent.size}?"
            if not typer.confirm(question, err=True):
                raise
            hub.pull(hub.plan(hub.source_of(absent.repository)))
        model, surprise = models.choose(size, cuda, parts)
    load.check(model.checkpoint)
    if surprise:
        out.note(surprise)
    return model


def find_loras(given: Sequence[str] | None) -> list[Lora]:
    """The LoRAs that were named; their files are looked at. UsageError where one is none."""
    from fpsgen.weights import lora

    return [lora.find(own) for own in given or ()]


def with_loras(model: Model, loras: Sequence[Lora], out: Output, solver: str | None) -> Model:
    """The model with them, and what the user should know of it. solver: the one that was given, None where there was
    none."""
    from fpsgen.weights import few_steps

    found = model.with_loras(loras)
    reached = {own.expert for own in found.checkpoint.loras}
    for given, own in zip(loras, found.checkpoint.loras, strict=True):
        out.detail(f"LoRA {own.file}, scale {own.scale:g}{f', {own.expert}-noise expert' if own.expert else ''}")
        name = printable(own.file.name)
        other = "low" if own.expert == "high" else "high"
        if own.expert != given.expert and reached.isdisjoint(("", other)):
            told = f"{name} is for the {own.expert}-noise expert, as it says, and only that one has it"
            out.note(f"{told}; --lora {other}=FILE gives it to the other one")
        fast = few_steps.solver_of(own.called)
        if fast and own.expert and solver is None and found.defaults.solver != fast:
            told = f"{name} was made for few steps, and is given to the {own.expert}-noise expert alone"
            out.note(f"{told}: the model's own steps and guidance are used; --solver {fast} says otherwise")
        if few_steps.is_of_another_sampler(own.called):
            told = f"{name} was made for few steps without guidance, by a sampler that fpsgen does not have"
            out.note(f"{told}; --steps 8 --guidance 1 may do")
    tell_few_steps(found, out, solver)
    return found


def tell_few_steps(model: Model, out: Output, solver: str | None) -> None:
    """Which solver is used because of what the model or a LoRA was made for. solver: as `with_loras` has it."""
    from fpsgen.solvers import FEW_STEPS
    from fpsgen.weights import few_steps

    used = model.defaults.solver
    if solver or used not in FEW_STEPS:
        return
    loras = [own.file.name for own in model.checkpoint.loras if few_steps.solver_of(own.called) == used]
    told = f"{printable(loras[0] if loras else model.name)} was made for {len(FEW_STEPS[used].points)} steps"
    usual = model.defaults_by("unipc").solver
    out.note(f"{told} without guidance: the solver {used} is used; --solver {usual} ignores this")


def fit(model: Model, size: Size | None, out: Output, **given: Any) -> tuple[Settings, Size | None]:
    """The model's settings, but for what was given, and the size to scale to where it cannot render `size`."""
    own = model.defaults_by(given.get("solver"))
    check_guidance_low(model, given.get("guidance_low"))
    if model.pocket is None or size in (None, (own.width, own.height)):
        return settings_of(model, size, **given), None
    assert size is not None
    sizes.check_scaled_size(*size)
    out.note(f"the pocket model renders {own.size}; its pixels are scaled to {size[0]}x{size[1]}")
    return own.override(**given), size


def settings_of(model: Model, size: Size | None, **given: Any) -> Settings:
    """The model's own, but for what was given; UsageError where it cannot render the size."""
    defaults = model.defaults_by(given.get("solver"))
    own = (defaults.width, defaults.height)
    if model.pocket is not None and size not in (None, own):
        raise UsageError(f"the pocket model renders only {own[0]}x{own[1]}", hint="leave --res out")
    check_guidance_low(model, given.get("guidance_low"))
    width, height = sizes.of_model(*(size or own), defaults.stride)
    sizes.check_model_size(width, height, defaults.stride)
    return at_size(model.checkpoint.kind, defaults, width, height).override(width=width, height=height, **given)


def find_images(image: Path | None, last: Path | None) -> Images:
    """The files of a first and a last image, and the first one's size; UsageError where one cannot be read."""
    paths = [path and options.expand(path) for path in (image, last)]
    found = [None if path is None else images.read(path, field) for path, field in zip(paths, _IMAGES, strict=True)]
    return paths[0], paths[1], None if found[0] is None else found[0].size


def with_last_frame(encoding: Encoding, video: Path, no_clobber: bool) -> Encoding:
    """The encoding with the place of a last frame as it is meant; UsageError where none can be written there."""
    if encoding.last_frame_to is None:
        return encoding
    picture = options.expand(encoding.last_frame_to)
    told, hint = f"--last-frame-to {printable(picture)}", "choose another name, such as last.png"
    if picture.suffix.lower() != ".png":
        raise UsageError(f"{told}: a last frame is a .png file", hint)
    there = files.check_place(picture, "last.png", "last_frame_to")
    if there and no_clobber:
        raise UsageError(f"{told} exists, and --no-clobber keeps it", hint)
    if files.resolved(picture) == files.resolved(video):
        raise UsageError(f"{told} is where the video goes", hint)
    return replace(encoding, last_frame_to=picture)


def size_with(image: Size | None, res: str | None, size: Size | None, model: Model) -> Size | None:
    """The size that was given, which without both its sides is an area for an image's proportions. image: its size;
    res: what the user wrote for `size`."""
    if image is None or model.pocket is not None or (res is not None and res.lower() not in sizes.NAMED):
        return size
    own = model.defaults
    return sizes.of_area(image, size or (own.width, own.height), own.stride)


def check_of_text(model: Model, what: str) -> None:
    """UsageError where a model begins with an image, and `what` has none."""
    if model.config.condition_channels:
        told = f"{printable(model.full_name)} begins videos with an image, and {what} has none"
        raise UsageError(told, hint=f"use a text-to-video model: {model.family}")


def check_trains(model: Model) -> None:
    """UsageError where training cannot learn a model."""
    check_of_text(model, "training")
    if model.checkpoint.transformer_2:
        told = f"{printable(model.full_name)} has two experts, and training learns one transformer"
        raise UsageError(told, hint="train a model of one transformer, such as 1.3b or 14b")


def check_guidance_low(model: Model, guidance_low: float | None) -> None:
    """UsageError where it is given for a model of one transformer."""
    if guidance_low is not None and not model.checkpoint.transformer_2:
        told = f"--guidance-low {guidance_low:g}: {model.name} has one transformer, no experts for high and low noise"
        raise UsageError(told, hint=f"use --guidance {guidance_low:g}")


def video_name(prompt: str, seed: int, tell_apart: bool = False) -> str:
    """A file name that says what is inside. tell_apart: long prompts that begin alike have names of their own."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    kept, more = words.encode()[:60].decode(errors="ignore").rstrip("-"), ""  # file systems count bytes
    if tell_apart and kept != words:
        more = f"-{hashlib.sha256(prompt.encode('utf-8', 'replace')).hexdigest()[:8]}"
    return os.fsdecode(f"{kept or 'video'}{more}-{seed}.mp4".encode())  # names are UTF-8, whatever the locale
