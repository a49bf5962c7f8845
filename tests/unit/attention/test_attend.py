"""The one door to self-attention."""

from __future__ import annotations

import math

import pytest
import torch

from fpsgen.attention import dense
from fpsgen.attention.door import attend
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.qk import QKTransform
from fpsgen.attention.tiles import TileGrid
from fpsgen.wan.transformer import rope_table


def test_attend_is_softmax_of_normed_rotated_products() -> None:
    generator = torch.Generator().manual_seed(3)
    tiles = TileGrid((2, 3, 2), (2, 2, 2))
    heads, dim = 2, 12
    q, k, v = (torch.randn(1, tiles.tokens, heads, dim, generator=generator) for _ in range(3))
    norm_q, norm_k = (torch.rand(heads * dim, generator=generator) + 0.5 for _ in range(2))
    rope = rope_table(tiles.grid, dim, 10_000.0)[tiles.inverse]
    got = attend(q, k, v, QKTransform(norm_q, norm_k, 1e-6, rope), AttentionPlan(tiles))

    def turned(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Norm over both heads at once, then one complex multiplication per pair; in float64."""
        x = x[0].double().flatten(1)
        x = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight
        pairs = torch.view_as_complex(x.view(-1, heads, dim // 2, 2))
        turn = torch.view_as_complex(rope.double().contiguous())
        return torch.view_as_real(pairs * turn[:, None]).flatten(2)

    scores = torch.einsum("qhd,khd->hqk", turned(q, norm_q), turned(k, norm_k)) / math.sqrt(dim)
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[0].double())
    torch.testing.assert_close(got[0].double(), expected, rtol=1e-5, atol=1e-5)  # float32 arithmetic


def test_q_and_k_come_in_the_dtype_of_v() -> None:
    """Norm and RoPE are float32; backends that are not fused get 16 bits, as the original's attention does."""
    tiles = TileGrid((2, 3, 2), (2, 2, 2))
    x = torch.randn(1, tiles.tokens, 2, 12, generator=torch.Generator().manual_seed(1)).bfloat16()
    transform = QKTransform(torch.ones(24), torch.ones(24), 1e-6, rope_table(tiles.grid, 12, 10_000.0))
    seen = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        seen.extend([q.dtype, k.dtype, v.dtype])
        return v

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "attention", attention)
        attend(x, x, x, transform, AttentionPlan(tiles))
    assert seen == [torch.bfloat16] * 3


def test_a_plan_for_other_heads_is_refused() -> None:
    tiles = TileGrid((1, 2, 2), (1, 1, 1))
    x = torch.zeros(1, 4, 3, 12)
    transform = QKTransform(torch.ones(36), torch.ones(36), 1e-6, torch.zeros(4, 6, 2))
    with pytest.raises(ValueError, match="for 2 heads, not for 3"):
        attend(x, x, x, transform, AttentionPlan(tiles, (None, (1, 1, 1)), (0, 1)))


def test_a_plan_for_another_grid_is_refused() -> None:
    x = torch.zeros(1, 5, 1, 12)
    transform = QKTransform(torch.ones(12), torch.ones(12), 1e-6, torch.zeros(5, 6, 2))
    with pytest.raises(ValueError, match="grid"):
        attend(x, x, x, transform, AttentionPlan(TileGrid((1, 2, 2), (1, 1, 1))))
