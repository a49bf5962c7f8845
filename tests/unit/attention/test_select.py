"""The choice of key tiles by content, against a sort by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from fpsgen.attention import select
from fpsgen.attention.plan import KeyTiles
from fpsgen.attention.tiles import TileGrid

CASES = 1000
# A multiple of the number of tokens of any tile of up to 3 x 3 x 3: means of such integers are integers, and so exact.
WHOLE = 216


def drawn(rng: random.Random) -> TileGrid:
    """Landscape, portrait, ragged, one tile, one row."""
    grid = tuple(rng.randint(1, most) for most in rng.choice(((4, 5, 7), (4, 7, 5), (1, 1, 9), (3, 3, 3))))
    return TileGrid(grid, tuple(rng.randint(1, 3) for _ in range(3)))  # type: ignore[arg-type]


def tile_of_row(tiles: TileGrid) -> np.ndarray:
    """The tile of each row, from coordinates and nothing else."""
    axes = np.meshgrid(*map(np.arange, tiles.grid), indexing="ij")
    t, h, w = (axis.ravel() // length for axis, length in zip(axes, tiles.tile, strict=True))
    return np.sort((t * tiles.counts[1] + h) * tiles.counts[2] + w)  # rows stand tile by tile


def by_hand(x: torch.Tensor, tiles: TileGrid) -> np.ndarray:
    """int64 [batch, tiles, heads, head_dim]."""
    own, rows = tile_of_row(tiles), x.numpy().astype(np.int64)
    return np.stack([rows[:, own == tile].sum(1) // (own == tile).sum() for tile in range(own.max() + 1)], 1)


def test_the_choice_is_that_of_a_sort() -> None:
    """1,000 cases of few distinct scores, so that most choices have ties in them."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    tied = 0
    for _ in range(CASES):
        tiles, shape = drawn(rng), (rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 4))
        batch, heads, dim = shape
        q, k = (
            WHOLE * torch.randint(-1, 2, (batch, tiles.tokens, heads, dim), generator=generator).float()
            for _ in range(2)
        )
        n = len(tiles.valid)
        count = rng.randint(1, n)
        found = select.best(select.means(q, tiles), select.means(k, tiles), count)
        scores = np.einsum("bqhd,bkhd->bhqk", by_hand(q, tiles), by_hand(k, tiles))
        for place in np.ndindex(batch, heads, n):
            order = sorted(range(n), key=lambda tile: (-scores[place][tile], tile))
            assert found[place].tolist() == sorted(order[:count])
            tied += count < n and scores[place][order[count - 1]] == scores[place][order[count]]
    assert tied > CASES  # a wrong order of ties would show


def test_runs_guidance_branches_and_heads_agree_with_themselves() -> None:
    tiles, generator = TileGrid((5, 6, 7), (2, 2, 3)), torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, tiles.tokens, 3, 32, generator=generator) for _ in range(2))

    def chosen(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return select.best(select.means(q, tiles), select.means(k, tiles), 7)

    both = chosen(q, k)
    assert torch.equal(both, chosen(q, k))
    assert not torch.equal(both[0], both[1])
    for batch in range(2):
        assert torch.equal(both[batch], chosen(q[batch : batch + 1], k[batch : batch + 1])[0])
    assert torch.equal(both[:, 1:2], chosen(q[:, :, 1:2], k[:, :, 1:2]))


@pytest.mark.parametrize("count", [5, 7, 33])
def test_tiles_that_are_alike_tie(count: int) -> None:
    """Whatever their place, with random numbers, too: sums in float32 differ in the last bit among 5 tiles, or 7."""
    tiles, generator = TileGrid((1, 1, 3 * count), (1, 1, 3)), torch.Generator().manual_seed(2)
    q, one = torch.randn(1, 3 * count, 1, 128, generator=generator), torch.randn(1, 3, 1, 128, generator=generator)
    found = select.best(select.means(q, tiles), select.means(one.repeat(1, count, 1, 1), tiles), 3)
    assert found.eq(torch.arange(3)).all()


@pytest.mark.parametrize(
    ("share", "tiles", "expected"), [(1e-9, 60, 1), (0.25, 60, 15), (0.251, 60, 16), (0.07, 100, 7), (1.0, 7, 7)]
)
def test_a_share_is_rounded_up(share: float, tiles: int, expected: int) -> None:
    assert KeyTiles(top=share).count(TileGrid((1, 1, tiles), (1, 1, 1))) == expected
