"""Who is compared: the fastest kernel is found by trying, named ones are put in, and taken out again."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from fpsgen.attention import dense
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.bench import lineup
from fpsgen.bench.dense_kernels import KERNELS, DenseKernel
from fpsgen.errors import RenderError
from fpsgen.request import Request, VideoPlan, resolve
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.weights.models import absent

CPU = torch.device("cpu")
MODEL = absent("1.3b")
PLAN = AttentionPlan(TileGrid((2, 4, 4), (1, 2, 2)))
REAL = DenseKernel.load


def qkv(tokens: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, tokens, 2, 16, generator=generator) for _ in range(3)]


def plan(rows: int, columns: int, guidance: float = 1.0) -> VideoPlan:
    """A video of one frame, and so many tokens."""
    settings = Settings(16 * columns, 16 * rows, 1, 8, 1, guidance, 3.0, "")
    return resolve(Request("", settings, 0, Path()), MODEL, Target(CPU, torch.float32, torch.float32))


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Kernels take so long; those that are not named cannot run."""

    def load(kernel: DenseKernel) -> dense.Kernel:
        if kernel.name not in seconds:
            raise ImportError(f"no {kernel.name} here")

        def slow(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            time.sleep(seconds[kernel.name])
            return dense.by_torch(q, k, v)

        return slow

    monkeypatch.setattr(DenseKernel, "load", load)


def replaced(monkeypatch: pytest.MonkeyPatch, function: dense.Kernel) -> None:
    """`function` in the place of torch's flash attention."""
    monkeypatch.setattr(DenseKernel, "load", lambda kernel: function if kernel.name == "sdpa-flash" else REAL(kernel))


def test_the_fastest_kernel_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, {"sdpa": 0.05, "sdpa-flash": 0.03, "sdpa-math": 0.08})
    tried = lineup.try_kernels(plan(8, 8, guidance=3.0))
    assert tried[0].name == "sdpa-flash"
    assert [one.name for one in tried if one.milliseconds] == ["sdpa-flash", "sdpa", "sdpa-math"]
    assert {one.name: one.why_not for one in tried}["fa3"] == "no fa3 here"


def test_a_kernel_that_computes_something_else_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, lambda q, k, v: 1.1 * v)
    tried = lineup.try_kernels(plan(8, 8))
    told = {one.name: one for one in tried}
    assert told["sdpa-flash"].milliseconds is None
    assert "its result is off by" in (told["sdpa-flash"].why_not or "")


def test_a_kernel_that_fails_at_the_true_size_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if q.shape[1] > 256:
            raise RuntimeError("No execution plans support the graph.")
        return dense.by_torch(q, k, v)

    replaced(monkeypatch, short)
    tried = lineup.try_kernels(plan(15, 20))
    assert tried[0].name != "sdpa-flash"
    told = {one.name: one for one in tried}["sdpa-flash"]
    assert (told.milliseconds, told.why_not) == (None, "RuntimeError: No execution plans support the graph.")
    monkeypatch.setattr(DenseKernel, "load", lambda kernel: short)
    with pytest.raises(RenderError, match="no dense attention of 300 tokens runs here: RuntimeError: No execution"):
        lineup.try_kernels(plan(15, 20))


def test_a_kernel_that_takes_the_device_with_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def illegal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if q.shape[1] > 256:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return dense.by_torch(q, k, v)

    replaced(monkeypatch, illegal)
    monkeypatch.setattr(lineup.machine, "is_alive", lambda device: False)
    with pytest.raises(RenderError, match=r"sdpa-flash .* illegal memory access"):
        lineup.try_kernels(plan(15, 20))


@pytest.mark.parametrize("name", ["sdpa", "sdpa-flash", "sdpa-math"])
def test_kernels_compute_dense_attention(name: str) -> None:
    expected = dense.attention(*qkv())
    with dense.using(KERNELS[name].load()):
        # Sums in another order: some units of the last place of float32.
        torch.testing.assert_close(dense.attention(*qkv(), PLAN), expected, rtol=1e-5, atol=1e-5)


def test_a_packages_kernel_takes_the_place_of_torchs_in_self_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def flash_attn_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        seen.append(tuple(q.shape))
        return dense.by_torch(q, k, v), "the logarithms"

    module = types.ModuleType("flash_attn_interface")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    with dense.using(KERNELS["fa3"].load()):
        dense.attention(*qkv(), PLAN)
        dense.attention(*qkv())  # cross-attention's
    assert seen == [(1, 32, 2, 16)]


def test_what_was_before_is_there_again_after_an_error() -> None:
    def nothing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(q)

    def fail() -> None:
        with dense.using(nothing):
            assert not dense.attention(*qkv(), PLAN).any()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert dense.attention(*qkv(), PLAN).all()
    with pytest.raises(ImportError):
        KERNELS["fa3"].load()


def test_why_a_kernel_cannot_run_here() -> None:
    assert KERNELS["sdpa-math"].refusal(CPU, torch.float32, 128) is None
    assert KERNELS["fa3"].refusal(CPU, torch.float32, 128) == "not installed"
    for name in ("flex", "sdpa-cudnn", "sdpa-efficient"):
        assert KERNELS[name].refusal(CPU, torch.float32, 128) == "it is for CUDA GPUs"
