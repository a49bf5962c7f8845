"""What a head of a layer may do: the key tiles and precisions that a calibration chooses from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Literal, get_args

from fpsgen.attention.plan import AttentionPlan, KeyTiles, Rest, fit
from fpsgen.attention.tiles import TileGrid, outlives_inference
from fpsgen.presets import cost
from fpsgen.wan.plan import UNROUNDED, Linears

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["bf16", "int8", "fp8"]
# What a calibration may choose: by what attention sees and rounds, of linear layers, and how steps are obtained.
Choice = Literal["attention", "linear", "guidance", "compute"]
EVERYTHING: frozenset[Choice] = frozenset(get_args(Choice))

# Precisions of q and k; with 8 bits P and v are E4M3. The kernel's sparse attention is 8-bit: bf16 is dense alone.
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "fp8")
# Precisions of linear layers. INT8 errs a third to a half of what FP8 does (benchmarks/results/linears.md), and costs
# the same. Both parts in 8 bits are taken to err as the sum of each alone.
LINEAR_PROBES = (Linears(ffn="int8"), Linears(attention="int8"))
LINEARS = (UNROUNDED, *LINEAR_PROBES, Linears("int8", "int8"))
_MOST_LENGTHS = 4  # of windows along an axis
# Of all key tiles, each about a quarter more than the last.
_SHARES = (0.02, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.32, 0.4, 0.5, 0.63, 0.8)
# What sensitivities are measured with: INT8, and about what sparse heads come to have. A window of half of all tiles
# errs as much as schedules of the lowest costs, and elsewhere.
_PROBE = "int8", KeyTiles(top=0.2, rest="summary")


@dataclass(frozen=True)
class Candidates:
    """All windows of a few lengths along each axis, and `top` shares, each with and without a summary of the rest; all
    of them in every precision.

    tokens: how many the video counts as having, for the cost of the prologue.
    """

    tiles: TileGrid
    tokens: int

    @cached_property
    def choices(self) -> tuple[KeyTiles, ...]:
        """What a head may see, all different here; the last is all tiles: dense."""
        t, h, w = (_spread(lengths) for lengths in self.tiles.lengths)
        windows = [window for window in product(t, h, w) if window != self.tiles.counts]
        shares = {KeyTiles(top=share).count(self.tiles): share for share in _SHARES}  # the largest of each count
        tops = [share for count, share in shares.items() if count < math.prod(self.tiles.counts)]
        rests: tuple[Rest, ...] = get_args(Rest)
        return (
            *(KeyTiles(window, rest=rest) for rest in rests for window in windows),
            *(KeyTiles(top=share, rest=rest) for rest in rests for share in tops),
            KeyTiles(),
        )

    @cached_property
    @outlives_inference
    def costs(self) -> Tensor:
        """float64 [precisions, choices]; infinite for what cannot be had."""
        import torch

        plans = [[self.plan(p, [c]) for c in range(len(self.choices))] for p in range(len(PRECISIONS))]
        every = [[cost.of_plan(plan, self.tokens) for plan in row] for row in plans]
        every[0][:-1] = [math.inf] * (len(self.choices) - 1)
        return torch.tensor(every, dtype=torch.float64)

    @cached_property
    def densities(self) -> tuple[float, ...]:
        """By choice."""
        return tuple(self.plan(1, [choice]).density for choice in range(len(self.choices)))

    @property
    def probe(self) -> tuple[int, int]:
        """The precision and choice that sensitivities are measured with."""
        precision, seen = _PROBE
        wanted = seen.count(self.tiles)
        alike = [c for c, own in enumerate(self.choices) if own.top and own.rest == seen.rest]
        nearest = min(alike, key=lambda c: abs(self.choices[c].count(self.tiles) - wanted), default=None)
        return PRECISIONS.index(precision), len(self.choices) - 1 if nearest is None else nearest

    def probe_plan(self, heads: int) -> AttentionPlan:
        """The plan of a layer that has the probe in all its heads."""
        precision, choice = self.probe
        return self.plan(precision, [choice] * heads)

    def plan(self, precision: int, choices: Sequence[int]) -> AttentionPlan:
        """The plan of a layer; choices: by number, one for each head."""
        each = [fit(self.choices[choice], self.tiles) for choice in choices]
        distinct = tuple(dict.fromkeys(each))
        heads = tuple(distinct.index(seen) for seen in each) if len(distinct) > 1 else ()
        qk = PRECISIONS[precision]
        return AttentionPlan(self.tiles, distinct, heads, qk, "bf16" if qk == "bf16" else "fp8")


def _spread(lengths: tuple[int, ...]) -> tuple[int, ...]:
    if len(lengths) <= _MOST_LENGTHS:
        return lengths
    step = (len(lengths) - 1) / (_MOST_LENGTHS - 1)
    return tuple(lengths[round(i * step)] for i in range(_MOST_LENGTHS))
