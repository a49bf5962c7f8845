"""sm90_select.cu, run on a CPU, against sorting: lists of key tiles by their content, and a summary's addends."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from fpsgen.attention import hopper
from fpsgen.attention.plan import AttentionPlan, KeyTiles, Seen
from fpsgen.attention.tiles import TileGrid
from fpsgen.kernels.sm90_select import MOST_TILES, VARIANTS, fitting
from tests.kernels import host
from tests.kernels.cases import (
    RAGGED,
    TOP,
    TOP_SUMMARY,
    WINDOW_SUMMARY,
    assert_chosen,
    plan_for,
    pooled_integers,
    scores_of,
)
from tests.kernels.host import Schedule
from tests.kernels.test_probes import fused

KINDS: tuple[Seen, ...] = (TOP_SUMMARY, None, WINDOW_SUMMARY, KeyTiles(top=0.8), (1, 1, 1))


def plan_of(tiles: TileGrid, seen: tuple[Seen, ...], heads: tuple[int, ...] = ()) -> AttentionPlan:
    return plan_for("int8-int32", tiles, seen, heads=heads)


def test_a_thousand_random_cases() -> None:
    """A case is the lists of one head: 2 to 48 tiles, ragged ones among them, and any number of them wanted."""
    drawn, heads = random.Random(1), 20
    for seed in range(1000 // heads):
        t, h, w = drawn.choice([(1, 1, 2), (1, 2, 2), (2, 2, 2), (1, 3, 5), (3, 2, 3), (4, 3, 4), (1, 1, 17)])
        tiles = TileGrid((2 * t, 2 * h - drawn.randrange(2), 2 * w - drawn.randrange(2)), (2, 2, 2))
        count = t * h * w
        wanted = drawn.sample(range(1, count), min(count - 1, 3))
        seen = tuple(KeyTiles(top=own / count, rest=drawn.choice(["drop", "summary"])) for own in wanted)  # type: ignore[arg-type]
        plan = plan_of(tiles, seen, tuple(head % len(seen) for head in range(heads)))
        pooled = pooled_integers(tiles, heads, seed)
        assert_chosen(host.chosen(pooled, plan, 1, schedule=Schedule(seed)), scores_of(pooled), plan, 1)


@pytest.mark.parametrize("schedule", [Schedule(1), Schedule(2), Schedule(3, "copies"), Schedule(4, "wgmmas")], ids=str)
def test_heads_of_each_kind_over_a_batch(schedule: Schedule) -> None:
    """Two counts, windows with a summary and without, a dense head; what others do not ask for is not written."""
    plan = plan_of(RAGGED, KINDS, (0, 1, 2, 3, 4, 0))
    pooled = pooled_integers(RAGGED, 12)
    assert_chosen(host.chosen(pooled, plan, 2, schedule=schedule), scores_of(pooled), plan, 2)


@pytest.mark.parametrize("grid", [(21, 30, 52), (21, 52, 30)], ids=["landscape", "portrait"])
def test_wan_s_480p(grid: tuple[int, int, int]) -> None:
    """273 tiles: more than two summary tiles have room for, and 18 blocks, the last with one query tile."""
    tiles = TileGrid.cut(grid)
    plan = plan_of(tiles, (KeyTiles(top=1 / 6, rest="summary"),))
    assert len(tiles.valid) == 273
    pooled = pooled_integers(tiles, 1)
    assert_chosen(host.chosen(pooled, plan, 1), scores_of(pooled), plan, 1)


@pytest.mark.parametrize("wanted", [1, 64, 65, 699])
def test_the_larger_kernel(wanted: int) -> None:
    """Ragged tiles, more than the smaller one has room for; a list of one tile, and one that lacks one tile."""
    tiles = TileGrid((1, 7, 199), (1, 1, 2))
    plan = plan_of(tiles, (KeyTiles(top=wanted / 700),))
    assert hopper.selection(plan) == VARIANTS[2048]
    pooled = pooled_integers(tiles, 1)
    assert_chosen(host.chosen(pooled, plan, 1), scores_of(pooled), plan, 1)


def in_order(pooled: dict[str, Tensor]) -> Tensor:
    """Scores as the kernel adds them: by channel, each product and sum rounded once."""
    q, k = (pooled[name].numpy() for name in ("q_pooled", "k_pooled"))
    total = np.zeros((len(q), q.shape[1], k.shape[1]), np.float32)
    for channel in range(q.shape[2]):
        with np.errstate(over="ignore"):
            total = fused(q[:, :, None, channel], k[:, None, :, channel], total).astype(np.float32)
    return torch.from_numpy(total)


@pytest.mark.parametrize("size", [1.0, 1e-20, 1e18])
def test_any_numbers(size: float) -> None:
    """Of normal means; of some whose products are subnormal or zeros, of either sign; of some that overflow."""
    tiles = TileGrid((2, 8, 9), (1, 2, 1))
    generator = torch.Generator().manual_seed(1)
    q, k = (size * torch.randn(2, len(tiles.valid), 128, generator=generator) for _ in range(2))
    k[:, ::3] *= (torch.arange(128) > 125) * 1e-3  # few channels, the last, or sums seldom underflow
    pooled = {"q_pooled": q, "k_pooled": k * 10 if size > 1 else k}
    plan = plan_of(tiles, (TOP, KeyTiles(top=0.75)), (0, 1))
    scores = in_order(pooled)
    assert not scores.isnan().any()
    assert_chosen(host.chosen(pooled, plan, 1), scores, plan, 1)


def test_tiles_that_are_alike_tie_wherever_they_lie() -> None:
    """Lanes, pieces of shared memory, query tiles: a score is the same bits in each."""
    tiles = TileGrid((1, 10, 20), (1, 1, 1))
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 1, 128, generator=generator).expand(1, 200, 128).contiguous() for _ in range(2))
    made = host.chosen({"q_pooled": q, "k_pooled": k}, plan := plan_of(tiles, (TOP,)), 1)
    assert torch.equal(made["chosen"].view(200, 60), torch.arange(60, dtype=torch.int32).expand(200, 60))
    assert plan.seen == (TOP,)


def test_damage_is_chosen() -> None:
    """NaN of either sign is above all scores, infinity too, and ties with itself; lists are in range."""
    tiles = TileGrid((1, 5, 8), (1, 1, 1))
    plan = plan_of(tiles, (KeyTiles(top=0.1, rest="summary"),))
    pooled = pooled_integers(tiles, 1)
    q, k = pooled["q_pooled"], pooled["k_pooled"]
    q[0, 7, 3], k[0, 30, 5], k[0, 20, 5], k[0, 10, 9] = torch.nan, torch.nan, -torch.nan, torch.inf
    q[0, :, 9] = q[0, :, 9].abs() + 1  # no infinity times zero, and none below zero
    lists = host.chosen(pooled, plan, 1)["chosen"].view(40, 4)
    assert lists[7].tolist() == [0, 1, 2, 3]  # all scores are NaN
    others = [row for tile, row in enumerate(lists.tolist()) if tile != 7]
    assert all({10, 20, 30} < set(row) for row in others)
    assert int(lists.min()) >= 0
    assert int(lists.max()) < 40


def test_two_runs_give_the_same_bits() -> None:
    plan = plan_of(RAGGED, KINDS, (0, 1, 2, 3, 4))
    generator = torch.Generator().manual_seed(3)
    shape = 5, len(RAGGED.valid), 128
    pooled = {name: torch.randn(shape, generator=generator) for name in ("q_pooled", "k_pooled")}
    first, second = (host.chosen(pooled, plan, 1, schedule=Schedule(seed)) for seed in (1, 2))
    assert all(torch.equal(first[name].view(torch.int32), second[name].view(torch.int32)) for name in first)


def test_windows_alone_launch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "launch", None)
    made = hopper.choose(pooled_integers(RAGGED, 4), plan_of(RAGGED, ((1, 1, 3), None), (0, 1)), 2)
    assert made["chosen_of"].tolist() == [-1] * 4
    assert made["chosen"].numel() == made["addends"].numel() == 0


def test_room_for_tiles() -> None:
    assert [fitting(count).TILES for count in (1, 630, 640, 641, MOST_TILES)] == [640, 640, 640, 2048, 2048]
    with pytest.raises(ValueError, match=f"{MOST_TILES} at most"):
        fitting(MOST_TILES + 1)


def test_memory_of_lists_and_addends_at_720p() -> None:
    """14B, both branches: stated in kernels_cuda/NOTES.md; whatever the share, lists are no larger than addends."""
    tiles, device = TileGrid.cut((21, 45, 80)), torch.device("meta")
    plan, widest = (plan_of(tiles, (KeyTiles(top=share, rest="summary"),)) for share in (1 / 6, 629 / 630))
    pooled = {"q_pooled": torch.empty(80, 630, 128, device=device)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hopper, "launch", lambda *_: None)
        patch.setattr(hopper, "packed", lambda *_: None)
        made, most = hopper.choose(pooled, plan, 2), hopper.choose(pooled, widest, 2)
    assert made["chosen"].nbytes == 80 * 630 * 105 * 4
    assert made["addends"].nbytes == 80 * 630 * 640 * 4
    assert most["chosen"].nbytes < made["addends"].nbytes < 130e6
