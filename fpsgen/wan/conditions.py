"""What a transformer is given of the images that a video begins or ends with, beside the noisy latents and the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from fpsgen.wan import vae as wan_vae
from fpsgen.wan.config import WanConfig
from fpsgen.wan.sizes import TEMPORAL

_POSITIONS = 257  # of one image in CLIP's ViT-H


@dataclass(frozen=True)
class Conditions:
    """channels: float32 [1, condition_channels, T, h, w], beside the noisy latents; states: an image encoder's, float32
    [1, positions, width]; first: the first latent frame, float32 [1, channels, 1, h, w], which stays as it is at
    timestep 0 (Wan2.2 `wan/textimage2video.py`). None where the transformer takes none."""

    channels: Tensor | None = None
    states: Tensor | None = None
    first: Tensor | None = None

    def to(self, device: torch.device) -> Conditions:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return Conditions(**{name: None if value is None else value.to(device) for name, value in own.items()})


def blank(config: WanConfig, latent_shape: tuple[int, int, int]) -> Conditions | None:
    """Of the shapes that a model from images wants, without content: time does not depend on what an image shows."""
    if not config.condition_channels:
        return None
    states = None
    if config.image_dim is not None:
        states = torch.zeros(1, config.image_positions or _POSITIONS, config.image_dim)
    return Conditions(torch.zeros(1, config.condition_channels, *latent_shape), states)


def beside(vae: wan_vae.VAE, images: Sequence[np.ndarray], frames: int) -> Tensor:
    """What `Conditions` has as channels, for a video's first image and perhaps its last one, uint8 [height, width, 3].

    4 channels say which frames are given, of the latent frame's four; 16 are the latents of a clip whose other frames
    are grey, 0 in [-1, 1] (Wan2.1 `wan/image2video.py`, `wan/first_last_frame2video.py`).
    """
    latents = wan_vae.encode_pieces(vae, clip(images, frames, vae.device))
    _, _, count, height, width = latents.shape
    given = torch.zeros(TEMPORAL * count, device=vae.device)
    given[:TEMPORAL] = 1  # the first latent frame is of one frame
    if len(images) > 1:
        given[-1] = 1
    mask = given.view(1, count, TEMPORAL, 1, 1).transpose(1, 2).expand(-1, -1, -1, height, width)
    return torch.cat([mask, latents], dim=1)


def clip(images: Sequence[np.ndarray], frames: int, device: torch.device) -> Iterator[Tensor]:
    """A clip that begins with the first image and ends with the second one, if there are two, grey between: in pieces
    of 1 frame, then 4, [1, 3, frames, height, width] in [-1, 1]."""
    first, *last = (wan_vae.from_uint8(torch.from_numpy(image[None]).to(device)) for image in images)
    yield first
    for end in range(1 + TEMPORAL, frames + 1, TEMPORAL):
        piece = first.new_zeros(*first.shape[:2], TEMPORAL, *first.shape[3:])
        if last and end == frames:
            piece[:, :, -1:] = last[0]
        yield piece
