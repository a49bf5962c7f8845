"""Train the pocket VAE on the sprite world.

    python -m recipes.pocket.train_vae --minutes 60 --out build/pocket/vae.pt

Runs are resumable: started again with the same --out, training goes on where it stopped (with --minutes
more). Loss: L1, edges, a small KL; the sprite counts more than the background, because it is a seventh
of the picture and all of the story.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipes.pocket import vae as pocket_vae
from recipes.pocket.muon import Optimizers
from recipes.pocket.world import HEIGHT, MOTIONS, SCENES, SUBJECTS, WIDTH, Clip, render

Coder = Callable[..., Any]

KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
SPRITE_WEIGHT = 3.0  # a sprite pixel counts 1 + this
LOG_VARIANCE_BIAS = -4.0  # start nearly deterministic; folded into quant_conv's bias when exported
VALIDATION_SEED, TRAINING_SEED = 0, 10_000


@dataclass(frozen=True)
class Stage:
    """What a batch is, up to a fraction of the run."""

    until: float
    batch: int
    frames: int
    height: int = HEIGHT
    width: int = WIDTH


# Many small, varied steps first. A batch of one clip is too uniform to start with: it swings with the scene.
STAGES = (Stage(0.40, 4, 5, 48, 80), Stage(0.85, 2, 9), Stage(1.0, 1, 17))


def random_clip(rng: random.Random, seed: int) -> Clip:
    return render(rng.choice(list(SUBJECTS)), rng.choice(MOTIONS), rng.choice(SCENES), seed)


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


def loss_of(encode: Coder, decode: Coder, video: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance = encode(video)
        mean, log_variance = mean.float(), (log_variance.float() + LOG_VARIANCE_BIAS).clamp(-20, 5)
        decoded = decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
    error = decoded.float() - video
    weight = 1 + SPRITE_WEIGHT * mask
    l1 = (error.abs() * weight).mean()
    edges = ((error[..., 1:] - error[..., :-1]).abs() * weight[..., 1:]).mean()
    edges = edges + ((error[..., 1:, :] - error[..., :-1, :]).abs() * weight[..., 1:, :]).mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return l1 + EDGE_WEIGHT * edges + KL_WEIGHT * kl, l1


def batch_of(pool: list[Clip], rng: random.Random, stage: Stage) -> tuple[Tensor, Tensor]:
    """Random excerpts; time runs backwards now and then, since a motion is none of the VAE's business."""
    clips = []
    for _ in range(stage.batch):
        clip = rng.choice(pool)
        t, y, x = (rng.randrange(0, have - want + 1, step) for have, want, step in zip(
            clip.mask.shape, (stage.frames, stage.height, stage.width), (1, 8, 8), strict=True))  # fmt: skip
        window = np.s_[t : t + stage.frames, y : y + stage.height, x : x + stage.width]
        video, mask = clip.video[window], clip.mask[window]
        if rng.random() < 0.3:
            video, mask = video[::-1], mask[::-1]
        clips.append(Clip(video.copy(), mask.copy()))
    return as_tensors(clips)


def train(args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    vae = pocket_vae.build()
    optimizers = Optimizers(
        vae, lambda name, p: p.ndim >= 3 and min(p.shape[0], p[0].numel()) >= 8 and "quant" not in name,
        lr=args.lr, adam_lr=args.lr / 2, weight_decay=0.01,
    )  # fmt: skip
    step = 0
    if args.out.exists():
        saved = torch.load(args.out, weights_only=True)
        vae.load_state_dict(saved["model"])
        optimizers.load_state_dict(saved["optimizers"])
        step = saved["step"]
        rng.seed(args.seed + step)
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    pool = [random_clip(rng, TRAINING_SEED + i) for i in range(args.pool)]
    validation = [random_clip(random.Random(i), VALIDATION_SEED + i) for i in range(16)]
    # Fused element-wise passes make a step 1.6 times as fast; each batch shape costs 90 s of compiling.
    encode = torch.compile(lambda video: pocket_vae.encode(vae, video), dynamic=False)
    decode = torch.compile(lambda latents: pocket_vae.decode(vae, latents), dynamic=False)
    started, reported, average = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - started) / 60 / args.minutes) < 1:
        stage = next(stage for stage in STAGES if done < stage.until)
        video, mask = batch_of(pool, rng, stage)
        with pocket_vae.whole_clip():
            loss, l1 = loss_of(encode, decode, video, mask)
            loss.backward()
        warm = min(1.0, (step + 1) / 50) if args.warmup else 1.0
        decay = 1.0 if done < args.hold else 0.5 + 0.5 * math.cos(math.pi * (done - args.hold) / (1 - args.hold))
        optimizers.step(warm * max(decay, args.floor))
        step += 1
        average = 0.98 * average + 0.02 * l1.item() if average else l1.item()
        if (minutes := int((time.monotonic() - started) / 60)) >= reported:
            reported = minutes + args.report
            whole, sprite = psnr(vae, validation)
            print(
                f"{minutes:4d} min  step {step:6d}  {stage.frames:2d} frames  L1 {average:.4f}  PSNR {whole:.2f}  sprite {sprite:.2f} dB",
                flush=True,
            )
            save(args.out, vae, optimizers, step)
    save(args.out, vae, optimizers, step)
    print("final: PSNR %.2f, sprite %.2f dB" % psnr(vae, validation))


def save(path: Path, vae: torch.nn.Module, optimizers: Optimizers, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save({"model": vae.state_dict(), "optimizers": optimizers.state_dict(), "step": step}, partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/pocket/vae.pt"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--floor", type=float, default=0.02, help="least learning-rate factor")
    parser.add_argument("--hold", type=float, default=0.3, help="fraction of the run at the full rate")
    parser.add_argument("--pool", type=int, default=1200, help="clips rendered beforehand")
    parser.add_argument("--report", type=int, default=3, help="minutes between reports")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warmup", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--decoder-only", action="store_true", help="latents stay as they are")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
