"""The operator itself, in plain PyTorch: any device, any tile, every precision. The oracle of the fast backends.

For each query tile u, over the key tiles W(u) of its window (FPSAttention, arXiv 2506.04648, section 3.2; the
precisions of section 3.1):

    S = q kᵀ / √head_dim                    q, k rounded with one scale per tile and head
    P = exp(S - max S)                      in float32; rounded to E4M3 with the fixed scale 1 / 448
    o = P v / Σ P                           v rounded with one scale per channel and head

The denominator sums the rounded P, so that an output stays a weighted mean of values. Where the plan says smooth_k, k
loses its mean over tokens before it is rounded, which changes no P but by rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fpsgen.attention import quantize
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Shape3, TileGrid, key_lists, outlives_inference

# Numbers of one kind that may be in memory at once; 256 MB of float32.
_MOST_NUMBERS = 2**26


def why_not(device: torch.device, plan: AttentionPlan, head_dim: int) -> str | None:
    """None: the reference runs every plan on every device."""
    return None


def make_ready(plan: AttentionPlan, device: torch.device) -> None:
    """Group the query rows of every window by what they see."""
    for window in plan.windows:
        grouped(plan.tiles, window, device)


def attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """q, k, v and the result [batch, tokens, heads, head_dim], rows in tile order; computed in float32.

    NotImplementedError if gradients are needed, because rounding has none.
    """
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise NotImplementedError("the reference has no gradients: run it under torch.no_grad()")
    rows_first = [x.transpose(1, 2) for x in rounded(q, k, v, plan)]  # [batch, heads, tokens, head_dim]
    out = torch.empty(rows_first[2].shape, device=v.device)
    for index, window in enumerate(plan.windows):
        heads = plan.heads_of(index)
        queries, keys, values = (x[:, heads] for x in rows_first)
        order, inverse, groups = grouped(plan.tiles, window, q.device)
        means = []
        for rows, group in zip(queries.index_select(2, order).split([g.rows for g in groups], 2), groups, strict=True):
            lists, many = at_once(len(q) * queries.shape[1], q.shape[3], group)
            parts = rows.unflatten(2, (-1, group.queries)).split(lists, 2)
            for part, seen in zip(parts, group.keys.split(lists), strict=True):
                k_seen, v_seen = (gathered(x, seen, window) for x in (keys, values))
                means += [softmax_mean(some, k_seen, v_seen, plan).flatten(2, 3) for some in part.split(many, 3)]
        out[:, heads] = torch.cat(means, 2).index_select(2, inverse)
    return out.transpose(1, 2).to(v.dtype)


def rounded(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor, Tensor]:
    """The float32 values that q, k and v have after their rounding to the plan's formats."""
    q, k, v = q.float(), k.float(), v.float()
    if plan.qk != "bf16":
        k = quantize.smooth(k) if plan.smooth_k else k
        q, k = (quantize.per_tile(x, plan.qk, plan.tiles).dequantize() for x in (q, k))
    if plan.pv != "bf16":
        v = quantize.per_channel(v, plan.pv).dequantize()
    return q, k, v


def softmax_mean(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """softmax(q kᵀ / √head_dim) v over [batch, heads, lists, rows, head_dim], P in the plan's format."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    p = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    if plan.pv != "bf16":
        p = quantize.round_to_(p.mul_(quantize.LARGEST[plan.pv]), plan.pv)  # 1 / 448 cancels in the quotient
    return (p @ v).div_(p.sum(-1, keepdim=True))


@dataclass(frozen=True, eq=False)
class QueryGroup:
    """Key lists of one shape, computed side by side. keys: int32 [lists, key rows]; queries: rows that have each."""

    keys: Tensor
    queries: int

    @property
    def rows(self) -> int:
        return len(self.keys) * self.queries


def at_once(heads: int, head_dim: int, group: QueryGroup) -> tuple[int, int]:
    """How many lists, and how many queries of each, so that _MOST_NUMBERS bounds scores, and keys and values."""
    per_row = heads * group.keys.shape[1]
    lists = max(1, _MOST_NUMBERS // (per_row * max(group.queries, 2 * head_dim)))
    return lists, min(max(1, _MOST_NUMBERS // per_row), group.queries)


def gathered(x: Tensor, rows: Tensor, window: Shape3 | None) -> Tensor:
    """[batch, heads, tokens, head_dim] to [batch, heads, lists, key rows, head_dim]; without a window
    nothing is copied."""
    if window is None:
        return x[:, :, None]
    return x.index_select(2, rows.flatten()).unflatten(2, rows.shape)


@lru_cache(maxsize=128)
@outlives_inference
def grouped(
    tiles: TileGrid, window: Shape3 | None, device: torch.device
) -> tuple[Tensor, Tensor, tuple[QueryGroup, ...]]:
    """Query rows grouped by the shape of what they see: their order, its inverse, and the groups in that order."""
    lists = key_lists(tiles, window or tiles.counts)
    query_tiles = lists.list_of.argsort(stable=True).split(lists.list_of.bincount().tolist())
    alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    for own, seen in zip(query_tiles, lists.split(), strict=True):
        queries, keys = rows_of(tiles, own), rows_of(tiles, seen)
        alike.setdefault((len(queries), len(keys)), []).append((queries, keys))
    order = torch.cat([queries for pairs in alike.values() for queries, _ in pairs])
    groups = (
        QueryGroup(torch.stack([keys for _, keys in pairs]).to(device, torch.int32), queries)
        for (queries, _), pairs in alike.items()
    )
    return order.to(device), order.argsort().to(device), tuple(groups)


def rows_of(tiles: TileGrid, which: Tensor) -> Tensor:
    """int64: the rows of the tiles `which`, tile by tile."""
    lengths = tiles.valid[which]
    before = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) + (tiles.offsets[which] - before).repeat_interleave(lengths)
