"""The one door to self-attention.

Tokens come in tile order; q and k come *before* normalisation and RoPE, so that a backend can fuse both
into its own prologue. Backends that do not fuse share `prepare`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen.attention import dense
from fpsgen.attention.plan import AttentionPlan


@dataclass(frozen=True)
class QKTransform:
    """What turns projected q and k into the q and k of attention (Wan2.1 `wan/modules/model.py`).

    norm_q, norm_k: [heads * head_dim], weights of an RMS norm over all heads together.
    rope: float32 [tokens, head_dim / 2, 2], cosine and sine of each token's angles, in tile order.
    """

    norm_q: Tensor
    norm_k: Tensor
    eps: float
    rope: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, qk_transform: QKTransform, plan: AttentionPlan) -> Tensor:
    """Self-attention; q, k, v and the result are [batch, tokens, heads, head_dim], rows in tile order."""
    if q.shape[1] != plan.tiles.tokens:
        raise ValueError(f"{q.shape[1]} tokens do not fill the plan's grid {plan.tiles.grid}")
    q = prepare(q, qk_transform.norm_q, qk_transform).to(v.dtype)
    k = prepare(k, qk_transform.norm_k, qk_transform).to(v.dtype)
    return dense.attention(q, k, v)


def prepare(x: Tensor, weight: Tensor, qk_transform: QKTransform) -> Tensor:
    """RMS norm over all heads, then rotation of the interleaved pairs (0, 1), (2, 3), …; float32 out."""
    normed = F.rms_norm(x.flatten(2).float(), (weight.numel(),), weight.float(), qk_transform.eps)
    even, odd = normed.unflatten(2, (x.shape[2], -1, 2)).unbind(-1)
    cos, sin = qk_transform.rope[:, None].unbind(-1)  # [tokens, 1, head_dim / 2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
