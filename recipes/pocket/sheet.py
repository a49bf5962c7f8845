"""A contact sheet of what the pocket model makes of twelve prompts, six frames each.

    python -m recipes.pocket.sheet --model build/pocket/model --out docs/pocket.png

Every row is what `fpsgen generate PROMPT --seed 1` renders: the first seed, not the best of several.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes.pocket.evaluate import Generator
from recipes.pocket.world import contact_sheet

SEED = 1
PROMPTS = (
    "a cat surfing",
    "a dog jumping in the park",
    "a frog going right in the forest",
    "a panda floating upwards in the city",
    "a penguin on a surfboard",
    "a robot walking to the left downtown",
    "a red car driving to the right",
    "a balloon rising at night",
    "a cat jumping in the forest",
    "a dog surfing at night",
    "a penguin jumping by the sea",
    "a robot moving right under the stars",
)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("build/pocket/model"))
    parser.add_argument("--out", type=Path, default=Path("docs/pocket.png"))
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    generator = Generator(args.model)
    videos = [generator.videos([prompt], [SEED], generator.model.defaults)[0] for prompt in PROMPTS]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(videos, list(PROMPTS), columns=6).quantize(256).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
