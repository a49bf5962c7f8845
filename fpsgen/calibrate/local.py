"""What every candidate does to one layer's attention, on its real q, k and v, for some tiles of queries.

All windows are evaluated at once: as windows around a tile are nested along each axis, the tiles of keys fall into
cells (as many along an axis as there are lengths), a window is a box of cells, and its softmax is the sum over the box
of what each cell has of numerator and denominator. So the cost is one dense attention of the sampled rows for each
precision, however many windows there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpsgen.attention import quantize, reference
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.calibrate.candidates import PRECISIONS, Candidates

_MOST_NUMBERS = 2**27  # float32 numbers of rounded operands at once: q, k and v of some heads


def errors(q: Tensor, k: Tensor, v: Tensor, gram: Tensor, candidates: Candidates, picked: Tensor) -> Tensor:
    """float64 [precisions, windows, heads]: the mean square, over the picked rows, of what each candidate adds to them.

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
    tiles = candidates.tiles
    total = torch.zeros(len(PRECISIONS), len(candidates.windows), q.shape[2], dtype=torch.float64, device=q.device)
    exact: dict[int, Tensor] = {}
    for index, precision in enumerate(PRECISIONS):
        plan = AttentionPlan(tiles, qk=precision, pv="bf16" if precision == "bf16" else "fp8")
        rounded = [x.transpose(1, 2) for x in reference.rounded(q, k, v, plan)]  # [batch, heads, tokens, head_dim]
        for tile in picked.tolist():
            rows = slice(int(tiles.offsets[tile]), int(tiles.offsets[tile + 1]))
            outputs = _windows(rounded[0][:, :, rows], rounded[1], rounded[2], plan, candidates, tile)
            if index == 0:
                exact[tile] = outputs[-1].clone()  # not a view, which would keep all windows
            apart = (outputs - exact[tile]).float()  # [windows, batch, heads, rows, head_dim]
            weighed = torch.einsum("wbhrd,hde->wbhre", apart, gram)
            total[index] += (weighed * apart).sum((1, 3, 4), dtype=torch.float64)
    return total / (len(q) * int(tiles.valid[picked].sum()))


def _windows(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, candidates: Candidates, tile: int) -> Tensor:
    """float64 [windows, batch, heads, rows, head_dim]: attention of one tile's queries under every window."""
    order, sizes = cells(candidates, tile)
    order = order.to(q.device)
    # P is rounded against the largest of its cell, not of its window: they differ for what is below 2^-17 of that.
    largest, sums = [], []
    scores = (q * q.shape[-1] ** -0.5) @ k.index_select(2, order).mT
    for part, values in zip(scores.split(sizes, 3), v.index_select(2, order).split(sizes, 2), strict=True):
        if part.shape[3] == 0:
            largest.append(scores.new_full((*scores.shape[:3], 1), -torch.inf))
            sums.append(scores.new_zeros(*scores.shape[:3], v.shape[3] + 1))
            continue
        most = part.amax(3, keepdim=True)
        p = (part - most).exp_()
        if plan.pv != "bf16":
            p = quantize.round_to_(p.mul_(quantize.LARGEST[plan.pv]), plan.pv).div_(quantize.LARGEST[plan.pv])
        largest.append(most)
        sums.append(torch.cat([p @ values, p.sum(3, keepdim=True)], 3))
    # float64: a window may lie e^-80 below the largest score of all. Further down than e^-700, where float64 ends, all
    # cells count alike: what such a window does is wrong by far, and must not be taken for no number, or for nothing.
    tops = torch.stack(largest).double()
    scaled = torch.stack(sums).double() * (tops - tops.amax(0)).clamp_(min=-700.0).exp_()
    boxes = scaled.unflatten(0, [len(lengths) for lengths in candidates.lengths])
    boxes = boxes.cumsum(0).cumsum(1).cumsum(2).flatten(0, 2)
    return boxes[..., :-1] / boxes[..., -1:]


def cells(candidates: Candidates, tile: int) -> tuple[Tensor, list[int]]:
    """The rows of keys sorted by cell around a tile of queries, and how many each cell has, cells in raster order."""
    tiles = candidates.tiles
    at = torch.unravel_index(torch.tensor(tile), tiles.counts)
    along = []
    for axis, lengths in enumerate(candidates.lengths):
        cell = torch.full((tiles.counts[axis],), len(lengths) - 1)
        for number, length in reversed(list(enumerate(lengths))):
            begin = _begins(tiles, axis, length)[int(at[axis])]
            cell[begin : begin + length] = number
        along.append(cell)
    _, high, wide = (len(lengths) for lengths in candidates.lengths)
    of_tile = ((along[0][:, None, None] * high + along[1][:, None]) * wide + along[2]).flatten()
    of_row = of_tile.repeat_interleave(tiles.valid)
    return of_row.argsort(stable=True), of_row.bincount(minlength=len(candidates.windows)).tolist()


def _begins(tiles: TileGrid, axis: int, length: int) -> tuple[int, ...]:
    window = list(tiles.counts)
    window[axis] = length
    return tiles.begins((window[0], window[1], window[2]))[axis]
