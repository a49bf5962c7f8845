"""Images that videos begin or end with, seen by the image encoder and encoded by the VAE: what the transformer is given
of them, before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fpsgen import images, machine
from fpsgen.events import Event, Stage
from fpsgen.request import VideoPlan
from fpsgen.target import Target
from fpsgen.wan import conditions, vae
from fpsgen.wan.conditions import Conditions
from fpsgen.weights.load import load_image_encoder, load_vae
from fpsgen.weights.models import Model

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shown:
    """The images of a video, and its size and length: all that its conditions depend on."""

    image: Path
    last_image: Path | None
    width: int
    height: int
    length: int

    def frames(self) -> list[np.ndarray]:
        """The first image and perhaps the last one at the video's size; UsageError where one cannot be read."""
        found = [images.read(self.image)]
        if self.last_image is not None:
            found.append(images.read(self.last_image, "last_image"))
        return [images.fitted(image, self.width, self.height) for image in found]


def shown(plan: VideoPlan) -> Shown | None:
    """None for a video of text alone."""
    request, own = plan.request, plan.request.settings
    if request.image is None:
        return None
    return Shown(request.image, request.last_image, own.width, own.height, own.frames)


def look(
    given: Mapping[Shown, Sequence[np.ndarray]],
    model: Model,
    target: Target,
    timed: Callable[[str], AbstractContextManager[None]],
) -> Generator[Event, None, dict[Shown, Conditions]]:
    """What the transformer is given of images, on the CPU, the generator's return value; image encoder and VAE are gone
    afterwards. timed: what runs inside is part of a stage. Seeing counts as reading the texts."""
    states: dict[Shown, Tensor] = {}
    if model.config.image_dim is not None:
        yield Stage("load", "image encoder")
        with timed("load"):
            encoder = load_image_encoder(model.checkpoint, target.device)
        yield Stage("image")
        with timed("text"):
            states = {each: encoder.states(frames).cpu() for each, frames in given.items()}
        with timed("load"):
            del encoder
            machine.release()
    yield Stage("load", "VAE")
    with timed("load"):
        encoder_of_frames = load_vae(model.checkpoint, target.device)
    yield Stage("image")
    found = {}
    for each, frames in given.items():
        with timed("text"):
            if model.config.condition_channels:
                channels = conditions.beside(encoder_of_frames, frames, each.length)
                found[each] = Conditions(channels.to(_CPU), states.get(each))
            else:
                found[each] = Conditions(first=vae.encode(encoder_of_frames, frames[0][None]).to(_CPU))
    with timed("load"):
        del encoder_of_frames
        machine.release()
    return found
