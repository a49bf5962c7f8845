"""Does a clip of the pocket model show what its prompt says? A small network, trained by `recipes/pocket/scorer.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fpsgen import assets
from fpsgen.pocket.words import ASPECTS, MOTIONS, NOUNS, PLACES, SCENES, SUBJECTS, Combination, motion_phrases

CLASSES = (SUBJECTS, MOTIONS, SCENES)
SHAPE = (25, 96, 160)  # frames, height and width of the clips that it judges
WEIGHTS = "network.safetensors"  # in the folder `judge` of what ships
_EVERY = 3  # frames


def _halve(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Network(nn.Module):
    """Every third frame through a shared 2-D trunk; heads for appearance pool, the one for motion does not."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(_halve(3, 16, 5), _halve(16, 32), _halve(32, 64), _halve(64, 96))
        self.appearance = nn.Linear(2 * 96, len(SUBJECTS) + len(SCENES))
        self.squeeze = nn.Conv2d(96, 8, 1)
        frames, height, width = len(range(0, SHAPE[0], _EVERY)), SHAPE[1] // 16, SHAPE[2] // 16
        self.motion = nn.Sequential(
            nn.Linear(frames * 8 * height * width, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, len(MOTIONS))
        )

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of subject, motion, scene for [batch, 9, 3, 96, 160] in -1..1."""
        features = self.trunk(clips.flatten(0, 1))
        per_clip = features.unflatten(0, clips.shape[:2])
        pooled = torch.cat([per_clip.amax((3, 4)).mean(1), per_clip.mean((1, 3, 4))], dim=1)
        subject, scene = self.appearance(pooled).split([len(SUBJECTS), len(SCENES)], dim=1)
        tracks = F.relu(self.squeeze(features)).flatten(1).unflatten(0, clips.shape[:2]).flatten(1)
        return subject, self.motion(tracks), scene

    @torch.no_grad()
    def classify(self, video: np.ndarray) -> Combination:
        """What a clip shows, uint8 [25, 96, 160, 3]."""
        subject, motion, scene = (int(scores.argmax()) for scores in self(as_input([video])))
        return SUBJECTS[subject], MOTIONS[motion], SCENES[scene]


def as_input(videos: Sequence[np.ndarray]) -> Tensor:
    """What the network reads of uint8 clips [25, 96, 160, 3]: [batch, 9, 3, 96, 160] in -1..1."""
    picked = np.stack([video[::_EVERY] for video in videos])
    return torch.from_numpy(picked).movedim(-1, 2).float().div(127.5).sub(1)


def load_network(path: Path | None = None) -> Network:
    """With the weights that ship, or those of a file."""
    path = assets.folder("judge") / WEIGHTS if path is None else path
    network = Network()
    absent, unexpected = network.load_state_dict({n: t.float() for n, t in load_file(path).items()}, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in absent):
        raise ValueError(f"{path} is not this network's: {absent + unexpected}")
    return network.eval()


def adherence(videos: Iterable[np.ndarray], prompts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """For each aspect, how many clips show what their prompt says of it, of how many whose prompt says it.

    videos: uint8 [25, 96, 160, 3] each, of the pocket model.
    """
    network = load_network()
    return score([network.classify(video) for video in videos], prompts)


def score(seen: Iterable[Combination], prompts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """`adherence`, of what the network saw in the clips."""
    hits, asked = dict.fromkeys(ASPECTS, 0), dict.fromkeys(ASPECTS, 0)
    for shown, prompt in zip(seen, prompts, strict=True):
        wanted = named(prompt)
        for aspect, value in zip(ASPECTS, shown, strict=True):
            if aspect in wanted:
                asked[aspect] += 1
                hits[aspect] += value == wanted[aspect]
    return {aspect: (hits[aspect], asked[aspect]) for aspect in ASPECTS}


def named(prompt: str) -> dict[str, str]:
    """The subject, motion and scene that a prompt names, by aspect.

    What it leaves open is left out, and so is an aspect of which it names two, as "a cat and a dog" does.
    """
    words = re.findall(r"[a-z]+", prompt.lower())
    found = {}
    for aspect, phrases in _phrases().items():
        classes = {phrases[phrase] for phrase in _longest(words, phrases)}
        if len(classes) == 1:
            found[aspect] = classes.pop()
    return found


@cache
def _phrases() -> dict[str, dict[tuple[str, ...], str]]:
    """For each aspect, the words of every phrase, and what they name."""
    motions = {motion: [words for pair in motion_phrases(motion) for words in pair] for motion in MOTIONS}
    tables: Sequence[Mapping[str, Sequence[str]]] = (NOUNS, motions, PLACES)
    return {
        aspect: {tuple(phrase.split()): name for name, phrases in table.items() for phrase in phrases}
        for aspect, table in zip(ASPECTS, tables, strict=True)
    }


def _longest(words: Sequence[str], phrases: Mapping[tuple[str, ...], str]) -> Iterable[tuple[str, ...]]:
    """The phrases that stand in a sentence, from left to right, the longest where several begin."""
    longest, at = max(map(len, phrases)), 0
    while at < len(words):
        match = next((m for n in range(longest, 0, -1) if (m := tuple(words[at : at + n])) in phrases), None)
        if match:
            yield match
        at += len(match) if match else 1
