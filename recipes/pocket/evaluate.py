"""Measure how often the pocket model draws what its prompt says, against the ceilings of both judges.

    python -m recipes.pocket.evaluate --model build/pocket/model --out build/pocket/evaluation

Half of the clips are held-out combinations, half trained ones; seeds and sentences are new to both. Writes
evaluation.json and evaluation.md, and a contact sheet of the first clips.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from fpsgen import sampling
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.checkpoint import load_transformer
from fpsgen.wan.hub import Model, open_folder
from fpsgen.wan.text_encoder import TextEncoder
from recipes.pocket import vae as pocket_vae
from recipes.pocket.prompts import Combination, caption, combinations, plain
from recipes.pocket.scorer import (
    ASPECTS,
    CEILING_SEED,
    WEIGHTS,
    accuracy,
    labelled,
    load_network,
    make_templates,
    through_vae,
)
from recipes.pocket.world import contact_sheet

PROMPT_SEED, NOISE_SEED = 700_000, 800_000


class Generator:
    """The product's parts, in batches: the same text encoder, transformer, solver, guidance and noise as
    `fpsgen.pipeline`, which makes one clip at a time and loads its parts anew for each."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        self.model: Model = open_folder(folder, "pocket")
        cpu = torch.device("cpu")
        self.encoder = TextEncoder(folder, cpu, dtype)
        self.transformer = load_transformer(folder / "transformer", cpu, dtype)
        self.vae: AutoencoderKLWan = wan_vae.load_vae(folder, cpu)

    @torch.no_grad()
    def latents(self, prompts: list[str], seeds: list[int], steps: int, guidance: float, shift: float) -> Tensor:
        defaults = self.model.defaults
        shape = wan_vae.latent_shape(defaults.frames, defaults.height, defaults.width)
        texts = [self.encoder.encode(prompt, drop_unknown=True).text for prompt in prompts]
        empty = self.encoder.encode(defaults.negative, drop_unknown=True).text
        context = self.transformer.embed_text(torch.cat([*texts, empty.expand(len(texts), -1, -1)]))
        latents = torch.cat([sampling.noise(self.transformer.config.in_channels, shape, seed) for seed in seeds])
        solver = sampling.Solver(steps, shift)
        for index, timestep in enumerate(solver.timesteps):
            doubled = torch.cat([latents, latents])
            velocity = self.transformer(doubled, timestep.expand(len(doubled)), context)
            latents = solver.step(sampling.guide(*velocity.chunk(2), guidance), index, latents)
        return latents

    @torch.no_grad()
    def videos(self, latents: Tensor) -> list[np.ndarray]:
        with pocket_vae.whole_clip(), torch.autocast("cpu", torch.bfloat16):
            decoded = pocket_vae.decode(self.vae, wan_vae.denormalise(self.vae, latents)).clamp(-1, 1)
        return [wan_vae.to_uint8(video[None]) for video in decoded]


def draw(
    generator: Generator, prompts: list[str], batch: int, steps: int, guidance: float, shift: float
) -> Iterator[np.ndarray]:
    """One clip per prompt, its seed counted from NOISE_SEED."""
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch]
        seeds = [NOISE_SEED + first + i for i in range(len(some))]
        yield from generator.videos(generator.latents(some, seeds, steps, guidance, shift))


def prompts_for(count: int, paraphrase: bool) -> tuple[list[str], list[Combination], list[bool]]:
    """Held-out and trained combinations by turns; which are held out is told last."""
    rng = random.Random(PROMPT_SEED)
    pools = [combinations(held_out=True), combinations()]
    orders = [rng.sample(pool, len(pool)) for pool in pools]
    labels = [orders[i % 2][i // 2 % len(orders[i % 2])] for i in range(count)]
    sentences = [caption(*label, rng) if paraphrase else plain(*label) for label in labels]
    return sentences, labels, [i % 2 == 0 for i in range(count)]


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: one row per set of clips and judge."""
    lines = [f"| clips | judge | {' | '.join((*ASPECTS, 'all'))} |", "| --- " * 6 + "|"]
    for clips, judges in results.items():
        for judge, shares in judges.items():
            lines.append(f"| {clips} | {judge} | {' | '.join(f'{shares[a]:.3f}' for a in (*ASPECTS, 'all'))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("build/pocket/model"))
    parser.add_argument("--out", type=Path, default=Path("build/pocket/evaluation"))
    parser.add_argument("--scorer", type=Path, default=WEIGHTS)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--ceiling", type=int, default=160, help="clips to measure the judges on")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="plain sentences instead of random ones")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--shift", type=float)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    generator = Generator(args.model)
    defaults = generator.model.defaults
    settings = {
        key: getattr(defaults, key) if getattr(args, key) is None else getattr(args, key)
        for key in ("steps", "guidance", "shift")
    }
    sentences, labels, held_out = prompts_for(args.clips, not args.plain)
    started = time.monotonic()
    videos = []
    for video in draw(generator, sentences, args.batch, **settings):
        videos.append(video)
        if len(videos) % 40 == 0:
            print(f"{len(videos)} clips, {(time.monotonic() - started) / len(videos):.1f} s each", flush=True)

    judges = {"network": load_network(args.scorer), "templates": make_templates()}
    sets = {
        name: ([v for v, h in zip(videos, held_out, strict=True) if h == wanted],
               [label for label, h in zip(labels, held_out, strict=True) if h == wanted])
        for name, wanted in (("held-out combinations", True), ("trained combinations", False))
    }  # fmt: skip
    if args.ceiling:
        clips, truth = labelled(args.ceiling, CEILING_SEED)
        sets["rendered (ceiling)"] = [clip.video for clip in clips], truth
        sets["through the VAE (ceiling)"] = through_vae(generator.vae, clips), truth
    results = {
        name: {kind: accuracy(judge, *of) for kind, judge in judges.items()} for name, of in sets.items() if of[0]
    }
    args.out.mkdir(parents=True, exist_ok=True)
    card = generator.model.pocket or {}
    record = {
        "version": card.get("version"),
        "sha256": card.get("sha256"),
        "clips": args.clips,
        **settings,
        "results": results,
    }
    (args.out / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.out / "evaluation.md").write_text(table(results))
    contact_sheet(videos[:16], sentences[:16]).save(args.out / "clips.png")
    print(table(results), end="")


if __name__ == "__main__":
    main()
