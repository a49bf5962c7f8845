"""What a candidate does to one layer's attention: all candidates at once, against the reference one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fpsgen.attention import reference
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import Shape3, TileGrid
from fpsgen.calibrate import local
from fpsgen.calibrate.candidates import PRECISIONS, Candidates

# Grid and tile: exact, ragged on all axes, one tile, axes of one tile, a tile larger than the grid.
GEOMETRIES: list[tuple[Shape3, Shape3]] = [
    ((4, 6, 10), (2, 2, 2)),
    ((5, 7, 9), (2, 3, 2)),
    ((3, 4, 4), (3, 4, 4)),
    ((1, 9, 14), (1, 2, 2)),
    ((3, 2, 20), (3, 2, 2)),
    ((1, 1, 1), (3, 5, 8)),
]
HEADS, DIM = 3, 16


def inputs(tiles: TileGrid, seed: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a positive semi-definite gram."""
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, tiles.tokens, HEADS, DIM, generator=rng) * scale for scale in (2, 2, 1))
    root = torch.randn(HEADS, DIM, DIM, generator=rng)
    return q, k, v, root @ root.mT


def expected(q: Tensor, k: Tensor, v: Tensor, gram: Tensor, candidates: Candidates, picked: Tensor) -> Tensor:
    """The same, candidate by candidate through the reference."""
    tiles = candidates.tiles
    rows = reference.rows_of(tiles, picked)
    exact = reference.attention(q, k, v, AttentionPlan(tiles))
    found = torch.empty(len(PRECISIONS), len(candidates.choices), HEADS, dtype=torch.float64)
    for p in range(len(PRECISIONS)):
        for c in range(len(candidates.choices)):
            apart = (reference.attention(q, k, v, candidates.plan(p, [c] * HEADS)) - exact)[:, rows]
            found[p, c] = torch.einsum("brhd,hde,brhe->h", apart, gram, apart) / (len(q) * len(rows))
    return found


@pytest.mark.parametrize(("grid", "tile"), GEOMETRIES)
def test_every_candidate(grid: Shape3, tile: Shape3) -> None:
    tiles = TileGrid(grid, tile)
    candidates = Candidates(tiles, 75_600)
    q, k, v, gram = inputs(tiles, seed=1)
    picked = torch.randperm(len(tiles.valid), generator=torch.Generator().manual_seed(2))[:4]
    ours, theirs = (of(q, k, v, gram, candidates, picked) for of in (local.errors, expected))
    assert ours.shape == (3, len(candidates.choices), HEADS)
    # Not rounded: float32 sums in another order. The dense one is 0 exactly: what all others are compared with.
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-9)
    assert (ours[0, -1] == 0).all()
    # In 8 bits a few exponentials beside a tie round the other way, by sums in another order: 0.8 % at most was seen.
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=0.03, atol=1e-9)


@pytest.mark.parametrize(("grid", "tile"), GEOMETRIES)
def test_what_a_candidate_sees(grid: Shape3, tile: Shape3) -> None:
    """Windows by their definition, shares as the reference chooses them, each entry of a batch and each head for
    itself."""
    tiles = TileGrid(grid, tile)
    candidates = Candidates(tiles, 75_600)
    q, k, _, _ = inputs(tiles, seed=5)
    every = torch.arange(len(tiles.valid))
    seen = local.seen(q, k, candidates, every)
    assert seen.shape == (len(q), HEADS, len(every), len(candidates.choices), len(every))
    for choice, own in enumerate(candidates.choices):
        lists = reference.key_tiles(q, k, own, tiles)
        wanted = torch.zeros(len(q), HEADS, len(every), len(every), dtype=torch.bool).scatter_(3, lists, True)
        assert seen[:, :, :, choice].equal(wanted)


def test_precisions_differ() -> None:
    candidates = Candidates(TileGrid((4, 6, 6), (2, 2, 2)), 75_600)
    q, k, v, gram = inputs(candidates.tiles, seed=3)
    dense = local.errors(q, k, v, gram, candidates, torch.arange(4))[:, -1]
    assert (dense[0] < dense[1]).all()
    assert (dense[1] < dense[2]).all(), "INT8 of normal numbers is finer than E4M3"


def test_heads_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory bounds how many heads are rounded at once; what comes out does not depend on it."""
    candidates = Candidates(TileGrid((5, 7, 9), (2, 3, 2)), 75_600)
    q, k, v, gram = inputs(candidates.tiles, seed=4)
    whole = local.errors(q, k, v, gram, candidates, torch.tensor([0, 7]))
    calls = []
    real = reference.rounded
    monkeypatch.setattr(reference, "rounded", lambda *args: calls.append(args[0].shape[2]) or real(*args))
    monkeypatch.setattr(local, "_MOST_NUMBERS", 1)
    parts = local.errors(q, k, v, gram, candidates, torch.tensor([0, 7]))
    assert calls == [1] * len(PRECISIONS) * HEADS
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)  # batched products may sum in another order


@pytest.mark.parametrize("far", [100.0, 600.0, 2000.0])
def test_scores_far_apart(far: float) -> None:
    """The tile's own keys lie e^-far below the largest score: float32 holds e^-100, float64 e^-700, and beyond these
    an error must be a large number, not none."""
    tiles = TileGrid((1, 1, 7), (1, 1, 1))
    candidates = Candidates(tiles, 75_600)
    q, k, v = torch.zeros(1, 7, 1, DIM), torch.zeros(1, 7, 1, DIM), torch.randn(1, 7, 1, DIM)
    q[..., 0] = 4.0
    k[0, 6, 0, 0] = far  # q · k / √16 is far
    gram = torch.eye(DIM)[None]
    picked = torch.tensor([0])
    found = local.errors(q, k, v, gram, candidates, picked)
    assert found.isfinite().all()
    smallest = candidates.choices.index(KeyTiles((1, 1, 1)))
    # Dense attention sees the last token alone, the smallest window the first alone.
    torch.testing.assert_close(found[0, smallest, 0], (v[0, 0] - v[0, 6]).double().square().sum(), rtol=1e-5, atol=0)
