"""Dense attention, not rounded: every device, the yardstick.

torch's scaled_dot_product_attention computes it, by the kernel that torch chooses. A measurement may put another
function in its place (`using`); nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen.attention.plan import AttentionPlan

# q, k, v to the result, all [batch, tokens, heads, head_dim].
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def why_not(device: torch.device, plan: AttentionPlan, head_dim: int) -> str | None:
    """Why this backend cannot run `plan` on `device`."""
    if not plan.is_dense:
        return "it computes every pair of tokens, and the plan is sparse"
    return "it does not round to 8 bits" if plan.is_8bit else None


def make_ready(plan: AttentionPlan, device: torch.device) -> None:
    """There is nothing to make."""


def attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan | None = None) -> Tensor:
    """softmax(q kᵀ / √head_dim) v over [batch, tokens, heads, head_dim], any key length.

    plan: one that it can run; all of those are the same to it. None, as in cross-attention, is torch's kernel always.
    """
    return by_torch(q, k, v) if plan is None else _kernel(q, k, v)


def by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


_kernel: Kernel = by_torch


@contextmanager
def using(kernel: Kernel) -> Iterator[None]:
    """Let `kernel` compute all dense self-attention inside."""
    global _kernel
    before, _kernel = _kernel, kernel
    try:
        yield
    finally:
        _kernel = before
