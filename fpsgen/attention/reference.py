"""The operator itself, in plain PyTorch: any device, any tile, every precision. The oracle of the fast backends.

For each query tile u, over the key tiles W(u) of its window (FPSAttention, arXiv 2506.04648, section 3.2; the
precisions of section 3.1):

    S = q kᵀ / √head_dim                    q, k rounded with one scale per tile and head
    P = exp(S - max S)                      in float32; rounded to E4M3 with the fixed scale 1 / 448
    o = P v / Σ P                           v rounded with one scale per channel and head

The denominator sums the rounded P, so that an output stays a weighted mean of values. Where the plan says smooth_k, k
loses its mean over tokens before it is rounded, which changes no P but by rounding.

A plan may choose other tiles W(u): the `top` share, by the content of q and k (`select`). And it may have a summary of
the rest: each tile outside of W(u) is one more column of S, that of the mean of its n keys, with log n added; and one
more row of v, the mean of its values. This is what n equal keys and values come to. Σ P takes these columns in. Means
are taken before any rounding, those of k after it loses its own mean over tokens, if it does. Mean keys are rounded
like k, with one scale for 128 of them; mean values have v's scales.

All of it has gradients; `differentiable` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fpsgen.attention import quantize, select
from fpsgen.attention.plan import AttentionPlan, KeyTiles, PVPrecision
from fpsgen.attention.tiles import Shape3, TileGrid, key_lists, outlives_inference

# Numbers of one kind that may be in memory at once; 256 MB of float32.
_MOST_NUMBERS = 2**26


def why_not(device: torch.device, plan: AttentionPlan, head_dim: int) -> str | None:
    """None: the reference runs every plan on every device."""
    return None


def make_ready(plan: AttentionPlan, device: torch.device) -> None:
    """Group the query rows of every window by what they see."""
    for own in plan.key_tiles:
        if own.is_window:
            grouped(plan.tiles, own.window, device)


def attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, chosen: Mapping[int, Tensor] | None = None
) -> Tensor:
    """q, k, v and the result [batch, tokens, heads, head_dim], rows in tile order; computed in float32.

    chosen: the key tiles of each `top` share, by its index in `plan.seen`, int64 [batch, its heads, tiles, key tiles];
    by default those of `select`. To gradients they are constants.
    """
    rows_first = [x.transpose(1, 2) for x in rounded(q, k, v, plan)]  # [batch, heads, tokens, head_dim]
    out = torch.empty(rows_first[2].shape, device=v.device)
    for index, seen in enumerate(plan.key_tiles):
        heads = plan.heads_of(index)
        queries, keys, values = (x[:, heads] for x in rows_first)
        if seen.is_window:
            out[:, heads] = over_window(queries, keys, values, seen.window, plan)
            continue
        lists = (chosen or {}).get(index)
        lists = key_tiles(q[:, :, heads], k[:, :, heads], seen, plan.tiles) if lists is None else lists
        rest = summary(k[:, :, heads], v[:, :, heads], plan) if seen.rest == "summary" else None
        out[:, heads] = over_lists(queries, keys, values, lists, rest, plan)
    return out.transpose(1, 2).to(v.dtype)


def over_window(q: Tensor, k: Tensor, v: Tensor, window: Shape3 | None, plan: AttentionPlan) -> Tensor:
    """Attention over a window, [batch, heads, tokens, head_dim]; without one, over all tiles."""
    order, inverse, groups = grouped(plan.tiles, window, q.device)
    means = []
    for rows, group in zip(q.index_select(2, order).split([g.rows for g in groups], 2), groups, strict=True):
        lists, many = at_once(len(q) * q.shape[1], q.shape[3], group)
        parts = rows.unflatten(2, (-1, group.queries)).split(lists, 2)
        for part, seen in zip(parts, group.keys.split(lists), strict=True):
            k_seen, v_seen = (gathered(x, seen, window) for x in (k, v))
            means += [softmax_mean(some, k_seen, v_seen, plan).flatten(2, 3) for some in part.split(many, 3)]
    return torch.cat(means, 2).index_select(2, inverse)


def over_lists(
    q: Tensor, k: Tensor, v: Tensor, lists: Tensor, rest: tuple[Tensor, Tensor] | None, plan: AttentionPlan
) -> Tensor:
    """Attention over any list of key tiles for each query tile, [batch, heads, tokens, head_dim].

    lists: int64 [batch, heads, tiles, key tiles]. rest: the mean key and value of every tile, [batch, heads, tiles,
    head_dim]; None drops what is not in the lists. All scores are computed: to collect the keys of each list takes
    longer, unless they are very few.
    """
    valid = plan.tiles.valid.to(q.device)
    tile_of = torch.arange(len(valid), device=q.device).repeat_interleave(valid)
    skipped = torch.full((*lists.shape[:3], len(valid)), -torch.inf, device=q.device).scatter_(3, lists, 0.0)
    counts = select.addends(lists, plan.tiles)
    if rest:
        k, v = torch.cat([k, rest[0]], 2), torch.cat([v, rest[1]], 2)
    some, means = max(1, _MOST_NUMBERS // (q.shape[0] * q.shape[1] * k.shape[2])), []
    for part, tile in zip(q.split(some, 2), tile_of.split(some), strict=True):
        own = slice(int(tile[0]), int(tile[-1]) + 1)
        added = skipped[:, :, own].index_select(3, tile_of)
        added = torch.cat([added, counts[:, :, own]], 3) if rest else added
        means.append(softmax_mean(part, k, v, plan, added, tile - tile[0]))
    return torch.cat(means, 2)


def key_tiles(q: Tensor, k: Tensor, seen: KeyTiles, tiles: TileGrid) -> Tensor:
    """int64 [batch, heads, tiles, key tiles], ascending: what each query tile sees, from [batch, tokens, heads,
    head_dim], not rounded."""
    if seen.top is not None:
        return select.best(select.means(q.detach(), tiles), select.means(k.detach(), tiles), seen.count(tiles))
    lists = key_lists(tiles, seen.window or tiles.counts)
    static = torch.stack(lists.split())[lists.list_of].to(q.device, torch.int64)  # a window's are all of one length
    return static.expand(len(q), q.shape[2], -1, -1)


def summary(k: Tensor, v: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
    """The mean key and value of every tile, rounded to the plan's formats: float32 [batch, heads, tiles, head_dim]."""
    k, v = k.float(), v.float()
    k = quantize.smooth(k) if plan.smooth_k and plan.qk != "bf16" else k
    k_mean, v_mean = select.means(k, plan.tiles), select.means(v, plan.tiles)
    if plan.qk != "bf16":
        runs = TileGrid((1, 1, k_mean.shape[1]), (1, 1, select.SUMMARY_KEYS))
        k_mean = quantize.per_tile(k_mean, plan.qk, runs).dequantize()
    if plan.pv != "bf16":
        scale = quantize.scale_of(v.abs().amax(1, keepdim=True), quantize.LARGEST[plan.pv])
        v_mean = quantize.round_by(v_mean, scale, plan.pv).dequantize()
    return k_mean.transpose(1, 2), v_mean.transpose(1, 2)


def rounded(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor, Tensor]:
    """The float32 values that q, k and v have after their rounding to the plan's formats."""
    q, k, v = q.float(), k.float(), v.float()
    if plan.qk != "bf16":
        k = quantize.smooth(k) if plan.smooth_k else k
        q, k = (quantize.per_tile(x, plan.qk, plan.tiles).dequantize() for x in (q, k))
    if plan.pv != "bf16":
        v = quantize.per_channel(v, plan.pv).dequantize()
    return q, k, v


def softmax_mean(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, added: Tensor | None = None, own: Tensor | None = None
) -> Tensor:
    """softmax(q kᵀ / √head_dim + added[own]) v over [batch, heads, …, rows, head_dim], P in the plan's format.

    added: [batch, heads, tiles, keys]; own: int64 [rows], which of its tiles each row adds. They are constants.
    """
    return _SoftmaxMean.apply(q, k, v, plan.pv, added, own)


class _SoftmaxMean(torch.autograd.Function):
    """Its backward pass computes S and P again: to keep them would take memory for every pair of tokens.

    With P̂ for the rounded P, o = P̂ v / Σ P̂, and g for the gradient of o: that of v is P̂ᵀ (g / Σ P̂); that of P̂, and of P
    straight through, is (g vᵀ - Σ g o) / Σ P̂; that of S is P times it. max S, which scales P, is a constant.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pv: PVPrecision, added: Tensor | None, own: Tensor | None
    ) -> Tensor:
        s = scores(q, k, added, own)
        largest = s.amax(-1, keepdim=True)
        p = exponentials_(s.sub_(largest), pv)
        if pv != "bf16":
            p = quantize.round_to_(p, pv)
        total = p.sum(-1, keepdim=True)
        out = (p @ v).div_(total)
        ctx.save_for_backward(q, k, v, added, own, largest, total, out)
        ctx.pv = pv
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, added, own, largest, total, out = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            p = rounded = exponentials_(scores(q, k, added, own).sub_(largest), ctx.pv)
            if ctx.pv != "bf16":
                rounded = quantize.round_to_(p.clone(), ctx.pv)
            gradient = gradient / total
            of_v = rounded.mT @ gradient
            of_s = (gradient @ v.mT).sub_((gradient * out).sum(-1, keepdim=True)).mul_(p)
            scale = q.shape[-1] ** -0.5
            return of_s @ k * scale, of_s.mT @ (q * scale), of_v, None, None, None


def scores(q: Tensor, k: Tensor, added: Tensor | None, own: Tensor | None) -> Tensor:
    """q kᵀ / √head_dim + added[own], as `softmax_mean` has them."""
    s = (q * q.shape[-1] ** -0.5) @ k.mT
    return s if added is None or own is None else s.add_(added.index_select(2, own))


def exponentials_(s: Tensor, pv: PVPrecision) -> Tensor:
    """P of S less its maximum, in its place, not yet rounded; times 448 if it will be, which the quotient cancels."""
    if pv == "bf16":
        return s.exp_()
    # Below e^-14 P is rounded to 0. A CPU takes 4 to 35 times as long for the exponential of what float32 cannot hold.
    return s.clamp_(min=-80.0).exp_().mul_(quantize.LARGEST[pv])


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
