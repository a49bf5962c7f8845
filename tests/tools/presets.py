"""Presets in files, and at random from a seed; `fpsgen presets` by name."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any, get_args

from typer.testing import CliRunner

from fpsgen.attention.plan import KeyTiles, Rest
from fpsgen.cli import app
from fpsgen.presets import DENSE_HEAD, Layers, Measured, Phase, Preset
from fpsgen.wan.plan import Compute, Guidance, LinearPrecision, Linears

MEASURED = """\
[measured]
weights = "0123456789abcdef"
size = "160x96"
frames = 25
steps = 20
shift = 3.0
guidance = 4.0
clips = 32
density = 0.5
cost = 0.4
error = 0.01
error_ci95 = 0.001
psnr = 31.5
psnr_ci95 = 0.5
psnr_worst = 20
device = "a CPU"
fpsgen = "0.1"
torch = "2.9"
"""

SMALL = """\
format = 1
model = "pocket"
about = "for a test"

[[phase]]
sigma = [1.0, 0.9]

[[phase]]
sigma = [0.9, 0.0]
window = [3, 3, 3]
qk = "int8"
pv = "fp8"
smooth_k = true

[[phase.layers]]
at = "0-1"
window = "dense"
"""

LAYERS, HEADS = 12, 6


def presets(*args: object) -> Any:
    return CliRunner().invoke(app, ["presets", *map(str, args)])


def key_tiles(rng: random.Random) -> Any:
    """A letter of [windows]."""
    window = tuple(rng.choice((1, 3, 5, 99)) for _ in range(3))
    share, rest = rng.choice((0.25, 1 / 3, 1.0, 1e-9)), rng.choice(get_args(Rest))
    return rng.choice((window, window, KeyTiles(window, rest="summary"), KeyTiles(top=share, rest=rest)))


def setting(rng: random.Random, windows: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Any] = {
        "dense": {},
        "window": {"window": tuple(rng.choice((1, 3, 5, 99)) for _ in range(3))},
        "density": {"density": rng.choice((0.1, 1 / 3, 1.0, 1e-9, rng.random()))},
        "top": {"top": rng.choice((0.1, 1 / 3, 1.0, 1e-9, rng.random()))},
    }
    for own in list(kinds.values())[1:]:
        own["rest"] = rng.choice(get_args(Rest))
    if windows:
        kinds["heads"] = {"heads": "".join(rng.choice((*windows, DENSE_HEAD)) for _ in range(HEADS))}
    precision = {"qk": rng.choice(("bf16", "fp8", "int8")), "pv": rng.choice(("bf16", "fp8"))}
    linear = Linears(*(rng.choice(get_args(LinearPrecision)) for _ in range(2)))
    return {**rng.choice(list(kinds.values())), **precision, "smooth_k": rng.random() < 0.7, "linear": linear}


def random_preset(seed: int) -> Preset:
    """Any preset that a file can hold, for `LAYERS` layers of `HEADS` heads."""
    rng = random.Random(seed)
    letters = rng.sample("abcdXYZ", rng.randrange(4))
    windows = {letter: key_tiles(rng) for letter in letters}
    levels = sorted({1.0, 0.0, *(round(rng.random(), rng.choice((1, 3, 15))) for _ in range(rng.randrange(5)))})
    levels = [level for i, level in enumerate(levels) if i == 0 or level - levels[i - 1] > 1e-5]
    levels = [*levels[:-1], 1.0] if len(levels) > 1 else [0.0, 1.0]
    phases = []
    for end, begin in pairwise(levels):
        left = list(range(LAYERS))
        rng.shuffle(left)
        own = []
        for _ in range(rng.randrange(4)):
            taken, left = left[:3], left[3:]
            at = tuple(sorted(taken[: rng.randrange(1, 4)]))
            own.append(Layers(at=at, **setting(rng, windows)))
        step: dict[str, Any] = {"guidance": rng.choice(get_args(Guidance)), "compute": rng.choice(get_args(Compute))}
        phases.append(Phase(sigma=(begin, end), layers=tuple(own), **step, **setting(rng, windows)))
    used = {letter for phase in phases for each in (phase, *phase.layers) for letter in each.heads}
    kinds = {
        "weights": "a1b2",
        "size": "832x480",
        "device": 'a "GPU" \\ 1',
        "fpsgen": "0.1",
        "torch": "2",
        "solver": "lightx2v",
    }
    numbers = {name: rng.random() for name in Measured.__annotations__ if name not in kinds}
    numbers |= {name: rng.randrange(100) for name in ("frames", "steps")} | {"clips": rng.choice((1, 2, 32))}
    if numbers["clips"] == 1:
        del numbers["error_ci95"], numbers["psnr_ci95"]
    return Preset(
        name="random",
        phases=tuple(reversed(phases)),
        tile=rng.choice((None, (2, 2, 2), (3, 5, 8))),
        model=rng.choice((None, "1.3b", "14b", "pocket")),
        about=rng.choice(("", 'says "so" \\ # [[phase]] = é', "format = 2")),
        windows={letter: window for letter, window in windows.items() if letter in used},
        measured=Measured(**kinds, **numbers) if rng.random() < 0.5 else None,
    )
