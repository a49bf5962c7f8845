"""Self-attention with gradients, for training: what a plan computes at inference is computed here, too.

Gradients pass the rounding of q, k, v, means and P straight through, but for a value that saturates (`quantize`).
Scales, and key tiles chosen by content, are constants. Through the mean that k loses, and the means of a summary,
gradients are exact.

On a CPU the reference computes plan and gradients. On a GPU FlexAttention does, which does not round P: that is the
one difference from inference.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fpsgen.attention import dense, flex, reference
from fpsgen.attention.plan import AttentionPlan


def attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """q, k, v and the result [batch, tokens, heads, head_dim], rows in tile order."""
    if dense.why_not(q.device, plan, q.shape[3]) is None:
        return dense.attention(q, k, v, plan)
    blocks = flex.why_not(q.device, replace(plan, qk="bf16", pv="bf16"), q.shape[3]) is None
    return (flex if blocks else reference).attention(q, k, v, plan)
