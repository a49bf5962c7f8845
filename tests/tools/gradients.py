"""The operator in one formula over all pairs of tokens, in float64, for autograd to take gradients of.

Rounding is by torch's own conversions, and x + (rounded x - x), of which the bracket is a constant: straight through.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid


def by_hand(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, rounds_p: bool = True) -> Tensor:
    """float64 [batch, tokens, heads, head_dim], like q, k and v. rounds_p: as the plan says, or not at all."""
    tiles, valid = plan.tiles, plan.tiles.valid.to(q.device)
    tile_of = torch.arange(len(valid), device=q.device).repeat_interleave(valid)
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))  # [batch, heads, tokens, head_dim]
    to_means = (tile_of == torch.arange(len(valid), device=q.device)[:, None]).double() / valid[:, None]
    means = [(to_means @ x).detach() for x in (q, k)]
    seen = torch.empty(*q.shape[:2], len(valid), len(valid), dtype=torch.bool, device=q.device)
    summed = torch.zeros_like(seen)
    for index, own in enumerate(plan.key_tiles):
        heads = plan.heads_of(index)
        seen[:, heads] = seen_tiles(*(x[:, heads] for x in means), own, tiles)
        summed[:, heads] = ~seen[:, heads] if own.rest == "summary" else torch.zeros_like(seen[:, heads])
    if plan.qk != "bf16" and plan.smooth_k:
        k = k - k.mean(2, keepdim=True)
    k_mean, v_mean = to_means @ k, to_means @ v
    if plan.qk != "bf16":
        q, k = (straight(x, by_tile(x, tile_of), plan.qk) for x in (q, k))
        k_mean = straight(k_mean, by_tile(k_mean, torch.arange(len(valid), device=q.device) // 128), plan.qk)
    if plan.pv != "bf16":
        amax = v.abs().amax(2, keepdim=True)
        v, v_mean = (straight(x, amax, plan.pv) for x in (v, v_mean))
    scores = q @ torch.cat([k, k_mean], 2).mT / math.sqrt(q.shape[3])
    counted = torch.where(summed, valid.double().log(), -torch.inf)
    added = torch.cat([torch.where(seen, 0.0, -torch.inf)[..., tile_of], counted], 3)[:, :, tile_of]
    scores = scores + added
    p = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    if plan.pv != "bf16" and rounds_p:
        p = straight(p, torch.ones_like(p[..., :1]), plan.pv)
    return (p @ torch.cat([v, v_mean], 2) / p.sum(-1, keepdim=True)).transpose(1, 2)


def seen_tiles(q_mean: Tensor, k_mean: Tensor, own: KeyTiles, tiles: TileGrid) -> Tensor:
    """bool [batch, heads, tiles, tiles]: which tiles of keys each tile of queries sees."""
    fit = q_mean @ k_mean.mT
    if own.top is not None:
        return torch.zeros_like(fit, dtype=torch.bool).scatter_(3, fit.topk(own.count(tiles)).indices, True)
    place = torch.stack(torch.meshgrid(*map(torch.arange, tiles.counts), indexing="ij"), -1).flatten(0, 2)
    inside = torch.ones(len(place), len(place), dtype=torch.bool)
    for axis, (length, count) in enumerate(zip(own.window or tiles.counts, tiles.counts, strict=True)):
        first = (place[:, axis] - length // 2).clamp(0, count - length)[:, None]
        inside &= (place[:, axis] >= first) & (place[:, axis] < first + length)
    return inside.to(fit.device).expand_as(fit)


def by_tile(x: Tensor, tile_of: Tensor) -> Tensor:
    """The largest magnitude of each row's tile: [batch, heads, rows, 1]."""
    amax = [x[:, :, tile_of == tile].abs().amax((2, 3)) for tile in range(int(tile_of[-1]) + 1)]
    return torch.stack(amax, 2)[:, :, tile_of, None]


def straight(x: Tensor, amax: Tensor, kind: str) -> Tensor:
    scale = amax.detach() / (127 if kind == "int8" else 448)
    inside = (x.detach() / scale).float()
    rounded = inside.round() if kind == "int8" else inside.to(torch.float8_e4m3fn).float()
    return x + (rounded * scale - x).detach()


def of_squares(out: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the sum of squares of `out`."""
    return torch.autograd.grad(out.square().sum(), of)
