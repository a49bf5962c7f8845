"""What CuPy is asked for, by a stand-in that writes it down: neither it nor a card is needed here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fpsgen.kernels import launch, sm90_attention, sm90_prologue
from fpsgen.kernels.launch import packed

CUDA = torch.device("cuda", 1)


class Entry:
    """A kernel's entry function as CuPy gives it."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        self.max_dynamic_shared_size_bytes = 0
        self.calls: list[tuple[tuple, dict]] = []

    def __call__(self, *positional: Any, **named: Any) -> None:
        self.calls.append((positional, named))


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Entry]]:
    """Every entry function that is loaded."""
    seen: list[Entry] = []

    class RawModule:
        def __init__(self, *, path: str) -> None:
            self.path = path

        def get_function(self, name: str) -> Entry:
            seen.append(Entry(self.path, name))
            return seen[-1]

    cupy: Any = ModuleType("cupy")
    cupy.RawModule = RawModule
    cupy.cuda = SimpleNamespace(Device=lambda index: contextlib.nullcontext(index))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0x51))
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path))
    for cached in (launch.loaded, launch.module):
        cached.cache_clear()
    yield seen
    for cached in (launch.loaded, launch.module):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("kernel", "function", "threads", "layout"),
    [
        (sm90_attention.VARIANTS["fp8-fp16"], "fps_attention", 384, sm90_attention.PARAMETERS),
        (sm90_prologue.VARIANTS["fp8-fp16"], "fps_rows", 256, sm90_prologue.PARAMETERS),
    ],
)
def test_a_launch(entries: list[Entry], kernel: Any, function: str, threads: int, layout: np.dtype) -> None:
    parameters = np.zeros((), layout)
    launch.launch(kernel, function, 7, parameters, CUDA)
    launch.launch(kernel, function, 8, parameters, CUDA)
    (entry,) = entries  # loaded once
    assert entry.name == function
    assert Path(entry.path).read_bytes()[:4] == b"\x7fELF"
    assert entry.max_dynamic_shared_size_bytes == kernel.shared_bytes
    assert [grid for (grid, _, _), _ in entry.calls] == [(7,), (8,)]
    (_, block, (given,)), named = entry.calls[0]
    assert block == (threads,)
    assert given is parameters
    assert given.size == 1  # what CuPy passes by value
    assert named["shared_mem"] == kernel.shared_bytes
    assert named["stream"].ptr == 0x51


def test_shared_memory_fits() -> None:
    """227 KB is what a block of an H100 may have."""
    assert all(48 * 1024 < kernel.shared_bytes <= 227 * 1024 for kernel in sm90_attention.VARIANTS.values())


def test_parameters_by_name() -> None:
    layout = np.dtype([("x", np.uint64), ("count", np.int32), ("eps", np.float32)], align=True)
    x = torch.zeros(3)
    struct = packed(layout, {"eps": 0.5, "x": x, "count": 3, "unused": 1})
    assert (int(struct["x"]), int(struct["count"]), float(struct["eps"])) == (x.data_ptr(), 3, 0.5)
    with pytest.raises(KeyError, match="count"):
        packed(layout, {"x": x, "eps": 1.0})
    with pytest.raises(ValueError, match="x is not contiguous"):
        packed(layout, {"x": torch.zeros(4, 4).T, "count": 0, "eps": 0})
