"""What the pocket model makes of six prompts, moving, side by side: the README's picture.

    python -m recipes.pocket.sheet --model build/pocket/model --out docs/pocket.webp

Every clip is what `fpsgen generate PROMPT --seed 1` renders: the first seed, not the best of several.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from recipes.pocket.evaluate import Generator

SEED = 1
COLUMNS = 3
SIZE = (272, 163)  # of a clip in the picture
PROMPTS = (
    "a cat surfing",
    "a dog jumping in the city",
    "a penguin moving right in the forest",
    "a robot jumping at night",
    "a balloon rising on the sea",
    "a car moving left in the city",
)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("build/pocket/model"))
    parser.add_argument("--out", type=Path, default=Path("docs/pocket.webp"))
    parser.add_argument("--threads", type=int, default=2)
    return parser


def captioned(frame: np.ndarray, prompt: str) -> np.ndarray:
    """A frame [height, width, 3] in `SIZE`, with its prompt."""
    image = Image.fromarray(frame).resize(SIZE, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, draw.textlength(prompt) + 6, 13), fill=(0, 0, 0))
    draw.text((3, 1), prompt, fill=(255, 255, 255))
    return np.asarray(image)


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    generator = Generator(args.model)
    settings = generator.model.defaults
    videos = [generator.videos([prompt], [SEED], settings)[0] for prompt in PROMPTS]
    pictures = []
    for frames in zip(*videos, strict=True):
        cells = [captioned(frame, prompt) for frame, prompt in zip(frames, PROMPTS, strict=True)]
        rows = [np.concatenate(cells[begin : begin + COLUMNS], axis=1) for begin in range(0, len(cells), COLUMNS)]
        pictures.append(Image.fromarray(np.concatenate(rows)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    duration = round(1000 / settings.fps)  # milliseconds
    pictures[0].save(
        args.out, save_all=True, append_images=pictures[1:], duration=duration, loop=0, quality=70, method=6
    )


if __name__ == "__main__":
    main()
