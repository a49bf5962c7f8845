"""sm90_attention.cu, run on a CPU, against the emulator on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from fpsgen.attention.emulator import VARIANTS, emulate
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Shape3, TileGrid
from tests.kernels import host
from tests.kernels.host import Schedule

RAGGED = TileGrid((2, 5, 9), (2, 3, 4))  # 1 x 2 x 3 tiles of 4 to 24 tokens
GRIDS = {
    "ragged": RAGGED,
    "of 120": TileGrid((3, 10, 16), (3, 5, 8)),
    "full": TileGrid((2, 8, 24), (2, 8, 8)),
}
SCHEDULES = {
    "random": Schedule(),
    "late copies": Schedule(seed=1, late="copies"),
    "late wgmmas": Schedule(seed=2, late="wgmmas"),
}
TOLERANCE = 3e-3  # both round the result to bfloat16; a code of P beside a tie may differ


def random_qkv(tiles: TileGrid, heads: int = 2, batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tiles.tokens + heads)
    q, k, v = (torch.randn(batch, tiles.tokens, heads, 128, generator=generator) for _ in range(3))
    return [2 * q, k + 0.5, v + 0.3]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def plan_for(name: str, tiles: TileGrid, windows: tuple[Shape3 | None, ...] = (None,), **more: object) -> AttentionPlan:
    return AttentionPlan(tiles, windows, qk=VARIANTS[name].qk, pv="fp8", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dense(name: str, grid: str, schedule: str) -> None:
    tiles = GRIDS[grid]
    q, k, v = random_qkv(tiles)
    plan = plan_for(name, tiles)
    found = host.attention(q, k, v, plan, name, schedule=SCHEDULES[schedule])
    assert error(found, emulate(q, k, v, plan, VARIANTS[name])) < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_windows_by_head_over_a_batch(name: str) -> None:
    """Two batch entries; one head dense, one with a window, one with lists of one tile."""
    q, k, v = random_qkv(RAGGED, heads=3, batch=2)
    plan = plan_for(name, RAGGED, ((1, 1, 3), None, (1, 1, 1)), heads=(2, 0, 1))
    found = host.attention(q, k, v, plan, name, blocks=5)
    assert error(found, emulate(q, k, v, plan, VARIANTS[name])) < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("schedule", "lengths"),
    [("random", range(1, 13)), ("late copies", (1, 2, 5, 8)), ("late wgmmas", (1, 3, 6))],
    ids=SCHEDULES,
)
def test_list_lengths(name: str, schedule: str, lengths: Iterable[int]) -> None:
    """Through the ring of stages once, twice, three times, and every remainder of a promotion."""
    for length in lengths:
        # The odd lengths are windows of a longer line, but for every other; even ones are whole lines.
        count = length + 1 if length % 4 == 1 else length
        tiles = TileGrid((1, 1, count), (1, 1, 1))
        q, k, v = random_qkv(tiles, heads=1)
        plan = plan_for(name, tiles, (tiles.fit((1, 1, length)),))
        found = host.attention(q, k, v, plan, name, blocks=2, schedule=SCHEDULES[schedule])
        assert error(found, emulate(q, k, v, plan, VARIANTS[name])) < TOLERANCE, length


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_far_below_zero(name: str) -> None:
    """Empty slots of a tile have score 0: as a row's maximum that would leave nothing of P."""
    q, k, v = random_qkv(RAGGED)
    plan = plan_for(name, RAGGED, smooth_k=False)
    found = host.attention(q + 2, k - 2, v, plan, name)
    assert error(found, emulate(q + 2, k - 2, v, plan, VARIANTS[name])) < TOLERANCE


def test_any_number_of_blocks_is_the_same() -> None:
    q, k, v = random_qkv(RAGGED)
    plan = plan_for("C", RAGGED)
    first, *others = (host.attention(q, k, v, plan, "C", blocks=blocks) for blocks in (1, 4, 12, 20))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", VARIANTS)
def test_sums_of_13_bits(name: str) -> None:
    tiles = GRIDS["full"]
    q, k, v = random_qkv(tiles, heads=1)
    plan = plan_for(name, tiles)
    found = host.attention(q, k, v, plan, name, schedule=Schedule(accumulator_bits=13))
    expected = emulate(q, k, v, plan, VARIANTS[name], accumulator_bits=13)
    assert error(found, expected) < TOLERANCE


def test_the_same_bits_every_time() -> None:
    q, k, v = random_qkv(RAGGED)
    plan = plan_for("E", RAGGED, ((1, 1, 3),))
    lates = ("nothing", "nothing", "copies", "wgmmas")
    found = [host.attention(q, k, v, plan, "E", schedule=Schedule(i, late)) for i, late in enumerate(lates)]
    assert all(torch.equal(found[0], other) for other in found[1:])
