"""Kernels for dense attention, to compare with: torch's own, FlexAttention, those of other projects.

They are known by name before torch is loaded. The first is torch's own choice among its kernels.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fpsgen.attention.dense import Kernel

_TRIED = 256  # tokens
_MOST_SCORES = 2**33  # bytes of a whole score matrix


@dataclass(frozen=True)
class DenseKernel:
    """backend: of torch's own, its name in `torch.nn.attention.SDPBackend`. package: of another project's, the module
    and the function, which takes [batch, tokens, heads, head_dim]. cuda: runs on CUDA GPUs alone; where torch compiles
    flex for a CPU, that takes minutes. rounds: to 8 bits, so that it is comparable and no yardstick."""

    name: str
    backend: str | None = None
    package: tuple[str, str] | None = None
    cuda: bool = False
    rounds: bool = False

    def load(self) -> Kernel:
        """The function; ImportError where its package is absent, or does not have it."""
        from fpsgen.attention import dense, flex

        if self.package:
            return self._of_package(*self.package)
        if self.name == "flex":
            return lambda *qkv: flex.by_blocks(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)
        return dense.by_torch if self.backend is None else self._one_of_torch

    def _one_of_torch(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        from fpsgen.attention import dense

        with sdpa_kernel(getattr(SDPBackend, str(self.backend))):
            return dense.by_torch(q, k, v)

    def _of_package(self, module: str, function: str) -> Kernel:
        try:
            call = getattr(importlib.import_module(module), function)
        except AttributeError:
            raise ImportError(f"this {module} has no {function}") from None
        more = {"tensor_layout": "NHD"} if self.name == "sage" else {}

        def kernel(q: Tensor, k: Tensor, v: Tensor) -> Any:
            out = call(q, k, v, **more)
            return out[0] if isinstance(out, tuple) else out  # some versions return the logarithms of the sums, too

        return kernel

    def too_large(self, batch: int, heads: int, tokens: int) -> str | None:
        """Why it is not tried at a size: one of them holds all scores, of 32 bits each, at once."""
        whole = 4.0 * batch * heads * tokens**2
        if self.backend != "MATH" or whole <= _MOST_SCORES:
            return None
        return f"left out: it holds the whole score matrix, {1e-9 * whole:.3g} GB"

    def refusal(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why it cannot run here, found by trying it on a few tokens; None where it can.

        torch gives the reasons in warnings, and raises something general.
        """
        import torch

        from fpsgen.attention import dense

        if self.cuda and device.type != "cuda":
            return "it is for CUDA GPUs"
        generator = torch.Generator("cpu").manual_seed(0)
        q, k, v = (torch.randn(1, _TRIED, 2, head_dim, generator=generator).to(device, dtype) for _ in range(3))
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                out = self.load()(q, k, v).float()
            except ModuleNotFoundError:
                return "not installed"
            except ImportError as fault:
                return str(fault)
            except Exception as fault:  # whatever a foreign kernel raises
                reasons = [str(one.message) for one in heard] or [f"{type(fault).__name__}: {fault}"]
                return " ".join("; ".join(reasons).split())[:300]
        off = (out - dense.by_torch(q, k, v).float()).norm() / out.norm()
        # bfloat16 results differ in their last bit, 2^-9; those of 8 bits by some percent.
        return None if off <= (0.1 if self.rounds else 2e-2) else f"its result is off by {float(off):.2g}"


KERNELS = {
    kernel.name: kernel
    for kernel in (
        DenseKernel("sdpa"),
        DenseKernel("sdpa-flash", "FLASH_ATTENTION"),
        DenseKernel("sdpa-cudnn", "CUDNN_ATTENTION", cuda=True),
        DenseKernel("sdpa-efficient", "EFFICIENT_ATTENTION", cuda=True),
        DenseKernel("sdpa-math", "MATH"),
        DenseKernel("flex", cuda=True),
        DenseKernel("fa2", package=("flash_attn", "flash_attn_func")),
        DenseKernel("fa3", package=("flash_attn_interface", "flash_attn_func")),
        DenseKernel("fa4", package=("flash_attn.cute", "flash_attn_func")),
        DenseKernel("sage", package=("sageattention", "sageattn"), rounds=True),
    )
}
