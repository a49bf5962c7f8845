"""Sparse attention in 16 bits by torch's FlexAttention: any CUDA GPU, differentiable.

FlexAttention skips whole blocks of the score matrix, of a multiple of 128 rows each. Tiles have 120 tokens where they
cover Wan's sizes exactly: here each is padded to whole blocks, whose spare keys a mask hides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from fpsgen.attention.plan import WINDOWS_ONLY, AttentionPlan
from fpsgen.attention.tiles import Shape3, TileGrid, key_lists, outlives_inference

_BLOCK = 128
_MOST_PADDING = 2.0  # beyond that, dense attention is faster
_MOST_SHAPES = 256  # compiled before torch gives up


def why_not(device: torch.device, plan: AttentionPlan, head_dim: int) -> str | None:
    """Why this backend cannot run `plan` on `device`."""
    if device.type != "cuda":
        return "it is for CUDA GPUs"
    if not plan.has_windows_only:
        return WINDOWS_ONLY
    if plan.is_8bit:
        return "it does not round to 8 bits"
    padded = tile_slots(plan.tiles) * len(plan.tiles.valid)
    if padded > _MOST_PADDING * plan.tiles.tokens:
        return f"it pads every tile to {tile_slots(plan.tiles)} rows, {padded / plan.tiles.tokens:.0f} times the tokens"
    return None if find_spec("triton") else "it needs Triton, which was not installed with this torch"


def make_ready(plan: AttentionPlan, device: torch.device) -> None:
    """Lay out the rows, and the blocks of every window."""
    padded_rows(plan.tiles, device)
    for window in plan.windows:
        block_mask(plan.tiles, window, device)


def attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """q, k, v and the result [batch, tokens, heads, head_dim], rows in tile order."""
    slots = tile_slots(plan.tiles)
    rows = padded_rows(plan.tiles, q.device)
    padded = [pad(x, rows, slots * len(plan.tiles.valid)) for x in (q, k, v)]  # [batch, heads, slots, head_dim]
    out = torch.empty_like(q)
    for index, window in enumerate(plan.windows):
        heads = plan.heads_of(index)
        q_own, k_own, v_own = (x[:, heads] for x in padded)
        seen = by_blocks(q_own, k_own, v_own, block_mask(plan.tiles, window, q.device))
        out[:, :, heads] = seen.index_select(2, rows).transpose(1, 2)
    return out


def by_blocks(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None = None) -> Tensor:
    """FlexAttention itself, over [batch, heads, rows, head_dim]; every row sees all where there is no mask."""
    with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES):
        return _compiled()(q, k, v, block_mask=mask)


@cache
def _compiled():  # type: ignore[no-untyped-def]  # torch.compile keeps no signature
    """FlexAttention as one kernel. fullgraph: an error where it cannot be compiled, since uncompiled FlexAttention
    knows the mask but not the lists of blocks, and would see every key."""
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def tile_slots(tiles: TileGrid) -> int:
    """Rows that every tile gets: its largest, in whole blocks."""
    return -(-int(tiles.valid.max()) // _BLOCK) * _BLOCK


@lru_cache(maxsize=16)
@outlives_inference
def padded_rows(tiles: TileGrid, device: torch.device) -> Tensor:
    """int64 [tokens]: where each row goes when every tile has `tile_slots` rows."""
    shift = torch.arange(len(tiles.valid)) * tile_slots(tiles) - tiles.offsets[:-1]
    return (torch.arange(tiles.tokens) + shift.repeat_interleave(tiles.valid)).to(device)


def pad(x: Tensor, rows: Tensor, length: int) -> Tensor:
    """[batch, tokens, heads, head_dim] to [batch, heads, length, head_dim], zeros between."""
    padded = x.new_zeros(len(x), length, *x.shape[2:])
    return padded.index_copy(1, rows, x).transpose(1, 2)


@lru_cache(maxsize=128)
@outlives_inference
def block_mask(tiles: TileGrid, window: Shape3 | None, device: torch.device) -> BlockMask:
    """The window's key lists as FlexAttention wants them: for each query block, all key blocks, wanted ones first."""
    count = len(tiles.valid)
    lists = key_lists(tiles, window or tiles.counts)
    cols = lists.cols.view(len(lists.row_ptr) - 1, -1)[lists.list_of]  # lists of one window are all of one length
    wanted = torch.zeros(count, count, dtype=torch.bool).scatter_(1, cols.long(), True)
    order = wanted.argsort(dim=1, descending=True, stable=True)
    lengths, order = (x[None, None].to(device, torch.int32) for x in (wanted.sum(1), order))
    return BlockMask.from_kv_blocks(lengths, order, BLOCK_SIZE=tile_slots(tiles), mask_mod=is_token(tiles, device))


@lru_cache(maxsize=16)  # one function for all windows, so that none of them compiles anew
@outlives_inference
def is_token(tiles: TileGrid, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a key's row holds a token, as a `mask_mod`."""
    slots, valid = tile_slots(tiles), tiles.valid.to(device)

    def mask(_batch: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        return key % slots < valid[key // slots]

    return mask
