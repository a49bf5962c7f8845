"""What stands in for compiled FlexAttention on a CPU, which has no log-sum-exps there, and no gradients.

Uncompiled, FlexAttention knows masks but not lists of blocks: here they are put into the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention


def wanted(mask: BlockMask, q: Tensor) -> Any:
    """The lists of a mask, and the mask itself, as a `score_mod`."""
    listed, slots = mask.to_dense().bool().expand(*q.shape[:2], -1, -1), mask.BLOCK_SIZE[0]

    def only(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        there = listed[batch, head, query // slots, key // slots] & mask.mask_mod(batch, head, query, key)
        return torch.where(there, score, -torch.inf)

    return only


def uncompiled(q: Tensor, k: Tensor, v: Tensor, block_mask: Any = None, score_mod: Any = None, **more: Any) -> Any:
    return flex_attention(q, k, v, score_mod=wanted(block_mask, q) if block_mask else score_mod, **more)


def plain(
    q: Tensor, k: Tensor, v: Tensor, block_mask: Any = None, score_mod: Any = None, return_lse: bool = False
) -> Any:
    index = torch.meshgrid(*map(torch.arange, (*q.shape[:3], k.shape[2])), indexing="ij")
    scores = (wanted(block_mask, q) if block_mask else score_mod)(q @ k.mT / q.shape[3] ** 0.5, *index)
    out = scores.softmax(-1) @ v
    return (out, scores.logsumexp(-1)) if return_lse else out
