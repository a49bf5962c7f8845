"""Whether attention at its true size is right: some rows of some heads, against exact attention and the emulator.

The emulator is far too slow for every row of a video. Rows are taken from tiles spread over the whole grid, heads from
the first to the last.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fpsgen.attention import reference
from fpsgen.attention.emulator import VARIANTS, emulate, errors
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.sums import Sums
from fpsgen.attention.tiles import TileGrid


def spread(count: int, many: int, turn: int = 0) -> Tensor:
    """int64, ascending: `many` of `count` numbers at equal distances, all where there are fewer; with turn 0 the first
    and the last are among them, and other turns move all of them on by that, round the end."""
    return ((torch.linspace(0, count - 1, min(many, count)).round().long() + turn) % count).sort()[0]


def sampled_rows(tiles: TileGrid, most_tiles: int = 8, rows_each: int = 32, turn: int = 0) -> Tensor:
    """int64, ascending: rows of tiles spread over the grid. An emulator's time goes with the tiles, not the rows."""
    chosen = spread(len(tiles.valid), most_tiles, turn)
    return torch.cat([int(tiles.offsets[tile]) + spread(int(tiles.valid[tile]), rows_each, turn) for tile in chosen])


class Oracles:
    """What rows of attention are, computed once for each plan. q, k: after norm and RoPE, float32, of the heads that
    are looked at; v: of those; rows: int64, on the CPU."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor):
        self.given, self.rows = (q, k, v.float()), rows
        self._kept: dict[tuple, Tensor] = {}

    def exact(self, plan: AttentionPlan, chosen: Tensor | None = None) -> Tensor:
        """Attention over the plan's keys, nothing rounded; float32 [batch, rows, heads, head_dim].

        chosen: the lists of a plan that chooses tiles by content, of the heads that are looked at, int64 [batch, heads,
        tiles, key tiles]. Each contender chooses by what it has of q and k, so that lists differ in tiles that fit
        almost equally well: then the results are far apart, and both right.
        """
        plan, rows = replace(plan, qk="bf16", pv="bf16"), self.rows.to(self.given[0].device)  # float32 stays float32
        if chosen is not None:
            return reference.attention(*self.given, plan, {0: chosen})[:, rows]
        if (plan,) not in self._kept:
            self._kept[plan,] = reference.attention(*self.given, plan)[:, rows]
        return self._kept[plan,]

    def emulated_errors(
        self, out: Tensor, plan: AttentionPlan, variant: str, chosen: Tensor | None = None
    ) -> dict[str, float]:
        """See `emulator.errors`; chosen: as in `exact`, always the same for a plan and a variant."""
        return errors(out, VARIANTS[variant], partial(self._emulated, plan, variant, chosen))

    def _emulated(self, plan: AttentionPlan, variant: str, chosen: Tensor | None, sums: Sums) -> Tensor:
        key = plan, variant, sums
        if key not in self._kept:
            self._kept[key] = emulate(
                *self.given, plan, VARIANTS[variant], sums=sums, rows=self.rows,
                chosen=None if chosen is None else {0: chosen},
            )  # fmt: skip
        return self._kept[key]
