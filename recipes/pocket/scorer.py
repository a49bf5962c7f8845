"""Does a clip show what its prompt says? Two judges of different kinds, neither pretrained.

    python -m recipes.pocket.scorer --out fpsgen/_assets/judge/network.safetensors [--vae build/pocket/vae.pt]

`Network` is a small CNN with a head each for subject, motion and scene, trained on rendered clips (and the
VAE's reconstructions of some), with blur, noise and colour changes so strong that colour alone does not
decide. It ships, and lies in `fpsgen/pocket/judge.py`. `Templates` matches the sprites themselves, follows the
best match through time, and compares a few colours by linear discriminants; nothing in it is trained by
gradients. Both read uint8 clips [25, 96, 160, 3]. Run as a program, this trains the network and reports both
ceilings: the accuracy on rendered clips and, with --vae, on reconstructions, which no generated clip can be
expected to exceed.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fpsgen import assets
from fpsgen.pocket.judge import CLASSES, WEIGHTS, Network, as_input, load_network
from fpsgen.pocket.words import ASPECTS, MOTIONS, SCENES, SUBJECTS, Combination
from recipes.pocket.cache import load_vae
from recipes.pocket.prompts import combinations
from recipes.pocket.train_vae import as_tensors, reconstruct
from recipes.pocket.world import FACES_LEFT, FRAMES, HEIGHT, Clip, draw_sprite, render

SCORER_SEED, CEILING_SEED = 500_000, 600_000


# --- the network ------------------------------------------------------------------------------------


def save_network(network: Network, path: Path) -> None:
    """In half precision: half a megabyte, small enough to keep under version control."""
    state = {n: t.half() for n, t in network.state_dict().items() if t.is_floating_point()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


def disturb(clips: Tensor, rng: random.Random) -> Tensor:
    """Blur, noise, less colour, other colours: each clip alike in all its frames."""
    clips = clips.clone()
    for clip in clips:
        if rng.random() < 0.5:  # towards grey, often all the way
            clip.lerp_(clip.mean(1, keepdim=True), min(1.0, rng.uniform(0.2, 1.3)))
        if rng.random() < 0.5:
            gain = torch.tensor([rng.uniform(0.75, 1.25) for _ in range(3)]).view(3, 1, 1)
            clip.mul_(gain).add_(rng.uniform(-0.15, 0.15))
        if rng.random() < 0.5:
            size = rng.choice((3, 3, 5))
            clip.copy_(F.avg_pool2d(clip, size, 1, size // 2, count_include_pad=False))
        if rng.random() < 0.5:
            clip.add_(torch.randn_like(clip), alpha=rng.uniform(0, 0.2))
        if rng.random() < 0.3:  # low resolution, as a weak decoder's
            small = F.avg_pool2d(clip, 2)
            clip.copy_(F.interpolate(small, clip.shape[-2:], mode="bilinear"))
    return clips


def train(videos: list[np.ndarray], labels: list[Combination], steps: int, seed: int, batch: int = 24) -> Network:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    targets = torch.tensor(
        [[names.index(value) for names, value in zip(CLASSES, label, strict=True)] for label in labels]
    )
    network = Network().train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.02)
    average = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        picked = [rng.randrange(len(videos)) for _ in range(batch)]
        clips = disturb(as_input([videos[i] for i in picked]), rng).flatten(0, 1)
        clips = clips.contiguous(memory_format=torch.channels_last).unflatten(0, (batch, -1))
        logits = network(clips)
        loss = sum(F.cross_entropy(scores, targets[picked, aspect]) for aspect, scores in enumerate(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average = 0.95 * average + 0.05 * loss.item() if step else loss.item()
        if step % 50 == 49:
            print(f"step {step + 1}  loss {average:.3f}", flush=True)
    return network.eval()


# --- the templates ----------------------------------------------------------------------------------


class Templates:
    """Normalised cross-correlation with the sprites, at half resolution.

    Subject: linear discriminants over each sprite's best correlation, mean over five frames. Motion: the
    same over the slope and unrest of the best match's track, and over the colours at the bottom (a wave
    hides the ground). Scene: the same over median colours of a coarse grid.
    """

    SIZES = (0.47, 0.53, 0.58)  # of the height
    TILTS = (0.0, 0.2)
    LOOKS = (0, 6, 12, 18, 24)  # frames in which all subjects are tried
    STEPS = tuple(range(0, FRAMES, 2))  # frames in which the winner is followed

    def __init__(self, videos: list[np.ndarray], labels: list[Combination]):
        """Fit the discriminants on labelled clips; the templates need none."""
        subjects, motions, scenes = ([names.index(label[i]) for label in labels] for i, names in enumerate(CLASSES))
        self._subject = Discriminant(np.stack([self._subject_features(v) for v in videos]), subjects)
        tracks = [self._motion_features(v, label[0]) for v, label in zip(videos, labels, strict=True)]
        self._motion = Discriminant(np.stack(tracks), motions)
        self._scene = Discriminant(np.stack([_scene_features(v) for v in videos]), scenes)

    def classify(self, video: np.ndarray) -> Combination:
        subject = CLASSES[0][self._subject(self._subject_features(video))]
        motion = MOTIONS[self._motion(self._motion_features(video, subject))]
        return subject, motion, SCENES[self._scene(_scene_features(video))]

    def _subject_features(self, video: np.ndarray) -> np.ndarray:
        peaks = self._correlate(video, self.LOOKS, range(len(self._owners))).amax((2, 3))  # [frames, templates]
        owners = np.array(self._owners)
        return np.array([peaks[:, owners == name].amax(1).mean().item() for name in SUBJECTS])

    def _motion_features(self, video: np.ndarray, subject: str) -> np.ndarray:
        own = [i for i, owner in enumerate(self._owners) if owner == subject]
        maps = self._correlate(video, self.STEPS, own).amax(1)  # [frames, height, width]
        best = maps.flatten(1).argmax(1).numpy()
        y, x = np.divmod(best, maps.shape[2])
        t = np.arange(len(best)) - (len(best) - 1) / 2
        vx, vy = (t @ track / (t @ t) for track in (x, y))
        rest_x, rest_y = (np.abs(p - p.mean() - v * t).mean() for p, v in ((x, vx), (y, vy)))
        bottom = np.median(video[::4, int(HEIGHT * 0.9) :].reshape(-1, 3), axis=0) / 255
        foam = (video[::4, HEIGHT // 2 :].min(-1) > 215).mean()
        board = self._below(video, x, y)
        return np.array([vx, vy, min(rest_x, 4), min(rest_y, 4), y.mean() / 10, foam * 10, *bottom, *board])

    def _below(self, video: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Mean colour of a strip under the followed sprite: board and foam where it surfs."""
        strips = []
        for frame, column, row in zip(video[list(self.STEPS)], x * 2, y * 2, strict=True):
            top = min(int(row + HEIGHT * 0.22), HEIGHT - 12)
            left = min(max(int(column) - 12, 0), frame.shape[1] - 24)
            strips.append(frame[top : top + 12, left : left + 24].reshape(-1, 3).mean(0))
        return np.mean(strips, axis=0) / 255

    @cached_property
    def _bank(self) -> tuple[Tensor, Tensor, list[str]]:
        """Templates [n, 3, size, size] of zero mean and unit length over their mask, masks, and owners."""
        side = 2 * (int(HEIGHT * max(self.SIZES) * 0.6) // 2) + 2
        templates, masks, owners = [], [], []
        for subject in SUBJECTS:
            for mirrored in (False, True) if subject in FACES_LEFT else (False,):
                for size in self.SIZES:
                    for tilt in self.TILTS:
                        canvas = np.zeros((2 * side, 2 * side, 3), np.float32)
                        mask = np.zeros((2 * side, 2 * side), np.float32)
                        draw_sprite(canvas, mask, subject, side, side, HEIGHT * size, tilt, mirrored)
                        templates.append(canvas)
                        masks.append(mask)
                        owners.append(subject)
        mask = F.avg_pool2d(torch.from_numpy(np.stack(masks))[:, None], 2)
        drawn = F.avg_pool2d(torch.from_numpy(np.stack(templates)).movedim(-1, 1), 2)
        mean = drawn.sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
        centred = drawn - mean.view(-1, 1, 1, 1) * mask
        length = (centred.square() / mask.clamp_min(1e-3)).sum((1, 2, 3)).sqrt()
        return centred / length.view(-1, 1, 1, 1), mask, owners

    @property
    def _owners(self) -> list[str]:
        return self._bank[2]

    @torch.no_grad()
    def _correlate(self, video: np.ndarray, frames: Iterable[int], picked: Iterable[int]) -> Tensor:
        """Correlation maps [frames, picked, height / 2, width / 2] (and one row and column)."""
        picked = list(picked)
        bank, masks = self._bank[0][picked], self._bank[1][picked]
        picture = torch.from_numpy(video[list(frames)]).movedim(-1, 1).float() / 255
        picture = F.avg_pool2d(picture, 2)
        pad = bank.shape[-1] // 2
        hit = F.conv2d(picture, bank, padding=pad)
        total = F.conv2d(picture.sum(1, keepdim=True), masks, padding=pad)
        square = F.conv2d(picture.square().sum(1, keepdim=True), masks, padding=pad)
        count = 3 * masks.sum((1, 2, 3)).view(1, -1, 1, 1)
        spread = (square - total.square() / count).clamp_min(2e-3 * count)  # flat regions match nothing
        return hit / spread.sqrt()


def _scene_features(video: np.ndarray) -> np.ndarray:
    """Colours of a 6 x 8 grid, median over time, which removes whatever moves."""
    small = video[::2].reshape(-1, 6, HEIGHT // 6, 8, video.shape[2] // 8, 3)
    return np.median(small.mean((2, 4)), axis=0).ravel() / 255


class Discriminant:
    """Linear discriminant analysis, in closed form."""

    def __init__(self, features: np.ndarray, labels: list[int], ridge: float = 1e-3):
        labels = np.asarray(labels)
        means = np.stack([features[labels == k].mean(0) for k in range(labels.max() + 1)])
        covariance = np.cov((features - means[labels]).T) + ridge * np.eye(features.shape[1])
        self._weights = np.linalg.solve(covariance, means.T)
        self._bias = -0.5 * (means.T * self._weights).sum(0)

    def __call__(self, features: np.ndarray) -> int:
        return int((features @ self._weights + self._bias).argmax())


# --- ceilings ----------------------------------------------------------------------------------------


def accuracy(judge: Network | Templates, videos: list[np.ndarray], labels: list[Combination]) -> dict[str, float]:
    """Share of clips judged right: by aspect, and all three together."""
    right = np.array(
        [
            [a == b for a, b in zip(judge.classify(v), label, strict=True)]
            for v, label in zip(videos, labels, strict=True)
        ]
    )
    shares = {name: round(float(share), 3) for name, share in zip(ASPECTS, right.mean(0), strict=True)}
    return {**shares, "all": round(float(right.all(1).mean()), 3)}


def labelled(count: int, seed: int) -> tuple[list[Clip], list[Combination]]:
    """Rendered clips of all combinations in turn, held-out ones too: judges must not prefer what was trained."""
    every = combinations() + combinations(held_out=True)
    order = random.Random(seed).sample(every, len(every))
    labels = [order[i % len(order)] for i in range(count)]
    return [render(*label, seed + i) for i, label in enumerate(labels)], labels


def through_vae(vae: nn.Module, clips: list[Clip]) -> list[np.ndarray]:
    videos = []
    for clip in clips:
        decoded = reconstruct(vae, as_tensors([clip])[0])[0]
        videos.append(((decoded + 1) * 127.5).round().byte().movedim(0, -1).contiguous().numpy())
    return videos


def make_templates(count: int = 160) -> Templates:
    clips, labels = labelled(count, SCORER_SEED)
    return Templates([clip.video for clip in clips], labels)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=assets.folder("judge") / WEIGHTS)
    parser.add_argument("--vae", type=Path, help="mix in, and measure on, this VAE's reconstructions")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--clips", type=int, default=1600)
    parser.add_argument("--reconstructions", type=int, default=320, help="how many clips to reconstruct as well")
    parser.add_argument("--test", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate-only", action="store_true", help="ceilings of the network at --out")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    vae = load_vae(args.vae) if args.vae else None

    if args.evaluate_only:
        network = load_network(args.out)
    else:
        clips, labels = labelled(args.clips, SCORER_SEED)
        videos = [clip.video for clip in clips]
        if vae is not None:
            videos += through_vae(vae, clips[: args.reconstructions])
            labels += labels[: args.reconstructions]
        network = train(videos, labels, args.steps, args.seed)
        save_network(network, args.out)
        network = load_network(args.out)

    clips, labels = labelled(args.test, CEILING_SEED)
    judges = {"network": network, "templates": make_templates()}
    tests = {"rendered": [clip.video for clip in clips]}
    if vae is not None:
        tests["reconstructed"] = through_vae(vae, clips)
    for name, videos in tests.items():
        for kind, judge in judges.items():
            print(f"{name:13s} {kind:9s} {accuracy(judge, videos, labels)}", flush=True)


if __name__ == "__main__":
    main()
