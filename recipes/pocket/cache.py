"""Render training clips and encode them once: the DiT trains on latents, not on pictures.

    python -m recipes.pocket.cache --vae build/pocket/vae.pt --out build/pocket/latents.pt --clips 4000

Held-out combinations never enter. Latents are normalised per channel; the mean and standard deviation go
with them, and later into the VAE's config.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.pocket import vae as pocket_vae
from recipes.pocket.prompts import combinations
from recipes.pocket.train_vae import as_tensors
from recipes.pocket.world import render

CACHE_SEED = 100_000
Encode = Callable[[Tensor], Tensor]


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


def encode_clips(encode: Encode, labels: list[tuple[str, str, str]], batch: int) -> tuple[Tensor, Tensor]:
    """Latents [clips, 16, ...] in float32 and latent masks, of the clip `render(*labels[i], CACHE_SEED + i)`."""
    latents, masks = [], []
    started = time.monotonic()
    for first in range(0, len(labels), batch):
        numbers = range(first, min(first + batch, len(labels)))
        video, mask = as_tensors([render(*labels[i], CACHE_SEED + i) for i in numbers])
        latents.append(encode(video))
        masks.append(latent_mask(mask))
        done = numbers[-1] + 1
        if done == len(labels) or first // batch % 50 == 10:
            print(f"{done} clips, {(time.monotonic() - started) / done * 1000:.0f} ms each", flush=True)
    return torch.cat(latents), torch.cat(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, default=Path("build/pocket/vae.pt"))
    parser.add_argument("--out", type=Path, default=Path("build/pocket/latents.pt"))
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()

    vae = load_vae(args.vae)
    forward = lambda video: pocket_vae.encode(vae, video)[0]  # noqa: E731
    if args.compile:
        forward = torch.compile(forward, dynamic=False)

    def encode(video: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(video).float()

    combos = combinations()
    labels = [combos[i % len(combos)] for i in range(args.clips)]
    with torch.no_grad(), pocket_vae.whole_clip():
        latents, masks = encode_clips(encode, labels, args.batch)
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
