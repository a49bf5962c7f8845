"""A video as the user asked for it (`Request`), and what follows from it and the model (`VideoPlan`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fpsgen import __version__, images, machine, solvers
from fpsgen.attention import door
from fpsgen.attention.door import Choice
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.quantize import LARGEST, Format
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import UsageError, option
from fpsgen.presets import BF16, Preset, file, shipped
from fpsgen.printable import absolute
from fpsgen.seeds import check_seed
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.wan import config
from fpsgen.wan.linear import choose
from fpsgen.wan.plan import StepPlan, distinct, mean_density
from fpsgen.weights.models import Model


@dataclass(frozen=True)
class Request:
    """One video. preset: None for the default, which depends on model and device. scale_to: the file's width and
    height, if they are not those that are rendered. may_replace: whether an existing file `output` is replaced;
    otherwise a number is added to the name. image, last_image: what the video begins and ends with, where the model
    takes images. asked: stands for what the user asked for, for whoever looks whether the video is there already."""

    prompt: str
    settings: Settings
    seed: int
    output: Path
    preset: Preset | None = BF16
    scale_to: tuple[int, int] | None = None
    may_replace: bool = True
    image: Path | None = None
    last_image: Path | None = None
    asked: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What the video depends on, for JSON: everything except the preset and the file."""
        told = {"prompt": self.prompt, **asdict(self.settings), "seed": self.seed, "scale_to": self.scale_to}
        told |= {"image": images.described(self.image), "last_image": images.described(self.last_image, "last_image")}
        return {_IN_FILES.get(name, name): value for name, value in told.items()}


_IN_FILES = {"sigmas": "grid"}  # what files have called it since the first


@dataclass(frozen=True)
class VideoPlan:
    """All that is decided before the first step. request: with its preset filled in; steps: the plan of each step."""

    request: Request
    model: Model
    target: Target
    steps: tuple[StepPlan, ...]

    @property
    def preset(self) -> Preset:
        assert self.request.preset is not None
        return self.request.preset

    @property
    def tiles(self) -> TileGrid:
        return self.steps[0].tiles

    @property
    def high_steps(self) -> int:
        """How many of the first steps the first transformer computes: all, where there is no other one."""
        return self.request.settings.high_steps if self.model.checkpoint.transformer_2 else len(self.steps)

    @cached_property
    def backends(self) -> dict[AttentionPlan, Choice]:
        """What runs each attention plan, and why nothing that is preferred does."""
        head_dim = self.model.config.head_dim
        return {plan: door.choose(self.target.device, plan, head_dim) for plan in distinct(self.steps)}

    @cached_property
    def kernels(self) -> dict[Format, Choice]:
        """What multiplies in 8-bit linear layers, by their formats."""
        config, linear = self.model.config, {own for step in self.steps for own in step.linear}
        kinds: list[Format] = [kind for kind in LARGEST if any(kind in (own.attention, own.ffn) for own in linear)]
        return {kind: choose(self.target.device, kind, config.dim, config.ffn_dim) for kind in kinds}

    @property
    def density(self) -> float:
        """The share of token pairs that are computed, mean over steps, guidance branches and layers."""
        return mean_density(self.steps, self.request.settings.branches)

    def noise(self, done: int = 0) -> torch.Tensor:
        """The noise on the device: what the video begins with, or what its solver adds after `done` steps. By nothing
        that holds a transformer, which makes room for another one while the trajectory goes on."""
        own, channels = self.request.settings, self.model.config.out_channels
        return solvers.noise(channels, own.latent_shape, self.request.seed, done).to(self.target.device)

    def about(self, weights: str) -> dict[str, Any]:
        """What is made, by what and with which settings: stored in the file, printed as JSON. weights: the
        transformer's fingerprint."""
        return {
            "asked": self.request.asked,
            **circumstances(self.model, self.target),
            "weights": weights,
            **self.request.as_dict(),
            "experts": {"high": self.high_steps, "low": len(self.steps) - self.high_steps}
            if self.model.checkpoint.transformer_2
            else None,
            "preset": file.as_dict(self.preset),
            "attention": {
                "tile": self.tiles.tile,
                "density": round(self.density, 6),
                "backends": sorted({choice.name for choice in self.backends.values()}),
            },
        }


def circumstances(model: Model, target: Target) -> dict[str, Any]:
    """By what a video is made, as its comment says it; of a model that has no name, where it is."""
    device = target.device
    return {
        "fpsgen": __version__,
        "versions": {name: machine.installed(name) for name in ("torch", "diffusers", "transformers")},
        "model": model.full_name,
        "model_path": absolute(model.place),
        "parts": {name: absolute(path) for name, path in asdict(model.parts).items()} if model.parts else None,
        "loras": [{**each.as_dict(), "path": absolute(each.file)} for each in model.checkpoint.loras],
        "threads": torch.get_num_threads() if device.type == "cpu" else None,  # a CPU's last bits depend on it
        **target.as_dict(),
    }


def resolve(request: Request, model: Model, target: Target) -> VideoPlan:
    """What `request` comes to: tiles, noise levels and a plan of each step.

    Without a preset it is the one that the model was trained with, or the `quality` grade where a kernel of ours runs
    it, else BF16. UsageError where the preset is for another model or another video's size, or settings are none of a
    video.
    """
    request.settings.check()
    check_seed(request.seed)
    check_images(request.image, request.last_image, model)
    if request.last_image is not None and request.settings.frames == 1:
        told = f"{option('last_image', request.last_image.name)}: a video of one frame has no other end"
        raise UsageError(told, hint=f"use more {option('frames')}")
    if request.preset is not None:
        return _with(request, request.preset, model, target)
    if model.own_preset:
        return _with(request, shipped.load(model.own_preset), model, target)
    own = request.settings
    ships = model.config.num_layers == config.SHAPES.get(model.family, model.config).num_layers  # not of another make
    if target.device.type == "cuda" and ships and shipped.has_grades(model.family):
        plan = _with(request, shipped.of_grade("quality", model.family, own.width, own.height), model, target)
        if all(plan.backends[each].name == "hopper" for each in plan.backends if not each.is_dense or each.is_8bit):
            return plan
    return _with(request, BF16, model, target)


def check_images(image: Path | None, last: Path | None, model: Model) -> None:
    """UsageError where a model does not take the images that are given, or lacks one."""
    config = model.config
    if image is not None and not config.may_have_image:
        told = f"{option('image', image.name)}: {model.full_name} makes videos of text alone"
        raise UsageError(told, hint=f"leave {option('image')} out, or use an image-to-video model such as i2v-480p")
    if last is not None and not config.may_have_last_image:
        told = f"{option('last_image', last.name)}: {model.full_name} takes no last image"
        raise UsageError(told, hint=f"leave {option('last_image')} out, or use flf2v or 2.2-i2v")
    if image is None and (config.condition_channels or last is not None):
        told = f"{model.full_name} begins a video with an image, and none is given"
        raise UsageError(told, hint=f"name it with {option('image')}")
    if last is None and config.image_positions is not None:
        told = f"{model.full_name} makes the frames between a first and a last image, and no last one is given"
        raise UsageError(told, hint=f"name it with {option('last_image')}, or use i2v-480p")


def _with(request: Request, preset: Preset, model: Model, target: Target) -> VideoPlan:
    return VideoPlan(replace(request, preset=preset), model, target, preset.steps(model, request.settings))
