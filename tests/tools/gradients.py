"""Gradients of attention over lists that are constants, and over a summary, by autograd through the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fpsgen.attention import reference
from fpsgen.attention.plan import AttentionPlan


def over_constant_lists(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, ...]:
    """Of the sum of squares of the result, for q, k and v, of a plan whose heads all see the same."""
    # The reference changes scores in place, which autograd does not allow.
    monkeypatch.setattr(
        reference,
        "softmax_mean",
        lambda q, k, v, plan, added: (q @ k.mT / q.shape[-1] ** 0.5 + added).softmax(-1) @ v,
    )
    (seen,) = plan.key_tiles
    lists = reference.key_tiles(q, k, seen, plan.tiles)
    rest = reference.summary(k, v, plan) if seen.rest == "summary" else None
    out = reference.over_lists(*(x.transpose(1, 2) for x in (q, k, v)), lists, rest, plan)
    return torch.autograd.grad(out.square().sum(), (q, k, v))
