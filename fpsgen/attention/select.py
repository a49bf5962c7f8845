"""Which key tiles a tile of queries sees, chosen by their content: those whose mean key fits its mean query best.

A tile's mean stands for its tokens, so choosing among all tiles costs one score for each pair of tiles, where attention
costs one for each pair of tokens. Every entry of a batch, and every head, chooses for itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpsgen.attention.tiles import TileGrid, kept

# Mean keys of a summary that share one scale: those of one more tile of keys, as the Hopper kernel reads them.
SUMMARY_KEYS = 128


def means(x: Tensor, tiles: TileGrid) -> Tensor:
    """The mean of each tile's tokens: [batch, tokens, heads, head_dim] to float32 [batch, tiles, heads, head_dim]."""
    rows = x.float().transpose(0, 1).contiguous()
    # unsafe: the lengths are not looked at, for which the GPU would have to be waited for.
    return torch.segment_reduce(rows, "mean", lengths=_lengths(tiles, x.device), unsafe=True).transpose(0, 1)


@kept(16)
def _lengths(tiles: TileGrid, device: torch.device) -> Tensor:
    return tiles.valid.to(device)


def addends(lists: Tensor, tiles: TileGrid) -> Tensor:
    """What a summary adds to the score of each tile's mean key: the logarithm of its number of tokens, minus infinity
    where the tile is in the list. float32 [batch, heads, query tiles, key tiles]; lists as `best` gives them."""
    counts = tiles.valid.to(lists.device).float().log()
    return counts.expand(*lists.shape[:3], -1).scatter(3, lists, -torch.inf)


def ranked(q_mean: Tensor, k_mean: Tensor) -> Tensor:
    """int64 [batch, heads, query tiles, tiles]: all key tiles by mean(q)·mean(k), the largest first, of equal ones
    those of lower number.

    q_mean, k_mean: float32 [batch, tiles, heads, head_dim]. Products are summed in float64 and then rounded to float32:
    tiles that are alike score alike, in whatever order a library adds.
    """
    q_mean, k_mean = (x.double().transpose(1, 2) for x in (q_mean, k_mean))
    return (q_mean @ k_mean.mT).float().argsort(dim=-1, descending=True, stable=True)


def best(q_mean: Tensor, k_mean: Tensor, count: int) -> Tensor:
    """int64 [batch, heads, query tiles, count], ascending: the first `count` of `ranked`."""
    return ranked(q_mean, k_mean)[..., :count].sort(dim=-1).values
