"""Dense attention by torch's scaled_dot_product_attention: exact, every device, the yardstick."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen.attention.plan import AttentionPlan


def why_not(device: torch.device, plan: AttentionPlan, head_dim: int) -> str | None:
    """Why this backend cannot run `plan` on `device`."""
    if not plan.is_dense:
        return "it computes every pair of tokens, and the plan is sparse"
    return "it does not round to 8 bits" if plan.is_8bit else None


def make_ready(plan: AttentionPlan, device: torch.device) -> None:
    """There is nothing to make."""


def attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None = None) -> Tensor:
    """softmax(q kᵀ / √head_dim) v over [batch, tokens, heads, head_dim], any key length.

    plan: one that it can run; all of those are the same to it.
    """
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)
