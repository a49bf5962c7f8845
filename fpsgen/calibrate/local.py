"""What every candidate does to one layer's attention, on its real q, k and v, for some tiles of queries.

All candidates are evaluated at once. Softmax is a quotient of sums over keys: each tile of keys has its share of the
numerator and of the denominator, for each row of queries, and so has its mean, which stands for it in a summary. What a
candidate computes is the sum over the tiles that it sees, and over the means of the others. So the cost is one dense
attention of the sampled rows for each precision, however many candidates there are.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Tensor

from fpsgen.attention import quantize, reference, select
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid, key_lists
from fpsgen.calibrate.candidates import PRECISIONS, Candidates

_MOST_NUMBERS = 2**27  # float32 numbers at once: q, k and v of some heads, or the sums of some rows
_LN2 = log(2)


def errors(q: Tensor, k: Tensor, v: Tensor, gram: Tensor, candidates: Candidates, picked: Tensor) -> Tensor:
    """float64 [precisions, choices, heads]: the mean square, over the picked rows, of what each candidate adds to them.

    q, k, v: [batch, tokens, heads, head_dim] as attention gets them, rows in tile order. gram: float32 [heads,
    head_dim, head_dim], by which a head's output is weighed: W Wᵀ of what it is multiplied with on its way to the
    residual stream. picked: int64, tiles of queries.
    """
    batch, tokens, heads, dim = q.shape
    at_once = max(1, _MOST_NUMBERS // (3 * batch * tokens * dim))
    parts = []
    for first in range(0, heads, at_once):
        some = slice(first, first + at_once)
        parts.append(_errors(q[:, :, some], k[:, :, some], v[:, :, some], gram[some], candidates, picked))
    return torch.cat(parts, 2)


def _errors(q: Tensor, k: Tensor, v: Tensor, gram: Tensor, candidates: Candidates, picked: Tensor) -> Tensor:
    tiles, device, (batch, tokens, heads, dim) = candidates.tiles, q.device, q.shape
    rows, valid = (x.to(device) for x in padded(tiles))
    picked = picked.to(device)
    summed = torch.tensor([own.rest == "summary" for own in candidates.choices], device=device)[:, None]
    total = torch.zeros(len(PRECISIONS), len(candidates.choices), heads, dtype=torch.float64, device=device)
    exact: list[Tensor] = []
    many = max(1, _MOST_NUMBERS // (batch * heads * rows.shape[1] * (tokens + 2 * len(rows) * dim)))
    sees = [seen(q, k, candidates, some) for some in picked.split(many)]  # before any rounding: once for all precisions
    for index, precision in enumerate(PRECISIONS):
        plan = AttentionPlan(tiles, qk=precision, pv="bf16" if precision == "bf16" else "fp8")
        tile_sums = _sums_over(q, k, v, plan)
        for number, some in enumerate(picked.split(many)):
            weights = sees[number].double()
            own, rest = tile_sums(some)  # [batch, heads, picked, tiles, rows · (head_dim + 1)]
            whole = weights @ own
            whole += ((1 - weights) * summed) @ rest
            numbers = whole.unflatten(4, (-1, dim + 1))
            outputs = numbers[..., :-1] / numbers[..., -1:]  # [batch, heads, picked, choices, rows, head_dim]
            if index == 0:
                exact.append(outputs[:, :, :, -1:].clone())  # not a view, which would keep all choices
            apart = (outputs - exact[number]).float() * valid[some][:, None, :, None]
            total[index] += (
                (torch.einsum("bhpcrd,hde->bhpcre", apart, gram) * apart).sum((0, 2, 4, 5), dtype=torch.float64).mT
            )
    return total / (batch * int(tiles.valid[picked.cpu()].sum()))


def padded(tiles: TileGrid) -> tuple[Tensor, Tensor]:
    """[tiles, slots], a slot for each token of the largest tile: int64 rows, and whether they hold a token. An empty
    slot repeats the tile's first row."""
    slot = torch.arange(int(tiles.valid.max()))
    held = slot < tiles.valid[:, None]
    return tiles.offsets[:-1, None] + slot * held, held


def seen(q: Tensor, k: Tensor, candidates: Candidates, picked: Tensor) -> Tensor:
    """bool [batch, heads, picked, choices, tiles]: whether the tiles of queries see each tile of keys."""
    tiles, counts = candidates.tiles, {own.top: own.count(candidates.tiles) for own in candidates.choices if own.top}
    q_mean, k_mean = (select.means(x, tiles) for x in (q, k))
    rank = select.ranked(q_mean[:, picked], k_mean).argsort(-1)  # [batch, heads, picked, tiles]

    def of(own: KeyTiles) -> Tensor:
        if own.top:
            return rank < counts[own.top]
        lists = key_lists(tiles, own.window or tiles.counts)
        cols = torch.stack(lists.split())[lists.list_of[picked.cpu()]].to(q.device, torch.int64)
        return torch.zeros(rank.shape[2:], dtype=torch.bool, device=q.device).scatter_(1, cols, True).expand_as(rank)

    return torch.stack([of(own) for own in candidates.choices], 3)


def _sums_over(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """For some tiles of queries: numerator and denominator of each tile of keys, and of its mean; float64 [batch,
    heads, picked, tiles, rows · (head_dim + 1)], all of a row relative to the largest of its scores."""
    tiles, rows, valid = plan.tiles, *(x.to(q.device) for x in padded(plan.tiles))
    q, k, v, k_mean, v_mean = (
        *(x.transpose(1, 2) for x in reference.rounded(q, k, v, plan)),
        *reference.summary(k, v, plan),
    )
    k = k[:, :, rows.flatten()]  # [batch, heads, tiles · slots, head_dim]
    v = torch.nn.functional.pad(v[:, :, rows], (0, 1), value=1.0) * valid[..., None]
    v_mean = torch.nn.functional.pad(v_mean, (0, 1), value=1.0)
    counts = tiles.valid.to(q.device).float().log()

    def sums(picked: Tensor) -> tuple[Tensor, Tensor]:
        queries = q[:, :, rows[picked].flatten()] * q.shape[3] ** -0.5
        scores = (queries @ k.mT).unflatten(3, valid.shape).masked_fill_(~valid, -torch.inf)
        of_means = (queries @ k_mean.mT + counts)[..., None]
        largest = scores.amax((3, 4), keepdim=True)
        (p, powers), (p_mean, mean_powers) = (_exponentials(x, largest, plan) for x in (scores, of_means))
        own, rest = (p.transpose(2, 3) @ v).transpose(2, 3), p_mean * v_mean[:, :, None]
        return _by_tile(own, powers, len(picked)), _by_tile(rest, mean_powers, len(picked))

    return sums


def _exponentials(scores: Tensor, largest: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
    """P of [batch, heads, rows, tiles, slots], by tile times the power of two that brings its largest to 1/2 to 1, and
    these powers, [batch, heads, rows, tiles, 1]. By powers of two below the row's largest score, P has the codes that
    it has there; but for those below 2^-17 of it, which E4M3 does not have."""
    most = scores.amax(4, keepdim=True)
    powers = ((largest - most) / _LN2).floor_()
    p = (scores - (largest - powers * _LN2)).exp_()
    if plan.pv != "bf16":
        p = quantize.round_to_(p.mul_(quantize.LARGEST[plan.pv]), plan.pv).div_(quantize.LARGEST[plan.pv])
    return p, powers


def _by_tile(x: Tensor, powers: Tensor, picked: int) -> Tensor:
    """x · 2^-powers, [batch, heads, picked · slots, tiles, n] to [batch, heads, picked, tiles, slots · n].

    float64: a window may lie e^-80 below the largest score of all. Further down than e^-700, where float64 ends, all
    tiles count alike: what such a window does is wrong by far, and must not be taken for no number, or for nothing.
    """
    scaled = x.double() * powers.clamp(max=1000.0).double().neg().exp2()
    return scaled.unflatten(2, (picked, -1)).transpose(3, 4).flatten(4)
