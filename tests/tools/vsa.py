"""Video Sparse Attention (VSA) as FastVideo runs it, written out: tiles by places, every score, a mask."""

from __future__ import annotations

from itertools import product
from math import ceil

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def vsa(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, grid: Grid, top: float | None) -> Tensor:
    """q and k after norm and RoPE; all of them, and the result, [batch, tokens, heads, head_dim] in raster order. top:
    the share of key tiles; None for all."""
    places = list(product(*map(range, grid)))
    tiles = list(product(*(range(ceil(size / 4)) for size in grid)))
    belongs = torch.tensor([[tuple(x // 4 for x in place) == tile for tile in tiles] for place in places]).double()
    mean = belongs / belongs.sum(0)  # [tokens, tiles]
    q_mean, k_mean, v_mean = (torch.einsum("nt,bnhd->bhtd", mean, x) for x in (q, k, v))
    coarse = q_mean @ k_mean.mT / q.shape[3] ** 0.5
    outline = torch.einsum("nt,bhtd->bnhd", belongs, coarse.softmax(-1) @ v_mean)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[3] ** 0.5
    if top is not None:
        chosen = coarse.topk(max(1, ceil(top * len(tiles))), -1).indices
        seen = torch.zeros_like(coarse).scatter(-1, chosen, 1.0)
        scores = scores.masked_fill(belongs @ seen @ belongs.T == 0, -torch.inf)
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v) + gate * outline
