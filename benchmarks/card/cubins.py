"""A cubin that is no kernel of the product's: compiled as those are, loaded by CuPy, launched on torch's stream."""

from __future__ import annotations

import hashlib
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from fpsgen.kernels.cache import checked, sources

OPTIONS = ("-arch=sm_90a", "-std=c++17", "--ptxas-options=-v")


def compiled(path: Path, more: str = "", **headers: str) -> bytes:
    """A source of this folder, with `more` behind it, and headers by their names without .cuh; CompileError where an
    entry spills registers, or wgmma is serialised."""
    _, own = sources("sm90_attention")
    included = own | {f"{name}.cuh": text for name, text in headers.items()}
    return checked(path.stem, "sm_90a", path.read_text(encoding="utf-8") + more, included, OPTIONS)[0]


def loaded(cubin: bytes) -> Any:
    """On the current device, as CuPy has it: which loads the file at the first look for a function, and knows it by its
    path from then on."""
    import cupy

    path = Path(_folder().name) / f"{hashlib.sha256(cubin).hexdigest()}.cubin"
    path.write_bytes(cubin)
    return cupy.RawModule(path=str(path))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes when this process ends."""
    return tempfile.TemporaryDirectory(prefix="fpsgen-card-")


def call(function: Any, blocks: int, threads: int, parameters: np.ndarray, shared_bytes: int = 0) -> None:
    """Launch an entry function; returns before it has run."""
    import torch

    stream = SimpleNamespace(ptr=torch.cuda.current_stream().cuda_stream)
    if shared_bytes:
        function.max_dynamic_shared_size_bytes = shared_bytes
    function((blocks,), (threads,), (parameters,), shared_mem=shared_bytes, stream=stream)
