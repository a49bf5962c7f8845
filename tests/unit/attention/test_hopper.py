"""The Hopper backend where there is none: what it refuses and why, its key lists, what it asks to be compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fpsgen.attention import door, hopper
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.qk import QKTransform
from fpsgen.attention.tiles import TileGrid, key_lists
from fpsgen.kernels import nvrtc

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TILES = TileGrid((2, 5, 9), (2, 3, 4))
EIGHT_BIT = AttentionPlan(TILES, ((1, 1, 1),), (), "int8", "fp8")
TOP = KeyTiles(top=0.5, rest="summary")


@pytest.fixture
def hopper_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As if a card of the right kind were here, and CuPy with it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    monkeypatch.setattr(nvrtc, "driver_version", lambda: (13, 0))
    for cached in (hopper.why_not_here, door.choose):
        cached.cache_clear()
    yield monkeypatch
    for cached in (hopper.why_not_here, door.choose):
        cached.cache_clear()


class Broken:
    """A package that fails while it is imported."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "cupy":
            raise ImportError("libcublas is missing")


def test_it_runs_8_bit_plans_on_hopper(hopper_card: pytest.MonkeyPatch) -> None:
    for qk in ("fp8", "int8"):
        plan = AttentionPlan(TILES, ((1, 1, 1), None, TOP), (0, 1, 2), qk, "fp8")  # type: ignore[arg-type]
        assert door.choose(CUDA, plan, 128).name == "hopper"
    assert door.choose(CUDA, AttentionPlan(TILES), 128).name == "dense"
    many = TileGrid((1, 1, 4098), (1, 1, 2))
    assert door.choose(CUDA, replace(EIGHT_BIT, tiles=many), 128).name == "hopper"  # windows are of any number of tiles


@pytest.mark.parametrize(
    ("plan", "head_dim", "told"),
    [
        (AttentionPlan(TILES, ((1, 1, 1),)), 128, "8 bits"),
        (AttentionPlan(TILES, qk="int8"), 128, "8 bits"),
        (AttentionPlan(TILES, pv="fp8"), 128, "8 bits"),
        (EIGHT_BIT, 64, "128 channels, not 64"),
        (AttentionPlan(TileGrid((4, 8, 8), (3, 7, 7)), qk="fp8", pv="fp8"), 128, "128 tokens at most, not 147"),
        (replace(EIGHT_BIT, tiles=TileGrid((1, 1, 4098), (1, 1, 2)), seen=(TOP,)), 128, "2048 tiles at most, not 2049"),
    ],
)
def test_plans_that_it_refuses(hopper_card: pytest.MonkeyPatch, plan: AttentionPlan, head_dim: int, told: str) -> None:
    assert told in str(hopper.why_not(CUDA, plan, head_dim))


def test_machines_that_it_refuses(hopper_card: pytest.MonkeyPatch) -> None:
    def reason(device: torch.device = CUDA) -> str:
        hopper.why_not_here.cache_clear()
        return str(hopper.why_not(device, EIGHT_BIT, 128))

    assert reason() == "None"
    assert "CUDA GPUs" in reason(CPU)
    with hopper_card.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert "no CUDA GPU" in reason()
    for capability in ((8, 9), (10, 0)):
        with hopper_card.context() as patch:
            patch.setattr(torch.cuda, "get_device_capability", lambda device, own=capability: own)
            assert "Hopper (sm_90a, compute capability 9.0), not {}.{}".format(*capability) in reason()
    with hopper_card.context() as patch:
        patch.setitem(sys.modules, "cupy", None)
        assert 'pip install "fpsgen[cuda13]"' in reason()
    with hopper_card.context() as patch:
        patch.delitem(sys.modules, "cupy")
        patch.setattr(sys, "meta_path", [Broken()])
        assert "CuPy cannot be used: ImportError: libcublas is missing" in reason()
    with hopper_card.context() as patch:
        patch.setattr(nvrtc, "driver_version", lambda: (12, 8))
        patch.setattr(nvrtc, "version", lambda: (13, 0))
        assert "NVRTC belongs to CUDA 13, the driver runs CUDA 12" in reason()
    with hopper_card.context() as patch:
        patch.setattr(nvrtc, "wheel_folder", lambda wheel: None)
        patch.setattr(nvrtc.ctypes.util, "find_library", lambda name: None)
        for cached in (nvrtc.library, nvrtc.version):
            cached.cache_clear()
        assert "NVRTC, which compiles kernels, is not installed" in reason()
    for cached in (nvrtc.library, nvrtc.version):
        cached.cache_clear()


def test_lists_of_all_windows_are_one_table() -> None:
    tiles = TileGrid((3, 5, 7), (1, 1, 1))
    windows = ((1, 3, 3), None, (3, 1, 5))
    plan = AttentionPlan(tiles, windows, (1, 0, 2, 0), "fp8", "fp8")
    lists = hopper.device_lists(plan, 4, CPU)
    row_ptr, cols, list_of = (lists[name] for name in ("row_ptr", "cols", "list_of"))
    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in (row_ptr, cols, list_of))
    assert list_of.shape == (4, len(tiles.valid))
    for head, index in enumerate(plan.heads):
        for tile, own in enumerate(list_of[head].tolist()):
            if windows[index] is None:
                assert own == -1
                continue
            lists_of_window = key_lists(tiles, windows[index])
            expected = lists_of_window.split()[lists_of_window.list_of[tile]]
            assert cols[row_ptr[own] : row_ptr[own + 1]].tolist() == expected.tolist()


def test_what_heads_have_and_their_order() -> None:
    """Those with most key tiles first, a summary's among them; of equal ones in their own order."""
    tiles = TileGrid((3, 5, 9), (1, 1, 1))  # 135 tiles: two summary tiles
    seen = ((1, 3, 3), KeyTiles(top=0.1), KeyTiles((1, 3, 3), rest="summary"), None)
    plan = AttentionPlan(tiles, seen, (0, 1, 2, 3, 1), "fp8", "fp8")
    lists = hopper.device_lists(plan, 5, CPU)
    assert lists["counts"].tolist() == [9, 14, 9, 135, 14]
    assert lists["summaries"].tolist() == [0, 0, 2, 0, 0]
    assert lists["order"].tolist() == [3, 1, 4, 2, 0]


def test_what_a_schedule_compiles(hopper_card: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hopper_card.setenv("FPSGEN_CACHE_DIR", str(tmp_path))
    listed: list[AttentionPlan] = []  # there is no device to bring lists to
    hopper_card.setattr(hopper, "device_lists", lambda plan, heads, device: listed.append(plan))
    hopper_card.setattr(hopper, "device_offsets", lambda tiles, device: None)
    dense, other = AttentionPlan(TILES), replace(EIGHT_BIT, seen=(None,))
    built = door.make_ready(CUDA, [dense, EIGHT_BIT, other, EIGHT_BIT], 2, 128)
    assert [(kernel.name, kernel.fresh) for kernel in built] == [("sm90_prologue", True), ("sm90_attention", True)]
    assert listed == [EIGHT_BIT, other]
    assert not any(kernel.fresh for kernel in door.make_ready(CUDA, [EIGHT_BIT], 2, 128))
    names = [(kernel.name, kernel.fresh) for kernel in door.make_ready(CUDA, [replace(EIGHT_BIT, seen=(TOP,))], 2, 128)]
    assert names == [("sm90_prologue", True), ("sm90_attention", False), ("sm90_select", True)]
    assert door.make_ready(CPU, [EIGHT_BIT], 2, 128) == []


def test_gradients_are_refused() -> None:
    x = torch.zeros(1, TILES.tokens, 1, 128, requires_grad=True)
    transform = QKTransform(torch.ones(128), torch.ones(128), 1e-6, torch.zeros(TILES.tokens, 64, 2))
    with pytest.raises(NotImplementedError, match="no gradients"):
        hopper.attention(x, x, x, transform, EIGHT_BIT)


@pytest.mark.parametrize(
    ("what", "shape"),
    [("k", (1, 9, 2, 128)), ("v", (1, 90, 1, 128)), ("norm_q", (128,)), ("rope", (5, 64, 2))],
)
def test_shapes_that_a_kernel_would_read_beyond(what: str, shape: tuple[int, ...]) -> None:
    x = torch.zeros(1, TILES.tokens, 2, 128)
    given = {"q": x, "k": x, "v": x, "norm_q": torch.ones(256), "norm_k": torch.ones(256)}
    given |= {"rope": torch.zeros(TILES.tokens, 64, 2), what: torch.zeros(shape)}
    transform = QKTransform(given["norm_q"], given["norm_k"], 1e-6, given["rope"])
    with pytest.raises(ValueError, match=f"{what} is .* is wanted"):
        hopper.attention(given["q"], given["k"], given["v"], transform, EIGHT_BIT)


def test_gradients_of_the_norms_are_refused() -> None:
    x = torch.zeros(1, TILES.tokens, 1, 128)
    transform = QKTransform(torch.ones(128, requires_grad=True), torch.ones(128), 1e-6, torch.zeros(90, 64, 2))
    with pytest.raises(NotImplementedError, match="no gradients"):
        hopper.attention(x, x, x, transform, EIGHT_BIT)


def test_amd_is_no_hopper(hopper_card: pytest.MonkeyPatch) -> None:
    """gfx90a calls itself 9.0, too."""
    hopper_card.setattr(torch.version, "hip", "6.2")
    hopper.why_not_here.cache_clear()
    assert "NVIDIA" in str(hopper.why_not(CUDA, EIGHT_BIT, 128))
