"""The one door to self-attention, and the choice of what runs behind it.

Tokens come in tile order; q and k come *before* normalisation and RoPE, so that a backend can fuse both
into its own prologue (`hopper`). Those that do not fuse share `qk.prepare`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from fpsgen.attention import coarse, dense, differentiable, flex, hopper, reference
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.qk import QKTransform, prepared, unchanging
from fpsgen.kernels.cache import Built


class Backend(Protocol):
    """The functions that each backend's module has."""

    def why_not(self, device: torch.device, plan: AttentionPlan, head_dim: int) -> str | None:
        """Why the backend cannot run `plan` on `device`; None if it can."""
        ...


class PreparedBackend(Backend, Protocol):
    """A backend that takes q and k as `prepare` makes them. Tensors are [batch, tokens, heads, head_dim]."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor: ...

    def make_ready(self, plan: AttentionPlan, device: torch.device) -> None:
        """Make, and keep, what depends on the plan alone."""
        ...


_PREPARED: dict[str, PreparedBackend] = {"dense": dense, "flex": flex, "reference": reference}

# In the order of preference. The last one runs everything.
BACKENDS: dict[str, Backend] = {"dense": dense, "hopper": hopper, "flex": flex, "reference": reference}


@dataclass(frozen=True)
class Choice:
    """The backend that runs a plan, and why each backend before it in the order of preference could not."""

    name: str
    refused: tuple[tuple[str, str], ...]


def display_name(backend: str) -> str:
    """A backend's name as people read it, since plans are called dense, too."""
    return "torch's SDPA" if backend == "dense" else backend


@lru_cache(maxsize=1024)
def choose(device: torch.device, plan: AttentionPlan, head_dim: int) -> Choice:
    """The first backend that can run `plan` on `device`."""
    refused: list[tuple[str, str]] = []
    for name, backend in BACKENDS.items():
        if (reason := backend.why_not(device, plan, head_dim)) is None:
            return Choice(name, tuple(refused))
        refused.append((name, reason))
    raise AssertionError("the reference runs every plan")


def make_ready(device: torch.device, plans: Iterable[AttentionPlan], heads: int, head_dim: int) -> list[Built]:
    """Make what `attend` will need for `plans`, so that no layer waits for it: key lists on the device, and our
    kernels, compiled; not FlexAttention, which torch compiles when it first runs."""
    ours = []
    for plan in dict.fromkeys(plans):
        if (name := choose(device, plan, head_dim).name) == "hopper":
            ours.append(plan)
        else:
            _PREPARED[name].make_ready(plan, device)
    return hopper.make_ready(ours, heads, device)


def attend(
    q: Tensor, k: Tensor, v: Tensor, qk_transform: QKTransform | None, plan: AttentionPlan, gate: Tensor | None = None
) -> Tensor:
    """Self-attention; q, k, v and the result are [batch, tokens, heads, head_dim], rows in tile order. gate: of the
    same shape, what attention from tile to tile (`coarse`) is multiplied with before it is added; None adds nothing.
    Without a transform q and k come after norm and RoPE, in v's dtype."""
    if q.shape[1] != plan.tiles.tokens:
        raise ValueError(f"{q.shape[1]} tokens do not fill the plan's grid {plan.tiles.grid}")
    if plan.heads and len(plan.heads) != q.shape[2]:
        raise ValueError(f"the plan is for {len(plan.heads)} heads, not for {q.shape[2]}")
    given = (q, k, v) if qk_transform is None else (q, k, v, qk_transform.norm_q, qk_transform.norm_k)
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    name = choose(q.device, plan, q.shape[3]).name
    with torch.autocast(q.device.type, enabled=False):  # training's: what is rounded to 8 bits is float32 before
        if fused := name == "hopper" and not trains:  # its prologue norms and rotates
            out = hopper.attention(q, k, v, qk_transform or unchanging(q.shape, q.device), plan)
            if gate is None:
                return out
        if qk_transform is not None:
            q, k = prepared(q, k, v.dtype, qk_transform)
        if not fused:
            out = (differentiable if trains else _PREPARED[name]).attention(q, k, v, plan)
        return out if gate is None else out + gate * coarse.attention(q, k, v, plan.tiles)
