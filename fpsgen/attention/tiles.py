"""Token geometry: the (T, H, W) grid cut into 3-D tiles, and the order that makes each tile contiguous."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

import torch
from torch import Tensor

Shape3 = tuple[int, int, int]

# 120 tokens each, 3 latent frames deep. At 81 frames the first covers 1280x720 exactly, the second
# 832x480; the last two are their portrait twins.
_WAN_TILES: tuple[Shape3, ...] = ((3, 5, 8), (3, 10, 4), (3, 8, 5), (3, 4, 10))


def default_tile(grid: Shape3) -> Shape3:
    """The tile that pads `grid` least; the earlier of two that pad equally."""
    return min(_WAN_TILES, key=lambda tile: prod(ceil(g / t) * t for g, t in zip(grid, tile, strict=True)))


@dataclass(frozen=True)
class TileGrid:
    """A token grid cut into tiles, edge tiles ragged where the tile does not divide the grid.

    Tiles follow one another in raster order, and so do the tokens inside a tile; a tile is a contiguous
    run of rows.
    """

    grid: Shape3
    tile: Shape3

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or min(self.tile) < 1:
            raise ValueError(f"grid {self.grid} and tile {self.tile} must be at least 1 along every axis")

    @property
    def tokens(self) -> int:
        return prod(self.grid)

    @property
    def counts(self) -> Shape3:
        """Tiles along each axis."""
        t, h, w = (ceil(g / t) for g, t in zip(self.grid, self.tile, strict=True))
        return t, h, w

    @cached_property
    def inverse(self) -> Tensor:
        """int64 [tokens]: the raster token that stands in each row; `tokens[inverse]` is tile order."""
        axes = [torch.arange(g) for g in self.grid]
        along = [a // t for a, t in zip(axes, self.tile, strict=True)]
        inside = [a % t for a, t in zip(axes, self.tile, strict=True)]
        key = torch.zeros(self.grid, dtype=torch.int64)
        for parts, sizes in ((along, self.counts), (inside, self.tile)):
            for axis, (part, size) in enumerate(zip(parts, sizes, strict=True)):
                shape = [1, 1, 1]
                shape[axis] = -1
                key = key * size + part.view(shape)
        return key.flatten().argsort()

    @cached_property
    def order(self) -> Tensor:
        """int64 [tokens]: the row of each raster token; `rows[order]` is raster order again."""
        return self.inverse.argsort()

    @cached_property
    def offsets(self) -> Tensor:
        """int64 [tiles + 1]: tile i holds rows offsets[i] to offsets[i + 1]."""
        sizes = torch.ones(1, dtype=torch.int64)
        for g, t, n in zip(self.grid, self.tile, self.counts, strict=True):
            along = torch.full((n,), t)
            along[-1] = g - t * (n - 1)
            sizes = (sizes[:, None] * along).flatten()
        return torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
