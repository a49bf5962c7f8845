"""Small folders of training data, and `train prepare` in this process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typer.testing import CliRunner

from fpsgen.cli import app
from fpsgen.train import data
from fpsgen.train.data import DataIndex, Origin, Sample, Taught
from fpsgen.video import VideoWriter

SHAPE, WIDTH, LENGTH = (3, 8, 12), 24, 10  # of latents of 96x64 and 9 frames; of embeddings
INDEX = DataIndex(
    family="pocket", text_encoder="t", vae="v", size=(96, 64), frames=9, latent_shape=SHAPE, text_dim=WIDTH,
    text_length=LENGTH, negative="", made={"by": "hand"},
)  # fmt: skip


def sample(number: int, captions: int = 1, weighed: bool = False, levels: int = 0) -> Sample:
    """All of it random, but for the padding of its texts."""
    generator, rng = torch.Generator().manual_seed(number), random.Random(number)
    texts = [torch.zeros(LENGTH, WIDTH, dtype=torch.bfloat16) for _ in range(captions)]
    for text in texts:
        tokens = rng.randint(1, LENGTH)
        text[:tokens] = torch.randn(tokens, WIDTH, generator=generator).bfloat16()
    latents = torch.randn(16, *SHAPE, generator=generator)
    weight = torch.randint(256, SHAPE, generator=generator, dtype=torch.uint8) if weighed else None
    velocities = torch.randn(levels, 16, *SHAPE, generator=generator).bfloat16()
    taught = Taught(torch.rand(levels, generator=generator), torch.arange(levels), velocities) if levels else None
    return Sample(latents, texts, weight, taught)


def made(folder: Path, count: int, index: DataIndex = INDEX, **kinds: Any) -> list[Sample]:
    """Samples that are written into a folder by the function for recipes."""
    samples = [sample(number, **kinds) for number in range(count)]
    own = [(Origin(f"prompt {number}", number), one) for number, one in enumerate(samples)]
    data.write(folder, index, sample(999).texts[0], own)
    return samples


def prepare(*args: object) -> Any:
    return CliRunner().invoke(app, ["train", "prepare", *map(str, args)])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def film(path: Path, size: tuple[int, int] = (96, 64), frames: int = 20, red: float = 0.0, noisy: bool = False) -> Path:
    """A video of 16 frames a second that becomes brighter by 8 with each. red: the share of its width that is red, at
    the left and at the right."""
    width, height = size
    grey = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 8
    pixels = np.broadcast_to(grey, (frames, height, width, 3)).copy()
    if noisy:
        pixels ^= np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    edge = int(width * red)
    pixels[:, :, [*range(edge), *range(width - edge, width)]] = (255, 0, 0)
    with VideoWriter(path, size, 16) as writer:
        writer.write(pixels)
        writer.close()
    return path
