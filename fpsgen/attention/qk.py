"""Between the projections and attention: norm and RoPE of q and k (Wan2.1 `wan/modules/model.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen.attention.tiles import kept


@dataclass(frozen=True)
class QKTransform:
    """What turns projected q and k into the q and k of attention.

    norm_q, norm_k: [heads * head_dim], weights of an RMS norm over all heads together.
    rope: float32 [tokens, head_dim / 2, 2], cosine and sine of each token's angles, in tile order.
    """

    norm_q: Tensor
    norm_k: Tensor
    eps: float
    rope: Tensor


@kept(4)
def unchanging(shape: torch.Size, device: torch.device) -> QKTransform:
    """A transform that leaves q and k as they are, bit for bit, for what norms and rotates whatever it is given: beside
    its eps no norm counts, and its weight is the eps's root, a power of 2. shape: q's, [batch, tokens, heads,
    head_dim]."""
    _, tokens, heads, head_dim = shape
    weight = torch.full((heads * head_dim,), 2.0**30, device=device)
    rope = torch.tensor([1.0, 0.0], device=device).expand(tokens, head_dim // 2, 2).contiguous()
    return QKTransform(weight, weight, 2.0**60, rope)


def prepare(x: Tensor, weight: Tensor, qk_transform: QKTransform) -> Tensor:
    """RMS norm over all heads, then rotation of the interleaved pairs (0, 1), (2, 3), …; float32 out."""
    normed = F.rms_norm(x.flatten(2).float(), (weight.numel(),), weight.float(), qk_transform.eps)
    even, odd = normed.unflatten(2, (x.shape[2], -1, 2)).unbind(-1)
    cos, sin = qk_transform.rope[:, None].unbind(-1)  # [tokens, 1, head_dim / 2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def prepared(q: Tensor, k: Tensor, dtype: torch.dtype, qk_transform: QKTransform) -> tuple[Tensor, Tensor]:
    """Both as `prepare` makes them, rounded to the dtype of attention."""
    q, k = prepare(q, qk_transform.norm_q, qk_transform), prepare(k, qk_transform.norm_k, qk_transform)
    return q.to(dtype), k.to(dtype)
