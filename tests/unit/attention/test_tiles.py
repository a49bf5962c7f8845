"""Tile order: a permutation that makes every tile contiguous."""

from __future__ import annotations

import pytest
import torch

from fpsgen.attention.tiles import TileGrid, default_tile

CASES = [
    ((21, 45, 80), (3, 5, 8)),
    ((21, 30, 52), (3, 10, 4)),
    ((7, 6, 10), (2, 2, 2)),
    ((5, 7, 3), (3, 5, 8)),
    ((1, 1, 1), (3, 5, 8)),
    ((4, 9, 5), (3, 2, 4)),
]


@pytest.mark.parametrize(("grid", "tile"), CASES, ids=str)
def test_tiles_are_contiguous_and_complete(grid: tuple, tile: tuple) -> None:
    tiles = TileGrid(grid, tile)
    assert torch.equal(tiles.inverse.sort().values, torch.arange(tiles.tokens))
    assert torch.equal(tiles.inverse[tiles.order], torch.arange(tiles.tokens))
    assert len(tiles.offsets) - 1 == tiles.counts[0] * tiles.counts[1] * tiles.counts[2]
    assert tiles.offsets[-1] == tiles.tokens
    t, h, w = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    for first, last in zip(tiles.offsets[:-1], tiles.offsets[1:], strict=True):
        members = tiles.inverse[first:last]
        assert last > first
        for axis, size in zip((t, h, w), tile, strict=True):
            assert len(set((axis[members] // size).tolist())) == 1  # all in one tile
        assert torch.equal(members, members.sort().values)  # raster order inside


def test_wan_sizes_have_exact_covers_of_120_tokens() -> None:
    exact = {(21, 45, 80): 630, (21, 30, 52): 273, (21, 80, 45): 630, (21, 52, 30): 273}
    for grid, count in exact.items():
        sizes = TileGrid(grid, default_tile(grid)).offsets.diff()
        assert len(sizes) == count
        assert (sizes == 120).all()


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TileGrid((0, 2, 2), (1, 1, 1))
