"""Compiled kernels on a card: loaded once for each device, launched on torch's current stream.

CuPy loads and launches; memory is torch's alone. Parameters are one struct, passed by value.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fpsgen.kernels.cache import Kernel, build

if TYPE_CHECKING:
    from collections.abc import Mapping


def packed(layout: np.dtype, values: Mapping[str, Tensor | float]) -> np.ndarray:
    """A kernel's parameters, `layout` being its struct: tensors by address, numbers as they are."""
    struct = np.zeros((), layout)
    for name in layout.names or ():
        value = values[name]
        if isinstance(value, Tensor) and not value.is_contiguous():
            raise ValueError(f"parameter {name} is not contiguous")
        struct[name] = value.data_ptr() if isinstance(value, Tensor) else value
    return struct


def launch(kernel: Kernel, function: str, blocks: int, parameters: np.ndarray, device: torch.device) -> None:
    """Run `blocks` blocks of one of a kernel's entry functions; CompileError where it does not compile.

    `device` must be a CUDA device with an index. Returns before the kernel has run, as torch's own operators do.
    """
    import cupy

    # CuPy keeps its own notion of the current device, which decides where a module is loaded.
    with torch.cuda.device(device), cupy.cuda.Device(device.index):
        entry = loaded(kernel, function, device.index)
        stream = SimpleNamespace(ptr=torch.cuda.current_stream(device).cuda_stream)  # all that CuPy reads of one
        entry((blocks,), (kernel.THREADS,), (parameters,), shared_mem=kernel.shared_bytes, stream=stream)


@cache
def loaded(kernel: Kernel, function: str, device_index: int) -> Any:
    """An entry function on the current device, as CuPy has it."""
    entry = module(kernel, device_index).get_function(function)
    if kernel.shared_bytes:  # more than 48 KB must be asked for
        entry.max_dynamic_shared_size_bytes = kernel.shared_bytes
    return entry


@cache
def module(kernel: Kernel, device_index: int) -> Any:
    """A kernel's file on the current device."""
    import cupy

    return cupy.RawModule(path=str(build(kernel).cubin))
