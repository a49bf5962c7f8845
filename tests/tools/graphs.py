"""CUDA graphs without CUDA: what is captured runs again at each replay, and what a capture forbids fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_WAITS = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.item, aten.masked_select, aten.nonzero,
    aten.unique_dim, aten._unique2,
}  # fmt: skip
_COPIES = {aten._to_copy, aten.copy_}


class Capturing(TorchDispatchMode):
    """Fails for what waits for the device, and what goes from one device to another; numbers of no dimension may come
    from the host, as arguments of kernels do."""

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, given = func.overloadpacket, _tensors((args, kwargs))
        if kind in _WAITS and self._device in {x.device for x in given}:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        out = func(*args, **(kwargs or {}))
        tensors = [*given, *_tensors(out)]
        devices = {x.device for x in tensors if x.dim() or kind in _COPIES}
        if self._device in devices and len(devices) > 1:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


class Recorder:
    """In the place of `graphs.on_cuda`. events: "capture" and "replay" in their order. Results of all other graphs are
    lost at each replay, as in memory that they share; a capture alone computes nothing. fails: at which capture."""

    def __init__(self, fails: int | None = None):
        self.events: list[str] = []
        self._results: list[Tensor] = []
        self.fails = fails

    def __call__(self, device: torch.device) -> Callable[..., Any]:
        def capture(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
            self.events.append("capture")
            with Capturing(device):
                result = work().fill_(torch.nan)
            if self.events.count("capture") == self.fails:
                try:
                    raise RuntimeError("the first cause\nand more of it")
                finally:
                    raise RuntimeError("the capture is invalid")
            self._results.append(result)

            def replay() -> None:
                self.events.append("replay")
                with Capturing(device):
                    values = work()
                for other in self._results:
                    other.fill_(torch.nan)
                result.copy_(values)

            return replay, result

        return capture
