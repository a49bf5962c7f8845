"""Dense attention, not rounded: every device, the yardstick.

torch's scaled_dot_product_attention computes it, by the kernel that torch chooses. To compare with others, `using` puts
one of `named.KERNELS` in its place; nothing but a measurement does.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpsgen.attention.named import ON_CUDA, PACKAGES, ROUNDS, SDPA, TORCHS
from fpsgen.attention.plan import AttentionPlan

# q, k, v to the result, all [batch, tokens, heads, head_dim].
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

_TRIED = 256  # tokens
_MOST_SCORES = 2**33  # bytes of a whole score matrix

_kernel: Kernel | None = None


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
    if plan is not None and _kernel is not None:
        return _kernel(q, k, v)
    return by_torch(q, k, v)


def by_torch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


@contextmanager
def using(name: str) -> Iterator[None]:
    """Let the kernel of `named.KERNELS` called `name` compute all dense self-attention inside; ImportError where its
    package is absent."""
    global _kernel
    before, _kernel = _kernel, kernel(name)
    try:
        yield
    finally:
        _kernel = before


def kernel(name: str) -> Kernel:
    """One of `named.KERNELS`; ImportError where its package is absent, or does not have it."""
    if name == TORCHS:
        return by_torch
    if name == "flex":
        from fpsgen.attention import flex

        return lambda q, k, v: flex.by_blocks(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    if name in SDPA:

        def one_backend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(getattr(SDPBackend, SDPA[name])):
                return by_torch(q, k, v)

        return one_backend
    module, function = PACKAGES[name]
    try:
        call = getattr(importlib.import_module(module), function)
    except AttributeError:
        raise ImportError(f"this {module} has no {function}") from None

    def of_package(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = call(q, k, v, tensor_layout="NHD") if name == "sage" else call(q, k, v)
        return found[0] if isinstance(found, tuple) else found  # some versions tell the denominators' logarithms, too

    return of_package


def too_large(name: str, batch: int, heads: int, tokens: int) -> str | None:
    """Why a kernel is not tried at a size: one of them holds all scores, of 32 bits each, at once."""
    whole = 4.0 * batch * heads * tokens**2
    if name != "sdpa-math" or whole <= _MOST_SCORES:
        return None
    return f"left out: it holds the whole score matrix, {1e-9 * whole:.3g} GB"


def refusal(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel called `name` cannot run here, found by trying it on a few tokens; None where it can.

    torch says the reasons in warnings, and raises something general.
    """
    if name in ON_CUDA and device.type != "cuda":
        return "it is for CUDA GPUs"
    generator = torch.Generator("cpu").manual_seed(0)
    q, k, v = (torch.randn(1, _TRIED, 2, head_dim, generator=generator).to(device, dtype) for _ in range(3))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = kernel(name)(q, k, v).float()
        except ImportError as missing:
            return "not installed" if isinstance(missing, ModuleNotFoundError) else str(missing)
        except Exception as fault:  # whatever a foreign kernel raises
            told = [str(one.message) for one in heard] or [f"{type(fault).__name__}: {fault}"]
            return " ".join("; ".join(told).split())[:300]
    off = (found - by_torch(q, k, v).float()).norm() / found.norm()
    # bfloat16 results differ in their last bit, 2^-9; sage's 8 bits by some percent.
    limit = 0.1 if name in ROUNDS else 2e-2
    return None if off <= limit else f"its result is off by {float(off):.2g}"
