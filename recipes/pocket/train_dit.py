"""Train the pocket DiT and its text encoder on cached latents, by rectified flow, one sitting at a time.

    python -m recipes.pocket.train_dit --until 1800 --frames 4
    python -m recipes.pocket.train_dit --since 1800 --until 6000 --batch 12

x = (1 - s) x0 + s noise; the model predicts noise - x0 at timestep 1000 s, as Wan2.1 does. A sitting has one
batch shape and one plan of the learning rate, and goes on from what --out holds. The first one can run on the
beginnings of the clips, which are clips themselves (see `world.py`) and cost half as much. Every step draws
its clips, captions and noise from the seed and the step's number alone, so an interrupted sitting that is
called again sees what a whole one would.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from fpsgen.train.optimizers import Optimizers, with_muon
from fpsgen.wan.config import WanConfig
from fpsgen.wan.transformer import WanTransformer
from recipes.pocket import text_encoder, tokenizer
from recipes.pocket.prompts import caption

CONFIG = WanConfig(dim=384, num_heads=3, num_layers=6, ffn_dim=256, text_dim=text_encoder.TEXT_DIM)
EMPTY_PROMPTS = 0.1  # so that guidance has something to guide away from
SHIFT = 2.5  # of the training noise levels, towards noise
EMA_DECAY = 0.998


class Pocket(nn.Module):
    """What is trained together: prompt in, velocity out."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = tokenizer.build()
        self.text_encoder = text_encoder.build(self.tokenizer)
        self.transformer = WanTransformer(CONFIG)
        self.transformer.apply(_initialise)
        nn.init.zeros_(self.transformer.head.head.weight)

    def forward(self, latents: Tensor, timestep: Tensor, prompts: list[str]) -> Tensor:
        text = text_encoder.encode(self.text_encoder, self.tokenizer, prompts)
        return self.transformer(latents, timestep, self.transformer.embed_text(text))


def _initialise(module: nn.Module) -> None:
    """As the original's `init_weights`, in the main."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def is_hidden(name: str, parameter: Tensor) -> bool:
    """The matrices that Muon takes: those inside blocks, of the DiT and of the text encoder."""
    return parameter.ndim == 2 and ".block" in name and "relative_attention_bias" not in name


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Logit-normal noise levels in 0..1, shifted towards noise."""
    s = torch.randn(count, generator=generator).sigmoid()
    return SHIFT * s / (1 + (SHIFT - 1) * s)


def batch_of(count: int, size: int, seed: int, step: int) -> list[int]:
    """The clips of a step: every clip once per round, in an order that changes from round to round."""
    per_round = count // size
    order = random.Random(f"{seed} round {step // per_round}").sample(range(count), count)
    first = step % per_round * size
    return order[first : first + size]


def loss_of(velocity: Tensor, target: Tensor, mask: Tensor, mask_weight: float) -> Tensor:
    weight = 1 + mask_weight * mask
    return ((velocity.float() - target).square() * weight).mean() / weight.mean()


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Exponential average of the weights, short at first."""
    decay = min(EMA_DECAY, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data = torch.load(args.latents, weights_only=True)
    latents, masks, labels = data["latents"], data["masks"], data["labels"]

    model = Pocket()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = with_muon(model.named_parameters(), is_hidden, lr=args.lr, adam_lr=args.lr / 2, weight_decay=0.02)
    first = 0
    if args.out.exists():
        saved = torch.load(args.out, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizers.load_state_dict(saved["optimizers"])
        first = saved["step"]
    if not args.since <= first < args.until:
        raise SystemExit(f"{args.out} stands at step {first}, outside this sitting")
    weights = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    print(f"{len(labels)} clips, weights {weights}, from step {first}", flush=True)
    # Fused element-wise passes take a fifth off a step, for 80 s of compiling.
    model.transformer.compile(dynamic=False)

    reported = time.monotonic()
    losses: list[float] = []
    for step in range(first, args.until):
        rng = random.Random(f"{args.seed} {step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        picked = batch_of(len(labels), args.batch, args.seed, step)
        clean, mask = latents[picked, :, : args.frames].float(), masks[picked, :, : args.frames].float() / 255
        captions = ["" if rng.random() < EMPTY_PROMPTS else caption(*labels[i], rng) for i in picked]
        level = noise_levels(len(picked), generator)
        noise = torch.randn(clean.shape, generator=generator)
        s = level.view(-1, 1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model((1 - s) * clean + s * noise, 1000 * level, captions)
        loss = loss_of(velocity, noise - clean, mask, args.mask_weight)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(rate(step, args))
        update_average(average, model, step)
        losses.append(loss.item())
        if step + 1 == args.until or time.monotonic() - reported > args.report * 60:
            each = (time.monotonic() - reported) / len(losses)
            print(
                f"step {step + 1:6d} of {args.until}  loss {sum(losses) / len(losses):.4f}  {each:.3f} s/step",
                flush=True,
            )
            save(args.out, model, average, optimizers, step + 1)
            reported, losses = time.monotonic(), []


def rate(step: int, args: argparse.Namespace) -> float:
    """Learning-rate factor: a warm-up, hold, then a cosine down to the floor."""
    warm = min(1.0, (step - args.since + 1) / 50)
    done = (step - args.since) / (args.until - args.since)
    cosine = 0.5 + 0.5 * math.cos(math.pi * max(0.0, (done - args.hold) / (1 - args.hold)))
    return warm * (args.floor + (1 - args.floor) * cosine)


def save(path: Path, model: nn.Module, average: nn.Module, optimizers: Optimizers, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": optimizers.state_dict(),
        "step": step,
    }
    torch.save(state, partial)
    partial.replace(path)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=Path, default=Path("build/pocket/latents.pt"))
    parser.add_argument("--out", type=Path, default=Path("build/pocket/dit.pt"))
    parser.add_argument("--since", type=int, default=0, help="the step at which this sitting begins")
    parser.add_argument("--until", type=int, required=True, help="the step at which it ends")
    parser.add_argument("--frames", type=int, default=7, help="latent frames: 4 are 13 of the clip, 7 all 25")
    parser.add_argument("--hold", type=float, default=0.5, help="fraction of the sitting at the full rate")
    parser.add_argument("--floor", type=float, default=0.02, help="least learning-rate factor")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3, help="Muon's; AdamW has half of it")
    parser.add_argument("--mask-weight", type=float, default=1.0, help="a sprite cell counts 1 + this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=float, default=2, help="minutes between reports, each with a checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    train(parser().parse_args())
