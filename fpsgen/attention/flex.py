"""Sparse attention in 16 bits by torch's FlexAttention: any CUDA GPU, differentiable.

FlexAttention skips whole blocks of the score matrix, of a multiple of 128 rows each. Tiles have 120 tokens where they
cover Wan's sizes exactly: here each is padded to whole blocks, whose spare keys a mask hides.

Lists of key tiles are tensors, so that tiles chosen by content need no new kernel at each step: each head of each batch
entry has its own. To autograd they are constants. A summary of the rest is a second, small attention over the means of
all tiles. Both are parts of one softmax, and their log-sum-exps say how much of it each of them is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from fpsgen.attention import reference, select
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import Shape3, TileGrid, kept, key_lists

_BLOCK = 128
# Beyond that, dense attention is faster. FastVideo's tiles of 64 tokens pad 81 frames to 2.44 times the tokens, a fifth
# of whose pairs are 1.2 times as many as dense attention has.
_MOST_PADDING = 2.5
_MOST_SHAPES = 256  # compiled before torch gives up


def why_not(device: torch.device, plan: AttentionPlan, head_dim: int) -> str | None:
    """Why this backend cannot run `plan` on `device`."""
    if device.type != "cuda":
        return "it is for CUDA GPUs"
    if plan.is_8bit:
        return "it does not round to 8 bits"
    padded = tile_slots(plan.tiles) * len(plan.tiles.valid)
    if padded > _MOST_PADDING * plan.tiles.tokens:
        return f"it pads every tile to {tile_slots(plan.tiles)} rows, {padded / plan.tiles.tokens:.0f} times the tokens"
    return None if find_spec("triton") else "it needs Triton, which was not installed with this torch"


def make_ready(plan: AttentionPlan, device: torch.device) -> None:
    """Lay out the rows, and the blocks of every window."""
    padded_rows(plan.tiles, device)
    for own in plan.key_tiles:
        if own.top is None:
            block_mask(plan.tiles, own.window, device)


def attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """q, k, v and the result [batch, tokens, heads, head_dim], rows in tile order.

    In training it also runs plans in 8 bits (`differentiable`): then q, k and v have the values that rounding gives
    them, in the dtype that they come in, and P is not rounded.
    """
    slots = tile_slots(plan.tiles)
    rows = padded_rows(plan.tiles, q.device)
    operands = [x.to(v.dtype) for x in reference.rounded(q, k, v, plan)] if plan.is_8bit else (q, k, v)
    padded = [pad(x, rows, slots * len(plan.tiles.valid)) for x in operands]  # [batch, heads, slots, head_dim]
    out = torch.empty_like(q)
    for index, own in enumerate(plan.key_tiles):
        heads = plan.heads_of(index)
        q_own, k_own, v_own = (x[:, heads] for x in padded)
        if own.is_window:
            seen = by_blocks(q_own, k_own, v_own, block_mask(plan.tiles, own.window, q.device))
        else:
            seen = by_lists((q_own, k_own, v_own), (q[:, :, heads], k[:, :, heads], v[:, :, heads]), own, plan)
        out[:, :, heads] = seen.index_select(2, rows).transpose(1, 2)
    return out


def by_lists(
    padded: tuple[Tensor, Tensor, Tensor], given: tuple[Tensor, Tensor, Tensor], own: KeyTiles, plan: AttentionPlan
) -> Tensor:
    """Attention of heads that see `own`, key tiles by content or a window with a summary of the rest.

    padded, and the result: [batch, heads, rows, head_dim], a tile in each `tile_slots` rows; given: the same q, k and v
    without padding, [batch, tokens, heads, head_dim].
    """
    q, k, v = given
    lists = reference.key_tiles(q, k, own, plan.tiles)
    wanted = block_mask(plan.tiles, own.window, q.device) if own.top is None else blocks_of(lists, plan.tiles)
    if own.rest == "drop":
        return by_blocks(*padded, wanted)
    # `return_aux`, the newer name, is not in torch 2.8.
    seen, seen_sums = by_blocks(*padded, wanted, return_lse=True)
    spare = -len(plan.tiles.valid) % _BLOCK  # mean keys in whole blocks, too
    k_mean, v_mean = (F.pad(x.to(q.dtype), (0, 0, 0, spare)) for x in reference.summary(k, v, plan))
    added = F.pad(select.addends(lists, plan.tiles), (0, spare), value=-torch.inf)
    add = adding(added, tile_slots(plan.tiles))
    rest, rest_sums = by_blocks(padded[0], k_mean, v_mean, score_mod=add, return_lse=True)
    share = torch.sigmoid(rest_sums - seen_sums)  # of the rest, in the softmax over both
    return torch.lerp(seen, rest, share[..., None].to(q.dtype))


def adding(addends: Tensor, slots: int) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A `score_mod` that adds addends [batch, heads, query tiles, keys]; slots: rows of a query tile."""

    def add(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + addends[batch, head, query // slots, key]

    return add


def by_blocks(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None = None, **more: Any) -> Any:
    """FlexAttention itself, over [batch, heads, rows, head_dim]; every row sees all where there is no mask. more: what
    else `flex_attention` takes."""
    with torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES):
        return _compiled()(q, k, v, block_mask=mask, **more)


@cache
def _compiled():  # type: ignore[no-untyped-def]  # torch.compile keeps no signature
    """FlexAttention as one kernel. fullgraph: an error where it cannot be compiled, since uncompiled FlexAttention
    knows the mask but not the lists of blocks, and would see every key."""
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def tile_slots(tiles: TileGrid) -> int:
    """Rows that every tile gets: its largest, in whole blocks."""
    return -(-int(tiles.valid.max()) // _BLOCK) * _BLOCK


@kept(16)
def padded_rows(tiles: TileGrid, device: torch.device) -> Tensor:
    """int64 [tokens]: where each row goes when every tile has `tile_slots` rows."""
    shift = torch.arange(len(tiles.valid)) * tile_slots(tiles) - tiles.offsets[:-1]
    return (torch.arange(tiles.tokens) + shift.repeat_interleave(tiles.valid)).to(device)


def pad(x: Tensor, rows: Tensor, length: int) -> Tensor:
    """[batch, tokens, heads, head_dim] to [batch, heads, length, head_dim], zeros between."""
    padded = x.new_zeros(len(x), length, *x.shape[2:])
    return padded.index_copy(1, rows, x).transpose(1, 2)


@kept(128)
def block_mask(tiles: TileGrid, window: Shape3 | None, device: torch.device) -> BlockMask:
    """The blocks of a window, for every head and batch entry."""
    lists = key_lists(tiles, window or tiles.counts)
    cols = lists.cols.view(len(lists.row_ptr) - 1, -1)[lists.list_of]  # lists of one window are all of one length
    return blocks_of(cols[None, None].to(device), tiles)


def blocks_of(lists: Tensor, tiles: TileGrid) -> BlockMask:
    """Lists of key tiles, [batch, heads, tiles, key tiles], as FlexAttention wants them: for each query block how many
    key blocks, and as many numbers as there are blocks, of which it reads the first."""
    lengths = torch.full(lists.shape[:3], lists.shape[3], dtype=torch.int32, device=lists.device)
    numbers = F.pad(lists.int(), (0, len(tiles.valid) - lists.shape[3]))
    mask = is_token(tiles, lists.device)
    return BlockMask.from_kv_blocks(lengths, numbers, BLOCK_SIZE=tile_slots(tiles), mask_mod=mask)


@kept(16)  # one function for all windows, so that none of them compiles anew
def is_token(tiles: TileGrid, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a key's row holds a token, as a `mask_mod`."""
    slots, valid = tile_slots(tiles), tiles.valid.to(device)

    def mask(_batch: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        return key % slots < valid[key // slots]

    return mask
