"""Attention from tile to tile: one query, key and value for each, the means of its tokens.

Models that FastVideo trained with Video Sparse Attention (arXiv 2505.13389) add it to each token's own attention, times
a gate: what a token does not see in other tiles, it sees in outline. The tiles are those of their training, whatever a
plan's are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpsgen.attention import dense, select
from fpsgen.attention.tiles import Shape3, TileGrid, kept

TILE: Shape3 = (4, 4, 4)  # FastVideo `fastvideo/attention/backends/video_sparse_attn.py`


def attention(q: Tensor, k: Tensor, v: Tensor, tiles: TileGrid) -> Tensor:
    """softmax(mean(q) mean(k)ᵀ / √head_dim) mean(v), computed in float32, for each token that of its tile.

    q, k (after norm and RoPE), v and the result [batch, tokens, heads, head_dim], rows in the order of `tiles`.
    """
    own = TileGrid(tiles.grid, TILE)
    rows, tile_of = places(tiles, q.device)
    ordered = (q, k, v) if tiles == own else (x.index_select(1, rows) for x in (q, k, v))
    q_mean, k_mean, v_mean = (select.means(x, own) for x in ordered)
    return dense.by_torch(q_mean, k_mean, v_mean).to(v.dtype).index_select(1, tile_of)


@kept(4)
def places(tiles: TileGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 [tokens] each: which row of `tiles` stands in each row of the tiles here; which of these each row of
    `tiles` is in."""
    own = TileGrid(tiles.grid, TILE)
    tile_of = torch.arange(len(own.valid)).repeat_interleave(own.valid)
    return tiles.order[own.inverse].to(device), tile_of[own.order][tiles.inverse].to(device)
