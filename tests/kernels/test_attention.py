"""sm90_attention.cu, run on a CPU, against the emulator on the same inputs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from fpsgen.attention import select
from fpsgen.attention.emulator import VARIANTS, emulate
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.sums import EXACT
from fpsgen.attention.tiles import Shape3, TileGrid
from fpsgen.kernels import sm90_attention as kernels
from tests.kernels import host
from tests.kernels.cases import GRIDS, MANY, MIXED, RAGGED, assert_near, line, mostly, plan_for, random_qkv
from tests.kernels.host import Schedule

Case = tuple[tuple[Tensor, Tensor, Tensor], AttentionPlan, Tensor]  # q, k and v, and what the emulator makes of them
SCHEDULES = {
    "random": Schedule(),
    "late copies": Schedule(seed=1, late="copies"),
    "late wgmmas": Schedule(seed=2, late="wgmmas"),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("grid", "schedule"),
    mostly(product(GRIDS, SCHEDULES), *product(GRIDS, ["random"]), *product(["ragged", "full"], SCHEDULES)),
)
def test_dense(name: str, grid: str, schedule: str) -> None:
    (q, k, v), plan, expected = case(name, GRIDS[grid])
    assert_near(host.attention(q, k, v, plan, name, schedule=SCHEDULES[schedule]), expected)


@cache
def case(name: str, tiles: TileGrid, window: Shape3 | None = None, heads: int = 2) -> Case:
    """The same for all schedules: the emulator takes as long as the machine."""
    q, k, v = random_qkv(tiles, heads)
    plan = plan_for(name, tiles, (window,))
    return (q, k, v), plan, emulate(q, k, v, plan, VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_windows_by_head_over_a_batch(name: str) -> None:
    """Two batch entries; one head dense, one with a window, one with lists of one tile."""
    q, k, v = random_qkv(RAGGED, heads=3, batch=2)
    plan = plan_for(name, RAGGED, ((1, 1, 3), None, (1, 1, 1)), heads=(2, 0, 1))
    found = host.attention(q, k, v, plan, name, blocks=5)
    assert_near(found, emulate(q, k, v, plan, VARIANTS[name]))


def compare_lists(name: str, schedule: str, length: int, tokens: int = 120) -> None:
    (q, k, v), plan, expected = case(name, *line(length, tokens), heads=1)
    found = host.attention(q, k, v, plan, name, blocks=2, schedule=SCHEDULES[schedule])
    assert_near(found, expected, f"at length {length}")


@pytest.mark.parametrize(
    ("name", "schedule"),
    mostly(product(VARIANTS, SCHEDULES), ("int8-int32", "random"), ("fp8-fp16", "random")),
)
def test_list_lengths(name: str, schedule: str) -> None:
    """Through the ring of stages once, twice, three times, and every remainder of a promotion, by both consumers."""
    for length in (*range(1, 10), 12):
        compare_lists(name, schedule, length)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("schedule", ["late copies", "late wgmmas"])
def test_some_list_lengths_on_adversarial_machines(name: str, schedule: str) -> None:
    for length in (1, 2, 7, 12):
        compare_lists(name, schedule, length)


@pytest.mark.parametrize("length", [3, 6])
def test_list_lengths_with_one_row_for_the_second_consumer(length: int) -> None:
    """Tiles of 65 tokens: nearly half of the keys are masked, which only fp8-fp32 does."""
    compare_lists("fp8-fp32", "random", length, tokens=65)


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", ["fp8-fp32", "fp8-fp16"])
@pytest.mark.parametrize("schedule", mostly(SCHEDULES, "random"))
def test_fewer_stages(name: str, stages: int, schedule: str) -> None:
    """Which the host side accepts, though no variant has them."""
    fewer = replace(kernels.VARIANTS[name], STAGES=stages)
    with mock.patch.dict(kernels.VARIANTS, {name: fewer}):
        compare_lists(name, schedule, length=6)


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_far_below_zero(name: str) -> None:
    """Empty slots of a tile have score 0: as a row's maximum that would leave nothing of P."""
    q, k, v = random_qkv(RAGGED)
    plan = plan_for(name, RAGGED, smooth_k=False)
    found = host.attention(q + 2, k - 2, v, plan, name)
    assert_near(found, emulate(q + 2, k - 2, v, plan, VARIANTS[name]))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heads_of_each_kind_over_a_batch(name: str, schedule: str) -> None:
    """Tiles chosen by content, with a summary and without, a window with one, all tiles; two batch entries, each with
    lists of its own."""
    (q, k, v), plan, expected = mixed(name)
    assert not torch.equal(*select.best(*(select.means(x, RAGGED) for x in (q, k)), 2))
    assert_near(host.attention(q, k, v, plan, name, blocks=5, schedule=SCHEDULES[schedule]), expected)


@cache
def mixed(name: str) -> Case:
    q, k, v = random_qkv(RAGGED, heads=4, batch=2)
    plan = plan_for(name, RAGGED, **MIXED)  # type: ignore[arg-type]
    return (q, k, v), plan, emulate(q, k, v, plan, VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("tokens", [120, 128])
def test_list_lengths_before_a_summary(name: str, tokens: int) -> None:
    """Both consumers have rows; a summary begins at every remainder of a promotion, and at every stage."""
    tiles = TileGrid((1, 1, 6 * tokens), (1, 1, tokens))
    q, k, v = random_qkv(tiles, heads=5)
    plan = plan_for(
        name, tiles, tuple(KeyTiles(top=count / 6, rest="summary") for count in (1, 2, 3, 4, 5)), heads=tuple(range(5))
    )
    assert_near(host.attention(q, k, v, plan, name), emulate(q, k, v, plan, VARIANTS[name]))


@pytest.mark.parametrize("name", mostly(VARIANTS, "fp8-fp16"))
def test_several_summary_tiles(name: str) -> None:
    q, k, v = random_qkv(MANY, heads=1)
    plan = plan_for(name, MANY, (KeyTiles(top=0.01, rest="summary"),))
    assert_near(host.attention(q, k, v, plan, name), emulate(q, k, v, plan, VARIANTS[name]))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rest", ["drop", "summary"])
def test_lists_of_all_tiles_are_dense_bit_for_bit(name: str, rest: str) -> None:
    """A plan says so in fewer words; the kernel sees lists, and mean keys that all count for nothing."""
    q, k, v = random_qkv(RAGGED)
    plan = plan_for(name, RAGGED, (KeyTiles(top=0.77, rest=rest),))  # type: ignore[arg-type]
    with mock.patch.object(KeyTiles, "count", lambda own, tiles: len(tiles.valid)):
        found = host.attention(q, k, v, plan, name)
    assert torch.equal(found, host.attention(q, k, v, plan_for(name, RAGGED), name))


@pytest.mark.parametrize("name", VARIANTS)
def test_damage_in_a_summary_shows(name: str) -> None:
    """The prologue marks what is no number by the scale of its tile."""
    (q, k, v), plan, _ = mixed(name)
    made = host.images(q, k, v, plan, name)
    host.trailers(made["summary_trailers"])["scale"][:] = np.nan
    with mock.patch.object(host, "images", return_value=made):
        found = host.attention(q, k, v, plan, name)
    assert [bool(found[:, :, head].isnan().all()) for head in range(4)] == [False, True, True, False]
    assert bool(found[:, :, [0, 3]].isfinite().all())


# All tests here run in pairs, under every schedule, against the emulator: this one compiles each variant twice.
@pytest.mark.parametrize(("name", "schedule"), mostly(product(VARIANTS, SCHEDULES), ("int8-int32", "random")))
def test_blocks_in_pairs_compute_what_each_does_alone(name: str, schedule: str) -> None:
    """Bit for bit: pairs with one list and with two, a tile without a neighbour, summaries, which all pairs share."""
    tiles = TileGrid((1, 5, 9), (1, 2, 3))  # 3 x 3
    q, k, v = random_qkv(tiles, heads=4)
    seen = (None, (1, 1, 3), KeyTiles(top=0.3, rest="summary"), KeyTiles((1, 3, 1), rest="summary"))
    plan = plan_for(name, tiles, seen, heads=(1, 2, 0, 3))
    together = host.attention(q, k, v, plan, name, blocks=4, schedule=SCHEDULES[schedule])
    with mock.patch.dict(kernels.VARIANTS, {name: replace(kernels.VARIANTS[name], CLUSTER=1)}):
        alone = host.attention(q, k, v, plan, name, schedule=SCHEDULES[schedule])
    assert torch.equal(alone, together)


def test_any_number_of_blocks_is_the_same() -> None:
    (q, k, v), plan, _ = mixed("fp8-fp16")
    first, *others = (host.attention(q, k, v, plan, "fp8-fp16", blocks=blocks) for blocks in (1, 7, 48, 60))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("name", VARIANTS)
def test_exact_sums(name: str) -> None:
    """As all tests before this one, but of a machine that rounds nothing except to its accumulators."""
    tiles = GRIDS["full"]
    q, k, v = random_qkv(tiles, heads=1)
    plan = plan_for(name, tiles)
    found = host.attention(q, k, v, plan, name, schedule=Schedule(accumulator_bits=None))
    assert_near(found, emulate(q, k, v, plan, VARIANTS[name], sums=EXACT))


def test_the_same_bits_every_time() -> None:
    q, k, v = random_qkv(RAGGED)
    plan = plan_for("int8-int32", RAGGED, ((1, 1, 3),))
    lates = ("nothing", "nothing", "copies", "wgmmas")
    found = [host.attention(q, k, v, plan, "int8-int32", schedule=Schedule(i, late)) for i, late in enumerate(lates)]
    assert all(torch.equal(found[0], other) for other in found[1:])
