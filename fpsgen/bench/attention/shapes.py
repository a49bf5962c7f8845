"""What `fpsgen bench attention` runs: shapes of Wan2.1's self-attention, windows for a wanted density, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fpsgen.attention.emulator import VARIANTS
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Shape3, TileGrid, default_tile
from fpsgen.wan.config import FAMILIES, WAN_14B
from fpsgen.wan.sizes import DEFAULTS, check_model_size, parse_resolution

HEAD_DIM = WAN_14B.head_dim  # and of 1.3B
DENSITIES = ("1", "1/2", "1/4", "1/6", "1/10")


@dataclass(frozen=True)
class Shape:
    """One layer's self-attention, one batch entry."""

    model: str
    res: str
    tiles: TileGrid
    heads: int

    def __str__(self) -> str:
        return f"{self.model} {self.res}"

    @property
    def facts(self) -> dict[str, Any]:
        """For the record."""
        tiles = self.tiles
        return {
            "model": self.model,
            "res": self.res,
            "grid": tiles.grid,
            "tile": tiles.tile,
            "tokens": tiles.tokens,
            "tiles": len(tiles.valid),
            "heads": self.heads,
            "head_dim": HEAD_DIM,
        }


# Ragged along H, so that a card's first run meets short tiles, too.
SMOKE = Shape("smoke", "9x14x16", TileGrid((9, 14, 16), (3, 5, 8)), 3)


def shape(model: str, res: str) -> Shape:
    """For a model's default number of frames: the VAE makes 4 of one latent frame, but for the first. UsageError for a
    size that `--res` would not take."""
    width, height = parse_resolution(res)
    check_model_size(width, height)
    grid = FAMILIES[model].grid(((DEFAULTS[model].frames - 1) // 4 + 1, height // 8, width // 8))
    return Shape(model, res, TileGrid(grid, default_tile(grid)), FAMILIES[model].num_heads)


def chosen_windows(tiles: TileGrid, wanted: Iterable[str]) -> dict[str, Shape3 | None]:
    """The window that a preset has at each density, written as a fraction; one that two have goes to the first."""
    found: dict[str, Shape3 | None] = {}
    for text in wanted:
        window = tiles.window_of(float(Fraction(text)))
        if window not in found.values():
            found[text] = window
    return found


def plan_8bit(tiles: TileGrid, window: Shape3 | None, variant: str) -> AttentionPlan:
    """What a variant of the kernel runs."""
    return AttentionPlan(tiles, (window,), qk=VARIANTS[variant].qk, pv="fp8")


class Deadline:
    """A moment that work should end at. clock: seconds that only grow."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds; below 0 when it has passed."""
        return self.end - self.clock()

    def share(self, parts: int) -> Deadline:
        """The first of equal parts of what is left; what it does not use falls to the others."""
        return Deadline(self.left / parts, self.clock)


def rounds(
    one_round: Callable[[], None], repeats: int, least: int, total: Deadline, own: Deadline
) -> tuple[int, str | None]:
    """Run `one_round` up to `repeats` times: `least` times while `total` lasts, and on while `own` does. How many
    were run, and why no more. None is begun that would not end in time if it took as long as the longest so far."""
    longest = 0.0
    for done in range(repeats):
        if total.left <= longest:
            return done, "the budget of seconds was spent"
        if done >= least and own.left <= longest:
            return done, "this shape's share of the budget was spent"
        begin = total.clock()
        one_round()
        longest = max(longest, total.clock() - begin)
    return repeats, None
