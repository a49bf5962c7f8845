"""How much memory a model takes at a video's size: its weights, and what each part computes with beside them.

One part is in memory at a time, so that the largest says what fits.
"""

from __future__ import annotations

from math import prod

import torch
from torch import nn

from fpsgen.settings import DEFAULTS
from fpsgen.target import Target
from fpsgen.wan import offload, sizes
from fpsgen.weights import load
from fpsgen.weights.layout import EXPERTS, VAE_2_2, Checkpoint

# While Wan2.1's VAE decodes one latent frame, for each pixel of the video: some thirteen float32 copies of 4 frames in
# its 96 last channels, of which about half are what it keeps for the next one. Counted on tensors without values.
VAE_BYTES_PER_PIXEL = 20_300
# The same of Wan2.2's of 48 channels, by diffusers: 256 last channels for each 2 x 2 pixels, and before them 512.
VAE_2_2_BYTES_PER_PIXEL = 21_600


def weights(checkpoint: Checkpoint, target: Target) -> dict[str, int]:
    """Bytes of each part's weights."""
    return {checkpoint.words(part): of_part(checkpoint, target, part) for part in checkpoint.parts}


def of_part(checkpoint: Checkpoint, target: Target, part: str) -> int:
    """The same of one part, which takes less time to count."""
    return sum(_sizes(checkpoint, target, part).values())


def streamed(checkpoint: Checkpoint, target: Target, part: str = "transformer") -> int:
    """Bytes of a part's weights that are on the device, where its blocks are there only while they compute: of a
    transformer, or of the text encoder."""
    every = _sizes(checkpoint, target, part)
    return sum(every.values()) - _elsewhere(every, checkpoint, part)


def _elsewhere(every: dict[str, int], checkpoint: Checkpoint, part: str) -> int:
    """Bytes of the blocks of a part that are not on the device then. every: of all its parameters."""
    name, layers = "blocks.", checkpoint.config.num_layers
    if part == "text_encoder":
        name, layers = "encoder.block.", checkpoint.text_config["num_layers"]
    blocks = sum(size for own, size in every.items() if own.startswith(name))
    return int((1 - min(offload.HELD / layers, 1.0)) * blocks)


def _sizes(checkpoint: Checkpoint, target: Target, part: str) -> dict[str, int]:
    """Bytes of a part's parameters, by their names."""
    dtypes = {
        "transformer": load.by_name(target.dtype),
        "transformer_2": load.by_name(target.dtype),
        "vae": lambda name: torch.float32,
        "image_encoder": lambda name: torch.float32,
        "text_encoder": lambda name: target.text_dtype,
    }

    model = load.EMPTY[part](checkpoint)
    stay = set() if checkpoint.loras else _in_8_bits(model, checkpoint, part)
    return {
        name: value.numel() * (1 if name in stay else dtypes[part](name).itemsize)
        for name, value in model.named_parameters()
    }


def _in_8_bits(model: nn.Module, checkpoint: Checkpoint, part: str) -> set[str]:
    """The parameters of a part that stay in 8 bits: what the files say, or what is known of a model without files."""
    if checkpoint.transformer:
        return load.in_8_bits(model, checkpoint, part)
    published = checkpoint.linears_in_8_bits and part in EXPERTS
    return {name for name in load.of_linears(model) if name.startswith("blocks.")} if published else set()


def decoding(checkpoint: Checkpoint, width: int, height: int) -> int:
    """Bytes that the VAE takes beside its weights, of whole frames."""
    of_48 = checkpoint.part("vae") is VAE_2_2
    return width * height * (VAE_2_2_BYTES_PER_PIXEL if of_48 else VAE_BYTES_PER_PIXEL)


def memory(checkpoint: Checkpoint, video: tuple[int, int, int], target: Target) -> tuple[dict[str, int], int]:
    """Bytes that each part takes at work: weights, and the activations of one guidance branch, of which the text
    encoder has next to nothing; and of the largest, where blocks come one by one: a VAE that does not fit decodes in
    tiles. video: width, height, frames."""
    width, height, frames = video
    stride = DEFAULTS[checkpoint.kind].stride
    tokens = prod(checkpoint.config.grid(sizes.latent_shape(frames, height, width, stride)))
    needed, in_blocks = dict[str, int](), list[int]()
    for part in checkpoint.parts:
        every, name = _sizes(checkpoint, target, part), checkpoint.words(part)
        needed[name] = sum(every.values())
        if part in EXPERTS:
            needed[name] += tokens * checkpoint.config.bytes_per_token(target.dtype.itemsize)
        if part in EXPERTS or part == "text_encoder":
            in_blocks.append(needed[name] - _elsewhere(every, checkpoint, part))
    needed["VAE"] += decoding(checkpoint, width, height)
    return needed, max(in_blocks)
