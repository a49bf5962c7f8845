"""Attention with a gate, as FastVideo's models were trained with it (VSA), against the formula written out in float64:
tiles by the tokens' places, every score, and a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fpsgen.attention import door, hopper
from fpsgen.attention.door import attend
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.qk import QKTransform
from fpsgen.attention.tiles import Shape3, TileGrid
from tests.tools.vsa import vsa

HEADS, HEAD_DIM, EPS = 2, 16, 1e-6
WHOLE, RAGGED, SMALL = (8, 4, 8), (5, 6, 9), (1, 3, 2)
TOLERANCE = 2e-6  # of values about 1 in float32, summed over up to 270 keys


def prepared(x: Tensor, weight: Tensor, rope: Tensor) -> Tensor:
    """RMS over all heads, then pairs of neighbours rotated."""
    flat = x.flatten(2)
    normed = (flat / (flat.square().mean(-1, keepdim=True) + EPS).sqrt() * weight).view_as(x)
    turned = torch.view_as_complex(normed.unflatten(-1, (-1, 2))) * torch.view_as_complex(rope)[None, :, None]
    return torch.view_as_real(turned).flatten(-2)


def inputs(grid: Shape3, batch: int = 2) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k, v and gate in raster order, norm weights, rope; float64."""
    generator = torch.Generator().manual_seed(5)
    tokens = grid[0] * grid[1] * grid[2]
    given = [torch.randn(batch, tokens, HEADS, HEAD_DIM, generator=generator).double() for _ in range(4)]
    weights = 1.0 + torch.rand(2, HEADS * HEAD_DIM, generator=generator).double()
    angles = torch.rand(tokens, HEAD_DIM // 2, generator=generator).double()
    return given, weights, torch.stack([angles.cos(), angles.sin()], -1)


def by_attend(given: list[Tensor], weights: Tensor, rope: Tensor, plan: AttentionPlan) -> Tensor:
    tiles = plan.tiles
    q, k, v, gate = (x.float()[:, tiles.inverse] for x in given)
    transform = QKTransform(weights[0].float(), weights[1].float(), EPS, rope.float()[tiles.inverse])
    return attend(q, k, v, transform, plan, gate)[:, tiles.order]


@pytest.mark.parametrize("grid", [WHOLE, RAGGED, SMALL], ids=str)
@pytest.mark.parametrize("top", [None, 0.2, 0.5])
def test_equals_the_formula(grid: Shape3, top: float | None) -> None:
    given, weights, rope = inputs(grid)
    tiles = TileGrid(grid, (4, 4, 4))
    wanted = AttentionPlan(tiles, (KeyTiles(top=top),)) if top and len(tiles.valid) > 1 else AttentionPlan(tiles)
    q, k = (prepared(x, weight, rope) for x, weight in zip(given, weights, strict=False))
    expected = vsa(q, k, *given[2:], grid, top)
    torch.testing.assert_close(
        by_attend(given, weights, rope, wanted).double(), expected, rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("tile", [(3, 5, 4), (1, 6, 9), (2, 2, 2)], ids=str)
def test_its_tiles_do_not_depend_on_the_plan_s(tile: Shape3) -> None:
    given, weights, rope = inputs(RAGGED)
    one, other = (by_attend(given, weights, rope, AttentionPlan(TileGrid(RAGGED, own))) for own in ((4, 4, 4), tile))
    torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("top", [None, 0.3])
def test_gradients_are_the_formula_s(top: float | None) -> None:
    given, weights, rope = inputs(RAGGED, batch=1)
    for x in given:
        x.requires_grad_()
    tiles = TileGrid(RAGGED, (4, 4, 4))
    towards = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(6)).double()
    q, k = (prepared(x, weight, rope) for x, weight in zip(given, weights, strict=False))
    expected = torch.autograd.grad((vsa(q, k, *given[2:], RAGGED, top) * towards).sum(), given)
    plan = AttentionPlan(tiles, (KeyTiles(top=top),) if top else (None,))
    got = torch.autograd.grad((by_attend(given, weights, rope, plan) * towards).sum(), given)
    for own, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)  # sums over 270 rows, in float32


def test_without_a_gate_nothing_is_added() -> None:
    given, weights, rope = inputs(RAGGED)
    plan = AttentionPlan(TileGrid(RAGGED, (4, 4, 4)))
    plain = by_attend([*given[:3], torch.zeros_like(given[3])], weights, rope, plan)
    transform = QKTransform(weights[0].float(), weights[1].float(), EPS, rope.float()[plan.tiles.inverse])
    q, k, v = (x.float()[:, plan.tiles.inverse] for x in given[:3])
    assert torch.equal(attend(q, k, v, transform, plan)[:, plan.tiles.order], plain)


def test_what_a_fused_kernel_makes_gets_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prologue norms and rotates for itself; here it is the reference."""
    given, weights, rope = inputs(RAGGED)
    plan = AttentionPlan(TileGrid(RAGGED, (4, 4, 4)), (KeyTiles(top=0.3),))
    expected = by_attend(given, weights, rope, plan)
    without = by_attend([*given[:3], torch.zeros_like(given[3])], weights, rope, plan)[:, plan.tiles.inverse]
    monkeypatch.setattr(door, "choose", lambda *given: door.Choice("hopper", ()))
    monkeypatch.setattr(hopper, "attention", lambda *given: without)
    torch.testing.assert_close(by_attend(given, weights, rope, plan), expected)
