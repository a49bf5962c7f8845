"""Render training clips and encode them once: the DiT trains on latents, not on pictures.

    python -m recipes.pocket.cache --vae build/pocket/vae.pt --out build/pocket/latents.pt --clips 3000

Held-out combinations never enter. Latents are normalised per channel; the mean and standard deviation go
with them, and later into the VAE's config.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen.pocket.words import Combination
from recipes.pocket import vae as pocket_vae
from recipes.pocket.prompts import combinations
from recipes.pocket.train_vae import as_tensors
from recipes.pocket.world import render

CACHE_SEED = 100_000


def load_vae(path: Path) -> torch.nn.Module:
    vae = pocket_vae.build()
    vae.load_state_dict(torch.load(path, weights_only=True)["model"])
    return vae.eval().requires_grad_(False)


def latent_mask(mask: Tensor) -> Tensor:
    """How much of each latent cell the sprite covers: uint8 [batch, 1, frames, height / 8, width / 8].

    mask: [batch, 1, frames, height, width] in 0..1. The first latent frame stands for one frame, every
    later one for four.
    """
    cells = F.avg_pool3d(mask, (1, 8, 8))
    later = F.avg_pool3d(cells[:, :, 1:], (4, 1, 1))
    return torch.cat([cells[:, :, :1], later], dim=2).mul(255).round().byte()


class Encoder:
    """Renders and encodes clip after clip in a process of its own, on one core: the quickest way on a CPU."""

    vae: torch.nn.Module

    @classmethod
    def start(cls, path: Path) -> None:
        torch.set_num_threads(1)
        cls.vae = load_vae(path)

    @classmethod
    def run(cls, number: int, label: Combination) -> tuple[np.ndarray, np.ndarray]:
        """Latents float32 [16, ...] and latent mask of `render(*label, CACHE_SEED + number)`."""
        video, mask = as_tensors([render(*label, CACHE_SEED + number)])
        with torch.no_grad(), pocket_vae.whole_clip(), torch.autocast("cpu", torch.bfloat16):
            latents = pocket_vae.encode(cls.vae, video)[0].float()
        return latents[0].numpy(), latent_mask(mask)[0].numpy()


def encode_clips(vae: Path, labels: list[Combination], workers: int) -> tuple[Tensor, Tensor]:
    """Latents [clips, 16, ...] and masks of all `labels`, in order."""
    latents, masks = [], []
    started = time.monotonic()
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, context, Encoder.start, (vae,)) as pool:
        for latent, mask in pool.map(Encoder.run, range(len(labels)), labels, chunksize=8):
            latents.append(torch.from_numpy(latent))
            masks.append(torch.from_numpy(mask))
            if len(latents) % 200 == 0 or len(latents) == len(labels):
                each = (time.monotonic() - started) / len(latents)
                print(f"{len(latents)} clips, {each * 1000:.0f} ms each", flush=True)
    return torch.stack(latents), torch.stack(masks)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, default=Path("build/pocket/vae.pt"))
    parser.add_argument("--out", type=Path, default=Path("build/pocket/latents.pt"))
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    return parser


def main() -> None:
    args = parser().parse_args()

    training = combinations()
    labels = [training[i % len(training)] for i in range(args.clips)]
    latents, masks = encode_clips(args.vae, labels, args.workers)
    mean = latents.mean((0, 2, 3, 4))
    std = latents.std((0, 2, 3, 4))
    print("latent std per channel:", " ".join(f"{value:.2f}" for value in std.tolist()))
    latents = (latents - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_suffix(".partial")
    torch.save({"latents": latents.bfloat16(), "masks": masks, "mean": mean, "std": std, "labels": labels}, partial)
    partial.replace(args.out)


if __name__ == "__main__":
    main()
