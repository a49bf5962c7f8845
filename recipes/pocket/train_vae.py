"""Train the pocket VAE on the sprite world, one sitting at a time.

    python -m recipes.pocket.train_vae --until 3000 --batch 4 --frames 5 --height 48 --width 80
    python -m recipes.pocket.train_vae --since 3000 --until 7000 --batch 4 --frames 25 --height 48 --width 80 --lr 2e-3

A sitting has one batch shape, since each shape costs a compilation, and goes on from what --out holds.
Every step draws its clips and its noise from the seed and the step's number alone, so a sitting that was
interrupted and is called again sees what a whole one would. Loss: L1, squares, edges, a small KL; the sprite counts
more than the background, because it is a seventh of the picture and all of the story.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsgen.pocket.words import MOTIONS, SCENES, SUBJECTS
from fpsgen.train.optimizers import Optimizers, with_muon
from recipes.pocket import vae as pocket_vae
from recipes.pocket.world import HEIGHT, WIDTH, Clip, render

Coder = Callable[..., Any]

KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
LOG_VARIANCE_BIAS = -4.0  # start nearly deterministic; folded into quant_conv's bias when exported
VALIDATION_SEED, TRAINING_SEED = 0, 10_000


def random_clip(rng: random.Random, seed: int) -> Clip:
    return render(rng.choice(SUBJECTS), rng.choice(MOTIONS), rng.choice(SCENES), seed)


def as_tensors(clips: list[Clip]) -> tuple[Tensor, Tensor]:
    """Video [n, 3, frames, height, width] in -1..1 and mask [n, 1, ...] in 0..1, channels last in memory."""
    video = torch.from_numpy(np.stack([c.video for c in clips])).movedim(-1, 1).float().div(127.5).sub(1)
    mask = torch.from_numpy(np.stack([c.mask for c in clips]))[:, None].float().div(255)
    return video.contiguous(memory_format=torch.channels_last_3d), mask


def reconstruct(vae: torch.nn.Module, video: Tensor) -> Tensor:
    with torch.no_grad(), pocket_vae.whole_clip(), torch.autocast("cpu", torch.bfloat16):
        return pocket_vae.decode(vae, pocket_vae.encode(vae, video)[0]).float().clamp(-1, 1)


def psnr(vae: torch.nn.Module, clips: list[Clip]) -> tuple[float, float]:
    """Mean PSNR in dB over clips: whole frame, and sprite region alone."""
    whole, sprite = [], []
    for clip in clips:
        video, mask = as_tensors([clip])
        error = ((reconstruct(vae, video) - video) / 2).square().mean(1, keepdim=True)
        whole.append(-10 * math.log10(error.mean()))
        sprite.append(-10 * math.log10((error * mask).sum() / mask.sum()))
    return sum(whole) / len(whole), sum(sprite) / len(sprite)


def loss_of(
    encode: Coder, decode: Coder, video: Tensor, mask: Tensor, args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance = encode(video)
        mean, log_variance = mean.float(), (log_variance.float() + LOG_VARIANCE_BIAS).clamp(-20, 5)
        decoded = decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
    error = decoded.float() - video
    weight = 1 + args.sprite_weight * mask
    l1 = (error.abs() * weight).mean()
    squares = (error.square() * weight).mean()
    edges = ((error[..., 1:] - error[..., :-1]).abs() * weight[..., 1:]).mean()
    edges = edges + ((error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]).mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return l1 + args.square_weight * squares + EDGE_WEIGHT * edges + KL_WEIGHT * kl, l1


def window_of(clip: Clip, rng: random.Random, shape: tuple[int, int, int], on_sprite: float) -> list[int]:
    """First frame, row and column of an excerpt, rows and columns in eighths: the latent grid stays where it is."""
    last = [have - want for have, want in zip(clip.mask.shape, shape, strict=True)]
    starts = [rng.randrange(0, room + 1, step) for room, step in zip(last, (1, 8, 8), strict=True)]
    places = np.argwhere(clip.mask[starts[0] + rng.randrange(shape[0])] > 127)
    if rng.random() < on_sprite and len(places):
        for axis, place in enumerate(places[rng.randrange(len(places))], start=1):
            starts[axis] = min(max(int(place) - shape[axis] // 2, 0), last[axis]) // 8 * 8
    return starts


def batch_of(
    pool: list[Clip], rng: random.Random, batch: int, shape: tuple[int, int, int], on_sprite: float
) -> tuple[Tensor, Tensor]:
    """Random excerpts [frames, height, width]; time runs backwards now and then: a motion is not the VAE's business."""
    clips = []
    for _ in range(batch):
        clip = rng.choice(pool)
        starts = window_of(clip, rng, shape, on_sprite)
        window = tuple(slice(start, start + want) for start, want in zip(starts, shape, strict=True))
        video, mask = clip.video[window], clip.mask[window]
        if rng.random() < 0.3:
            video, mask = video[::-1], mask[::-1]
        clips.append(Clip(video.copy(), mask.copy()))
    return as_tensors(clips)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    vae = pocket_vae.build()
    optimizers = with_muon(
        vae.named_parameters(),
        lambda name, p: p.ndim >= 3 and min(p.shape[0], p[0].numel()) >= 8 and "quant" not in name,
        lr=args.lr, adam_lr=args.lr / 2, weight_decay=0.01,
    )  # fmt: skip
    first = 0
    if args.out.exists():
        saved = torch.load(args.out, weights_only=True)
        vae.load_state_dict(saved["model"])
        optimizers.load_state_dict(saved["optimizers"])
        first = saved["step"]
    if not args.since <= first < args.until:
        raise SystemExit(f"{args.out} stands at step {first}, outside this sitting")
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    pool = [random_clip(random.Random(f"pool {i}"), TRAINING_SEED + i) for i in range(args.pool)]
    validation = [random_clip(random.Random(f"validation {i}"), VALIDATION_SEED + i) for i in range(16)]
    # Fused element-wise passes make a step 1.6 times as fast, for 90 s of compiling.
    encode = torch.compile(lambda video: pocket_vae.encode(vae, video), dynamic=False)
    decode = torch.compile(lambda latents: pocket_vae.decode(vae, latents), dynamic=False)
    shape = (args.frames, args.height, args.width)
    reported, average = time.monotonic(), 0.0
    for step in range(first, args.until):
        rng = random.Random(f"{args.seed} {step}")
        torch.manual_seed(rng.getrandbits(63))
        video, mask = batch_of(pool, rng, args.batch, shape, args.on_sprite)
        with pocket_vae.whole_clip():
            loss, l1 = loss_of(encode, decode, video, mask, args)
            loss.backward()
        cosine = 0.5 + 0.5 * math.cos(math.pi * (step - args.since) / (args.until - args.since))
        decay = args.last_lr / args.lr
        optimizers.step(min(1.0, (step - args.since + 1) / 50) * (decay + (1 - decay) * cosine))
        average = 0.98 * average + 0.02 * l1.item() if average else l1.item()
        if step + 1 == args.until or time.monotonic() - reported > args.report * 60:
            reported = time.monotonic()
            whole, sprite = psnr(vae, validation)
            print(
                f"step {step + 1:6d} of {args.until}  L1 {average:.4f}  PSNR {whole:.2f}  sprite {sprite:.2f} dB",
                flush=True,
            )
            save(args.out, vae, optimizers, step + 1)


def save(path: Path, vae: torch.nn.Module, optimizers: Optimizers, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"model": vae.state_dict(), "optimizers": optimizers.state_dict(), "step": step}, partial)
    partial.replace(path)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/pocket/vae.pt"))
    parser.add_argument("--since", type=int, default=0, help="the step at which this sitting begins")
    parser.add_argument("--until", type=int, required=True, help="the step at which it ends")
    parser.add_argument("--batch", type=int, default=2, help="one clip is too uniform: training swings with it")
    parser.add_argument("--frames", type=int, default=9, help="4n + 1")
    parser.add_argument("--height", type=int, default=HEIGHT)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--last-lr", type=float, default=5e-3, help="at the end of the sitting, down a cosine")
    parser.add_argument("--sprite-weight", type=float, default=8.0, help="a sprite pixel counts 1 + this")
    parser.add_argument("--square-weight", type=float, default=3.0, help="of squared errors, beside absolute ones")
    parser.add_argument("--on-sprite", type=float, default=0.75, help="share of excerpts laid around the sprite")
    parser.add_argument("--pool", type=int, default=1200, help="clips rendered beforehand")
    parser.add_argument("--report", type=float, default=3, help="minutes between reports")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder-only", action="store_true", help="latents stay as they are")
    return parser


if __name__ == "__main__":
    train(parser().parse_args())
