"""Prompt, model, size, device and precision as a user chose them, by the same rules for the command line and for
programs. Whoever calls has a voice that says what the user should know."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fpsgen import files, images, machine
from fpsgen.errors import UsageError, option
from fpsgen.printable import printable
from fpsgen.settings import at_size
from fpsgen.wan import sizes
from fpsgen.weights.known import NOTHING, Given

if TYPE_CHECKING:
    import torch

    from fpsgen.presets import Preset
    from fpsgen.settings import Settings
    from fpsgen.target import Target
    from fpsgen.weights.lora import Lora
    from fpsgen.weights.models import Model

Dtype = Literal["bf16", "fp32"]
Size = tuple[int, int]  # width and height
Images = tuple[Path | None, Path | None, Size | None]  # the files of a first and a last one, and the first one's size
ENLARGED = 4  # the pocket's file, 640x384: its own 160x96 would be a stamp on a screen
MAX_PROMPT = 5000  # characters
_IMAGES = ("image", "last_image")  # what the settings are called
# Letters, symbols and unassigned characters that Unicode wants drawn as nothing: fillers, a blank braille cell, others.
_BLANK = re.compile("[\u115f\u1160\u2065\u2800\u3164\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]")


class Voice(Protocol):
    """Says something to the user: a note at once, a detail only if asked for."""

    def note(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...


def is_blank(text: str) -> bool:
    """Whether nothing in a text can be seen: spaces, controls, marks without a letter, or HTML's names for these."""
    from fpsgen.wan.tokenizer import clean

    return all(
        unicodedata.category(c) in ("Cc", "Cf", "Cs", "Mn", "Mc", "Me", "Zs", "Zl", "Zp")
        for c in _BLANK.sub("", clean(text))
    )


def check_prompts(prompt: str, negative: str | None = None) -> None:
    """Refuse a prompt in which nothing can be seen, bytes that are no text, and texts far beyond what the model reads
    and the file's comment can hold."""
    for name, text in (("prompt", prompt), ("negative prompt", negative or "")):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(f"the {name} is not UTF-8 text", hint="type it again, or save its file as UTF-8")
        if len(text) > MAX_PROMPT:
            raise UsageError(
                f"the {name} has {len(text)} characters; at most {MAX_PROMPT} are taken",
                hint="shorten it: the model reads its first 512 tokens",
            )
    if is_blank(prompt):
        told = "the prompt holds only characters that cannot be seen" if prompt.strip() else "the prompt is empty"
        raise UsageError(told, hint='fpsgen generate "a cat surfing"')


def check_device(name: str | None) -> None:
    """UsageError where a device is none, without asking torch, which takes seconds to load."""
    if name is not None and not re.fullmatch(r"cpu|cuda(:(\d|[1-9]\d))?", name):
        why = "fpsgen runs on cpu and cuda"
        if name.partition(":")[0] in ("cpu", "cuda"):
            why = "there is one CPU, without a number" if name.startswith("cpu:") else "that is no GPU's number"
        hint = "use cpu, cuda or cuda:N, the first GPU being cuda:0"
        raise UsageError(f"{option('device', name)}: {why}", hint)


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
        hint = f"leave {option('device')} out, or use {option('device', 'cpu')}"
        raise UsageError(f"{option('device', name)}: {why}", hint)
    if device == torch.device("cuda"):  # tensors have a number, and caches are keyed by it
        return machine.best_device()
    if device.index >= (count := torch.cuda.device_count()):
        told = f"{option('device', name)}: the last GPU here is cuda:{count - 1}"
        raise UsageError(told, hint=f"try {option('device', 'cuda:0')}")
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
            told = f"{option('graphs')}: CUDA graphs need a CUDA GPU, and this video is made on the CPU"
            raise UsageError(told, hint=f"leave {option('graphs')} out")
        machine.reuse_memory()

    in_bf16 = dtype == "bf16" or (dtype is None and device.type == "cuda")
    text_dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
    return Target(device, torch.bfloat16 if in_bf16 else torch.float32, text_dtype, graphs)


def named_model(name: str, parts: Given = NOTHING, may_be_absent: bool = False) -> Model:
    """The model that was named, with the parts that were named; its files are looked at. may_be_absent: whether a known
    model, of which no part is named, need not be on this disk."""
    from fpsgen.weights import models

    if may_be_absent and not parts and models.is_known(name):
        return models.absent(name.lower())
    model = models.find(name, parts)
    from fpsgen.weights import load  # which imports torch

    load.check(model.checkpoint)  # a file that does not fit is told now, not after the denoising
    return model


def default_model(size: Size | None, device: torch.device, out: Voice, parts: Given = NOTHING) -> Model:
    """The model where the user named none; NoWeightsError where there is a GPU and no weights for it."""
    from fpsgen.weights import load, models

    model, surprise = models.choose(size, device.type == "cuda", parts)
    load.check(model.checkpoint)
    if surprise:
        out.note(surprise)
    return model


def find_loras(given: Sequence[str] | None) -> list[Lora]:
    """The LoRAs that were named; their files are looked at. UsageError where one is none."""
    from fpsgen.weights import lora

    return [lora.find(own) for own in given or ()]


def with_loras(model: Model, loras: Sequence[Lora], out: Voice, solver: str | None) -> Model:
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
            out.note(f"{told}; {option('lora', f'{other}=FILE')} gives it to the other one")
        fast = few_steps.solver_of(own.called)
        if fast and own.expert and solver is None and found.defaults.solver != fast:
            told = f"{name} was made for few steps, and is given to the {own.expert}-noise expert alone"
            told += f": the model's own steps and guidance are used; {option('solver', fast)} says otherwise"
            out.note(told)
        if few_steps.is_of_another_sampler(own.called):
            told = f"{name} was made for few steps without guidance, by a sampler that fpsgen does not have"
            out.note(f"{told}; {option('steps', 8)} {option('guidance', 1)} may do")
    tell_few_steps(found, out, solver)
    return found


def tell_few_steps(model: Model, out: Voice, solver: str | None) -> None:
    """Which solver is used because of what the model or a LoRA was made for. solver: as `with_loras` has it."""
    from fpsgen.solvers import FEW_STEPS
    from fpsgen.weights import few_steps

    used = model.defaults.solver
    if solver or used not in FEW_STEPS:
        return
    loras = [own.file.name for own in model.checkpoint.loras if few_steps.solver_of(own.called) == used]
    told = f"{printable(loras[0] if loras else model.name)} was made for {len(FEW_STEPS[used].points)} steps"
    usual = model.defaults_by("unipc").solver
    out.note(f"{told} without guidance: the solver {used} is used; {option('solver', usual)} ignores this")


def fit(model: Model, size: Size | None, out: Voice, **given: Any) -> tuple[Settings, Size | None]:
    """The model's settings, but for what was given, and the size to scale to where it cannot render `size`."""
    own = model.defaults_by(given.get("solver"))
    check_guidance_low(model, given.get("guidance_low"))
    if model.pocket is None or size in (None, (own.width, own.height)):
        return settings_of(model, size, **given), None
    assert size is not None
    sizes.check_scaled_size(*size)
    usual = size == (own.width * ENLARGED, own.height * ENLARGED)  # as without a size, of which no note tells
    tell = out.detail if usual else out.note
    tell(f"the pocket model renders {own.size}; its pixels are scaled to {size[0]}x{size[1]}")
    return own.override(**given), size


def check_spared(output: Path, what: str, *given: Path | None, field: str = "output") -> None:
    """UsageError where a video, or its last frame, would replace a file that it is made of. field: the setting that
    names the output."""
    if any(each and output.exists() and each.exists() and output.samefile(each) for each in given):
        told = f"{output} is the {what}: the {'video' if field == 'output' else 'last frame'} would replace it"
        raise UsageError(told, hint=f"choose another {option(field)}")


def check_no_image(image: Path | None) -> None:
    """UsageError where a video begins or ends with an image, and no model was named."""
    if image is not None:
        told = f"{option('image', image.name)}: the models that are chosen by default take none"
        raise UsageError(told, hint=f"name one that does, such as {option('model', 'i2v-480p')}")


def fit_request(
    model: Model, images: Images, res: str | None, out: Voice, **given: Any
) -> tuple[Settings, Size | None]:
    """The settings of a video with its images, and the size that its file is scaled to, if that is another; UsageError
    where the model makes none of these. res: the size as the user wrote it; given: the other settings."""
    from fpsgen.request import check_images

    check_images(images[0], images[1], model)
    size = None if res is None else sizes.parse_resolution(res)
    size = size_with(images[2], res, size, model)
    settings, scale_to = fit(model, size, out, **given)
    if model.pocket and size is None:
        scale_to = settings.width * ENLARGED, settings.height * ENLARGED
    if model.pocket and settings.frames > model.defaults.frames:
        out.note(f"the pocket model was trained on clips of {model.defaults.frames} frames; longer ones may drift")
    return settings, scale_to


def settings_of(model: Model, size: Size | None, **given: Any) -> Settings:
    """The model's own, but for what was given; UsageError where it cannot render the size."""
    defaults = model.defaults_by(given.get("solver"))
    own = (defaults.width, defaults.height)
    if model.pocket is not None and size not in (None, own):
        raise UsageError(f"the pocket model renders only {own[0]}x{own[1]}", hint=f"leave {option('res')} out")
    check_guidance_low(model, given.get("guidance_low"))
    width, height = sizes.of_model(*(size or own), defaults.stride)
    sizes.check_model_size(width, height, defaults.stride)
    return at_size(model.checkpoint.kind, defaults, width, height).override(width=width, height=height, **given)


def find_images(image: Path | None, last: Path | None) -> Images:
    """The files of a first and a last image, and the first one's size; UsageError where one cannot be read."""
    paths = [path and files.expand(path) for path in (image, last)]
    found = [None if path is None else images.read(path, field) for path, field in zip(paths, _IMAGES, strict=True)]
    return paths[0], paths[1], None if found[0] is None else found[0].size


def size_with(image: Size | None, res: str | None, size: Size | None, model: Model) -> Size | None:
    """The size that was given, which without both its sides is an area for an image's proportions. image: its size;
    res: what the user wrote for `size`."""
    if image is None or model.pocket is not None or (res is not None and res.lower() not in sizes.NAMED):
        return size
    own = model.defaults
    return sizes.of_area(image, size or (own.width, own.height), own.stride)


def find_preset(wanted: str | None) -> Preset | None:
    """The preset that was named; None where there is none, or a grade, which depends on the model."""
    from fpsgen.presets import shipped

    return None if wanted is None or wanted in shipped.GRADES else shipped.find(wanted)


def fit_preset(wanted: str | None, named: Preset | None, model: Model, settings: Settings) -> Preset | None:
    """What a video is made with: `named`, or the preset of the grade `wanted`; None for the model's default. UsageError
    where it is for another model."""
    from fpsgen.presets import shipped

    if named is None and wanted is not None:
        named = shipped.of_grade(wanted, model.family, settings.width, settings.height)
    if named is not None:
        named.check_family(model.family)
    return named


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
        told = f"{model.name} has one transformer, no experts for high and low noise"
        raise UsageError(
            f"{option('guidance_low', guidance_low)}: {told}", hint=f"use {option('guidance', guidance_low)}"
        )
