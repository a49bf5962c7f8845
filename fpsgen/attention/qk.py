"""Between the projections and attention: norm and RoPE of q and k (Wan2.1 `wan/modules/model.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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


def prepare(x: Tensor, weight: Tensor, qk_transform: QKTransform) -> Tensor:
    """RMS norm over all heads, then rotation of the interleaved pairs (0, 1), (2, 3), …; float32 out."""
    normed = F.rms_norm(x.flatten(2).float(), (weight.numel(),), weight.float(), qk_transform.eps)
    even, odd = normed.unflatten(2, (x.shape[2], -1, 2)).unbind(-1)
    cos, sin = qk_transform.rope[:, None].unbind(-1)  # [tokens, 1, head_dim / 2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
