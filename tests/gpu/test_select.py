"""Key tiles by their content, and a summary's operands, on a Hopper card: against sorting and the CPU machine."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from fpsgen.attention import hopper
from fpsgen.attention.emulator import TOLERANCE, VARIANTS, emulate, errors
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid
from tests.gpu.hopper import another_card, tell
from tests.kernels import cases, host
from tests.kernels.cases import (
    RAGGED,
    TOP_SUMMARY,
    WINDOW_SUMMARY,
    assert_chosen,
    assert_same_operands,
    moved,
    plan_for,
    pooled_integers,
    prepared,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("another_card()", reason="for Hopper")]
assert another_card  # the mark's string names it

NARROW = KeyTiles((1, 1, 1), rest="summary")
WAN_720P = TileGrid.cut((21, 45, 80))


def chosen(pooled: dict[str, Tensor], plan: AttentionPlan, batch: int) -> dict[str, Tensor]:
    """What was not written shows as NaN, and as the largest integers."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        made = hopper.choose({name: x.cuda() for name, x in pooled.items()}, plan, batch)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    return {name: x.cpu() for name, x in made.items()}


@pytest.mark.parametrize("tiles", [RAGGED, TileGrid((1, 11, 14), (1, 1, 1)), TileGrid((1, 1, 700), (1, 1, 1))], ids=str)
def test_heads_of_each_kind_over_a_batch(tiles: TileGrid) -> None:
    seen = TOP_SUMMARY, None, WINDOW_SUMMARY, KeyTiles(top=0.7)
    plan, pooled = plan_for("int8-int32", tiles, seen, heads=(0, 1, 2, 3, 0)), pooled_integers(tiles, 10)
    assert_chosen(chosen(pooled, plan, 2), cases.scores_of(pooled), plan, 2)


@pytest.mark.parametrize("share", [1 / 630, 1 / 6, 629 / 630])
def test_14b_720p(share: float) -> None:
    """Both branches of 40 heads; sums of small integers are exact, in any order."""
    plan = plan_for("int8-int32", WAN_720P, (KeyTiles(top=share, rest="summary"),))
    pooled = {name: x.cuda() for name, x in pooled_integers(WAN_720P, 80).items()}
    made, wanted = hopper.choose(pooled, plan, 2), plan.key_tiles[0].count(WAN_720P)
    scores = pooled["q_pooled"].double() @ pooled["k_pooled"].double().mT
    expected = scores.argsort(dim=-1, descending=True, stable=True)[..., :wanted].sort(-1).values
    assert torch.equal(made["chosen"].view(80, 630, wanted).long(), expected)
    skipped = made["addends"].isneginf()
    assert bool((skipped.sum(-1) == wanted + 10).all())  # 630 of 640 slots are tiles
    assert bool(skipped.gather(-1, expected).all())


@pytest.mark.skipif(not shutil.which("g++"), reason="the CPU machine is compiled by g++")
def test_scores_are_the_cpu_machine_s() -> None:
    """Bit for bit, or near-ties would show: the order of sums is the kernel's."""
    plan, generator = plan_for("int8-int32", WAN_720P, (TOP_SUMMARY,)), torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, len(WAN_720P.valid), 128, generator=generator) for _ in range(2))
    pooled = {"q_pooled": q, "k_pooled": k}
    card, twin = chosen(pooled, plan, 1), host.chosen(pooled, plan, 1)
    assert all(torch.equal(card[name], twin[name]) for name in card)


def test_damage_is_chosen() -> None:
    pooled = pooled_integers(RAGGED, 1)
    pooled["k_pooled"][0, 4, 7] = torch.nan
    lists = chosen(pooled, plan_for("int8-int32", RAGGED, (KeyTiles(top=0.5),)), 1)["chosen"].view(-1, 3)
    assert bool((lists == 4).any(-1).all())
    assert int(lists.min()) >= 0
    assert int(lists.max()) < len(RAGGED.valid)


def test_a_thousand_launches_give_the_same_bits() -> None:
    plan, generator = plan_for("int8-int32", WAN_720P, (TOP_SUMMARY,)), torch.Generator("cuda").manual_seed(2)
    shape = 8, len(WAN_720P.valid), 128
    pooled = {name: torch.randn(shape, generator=generator, device="cuda") for name in ("q_pooled", "k_pooled")}
    first, different = hopper.choose(pooled, plan, 1), torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        again = hopper.choose(pooled, plan, 1)
        different += sum((again[name] != first[name]).any() for name in first)
    assert int(different) == 0


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("grid", ["ragged", "of 120", "full"])
def test_attention_over_the_lists_that_it_chose(name: str, grid: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the emulator over the same lists: near-ties of sums in another order would be other lists."""
    tiles = cases.GRIDS[grid]
    there = cases.inputs(tiles, heads=3, batch=2)
    given, plan = moved(there, "cuda"), plan_for(name, tiles, (TOP_SUMMARY, NARROW, None), heads=(0, 1, 2))
    made = hopper.choose(hopper.prologue(*given, plan, name), plan, 2)
    lists = made["chosen"].view(2, 1, len(tiles.valid), -1).long().cpu()
    found = hopper.attention(*given, plan, name).cpu()
    found_errors = errors(
        found,
        VARIANTS[name],
        lambda sums: emulate(*prepared(there), there[2], plan, VARIANTS[name], sums=sums, chosen={0: lists}),
    )
    tell(capsys, found_errors)
    assert min(found_errors.values()) <= TOLERANCE, found_errors


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("smooth_k", [True, False])
@pytest.mark.parametrize("spikes", [0.0, 1000.0])
def test_the_prologue_makes_the_emulator_s_summary(name: str, smooth_k: bool, spikes: float) -> None:
    tiles = TileGrid((2, 15, 19), (2, 1, 2))  # 150 tiles: two of their means
    there = cases.inputs(tiles, heads=3, batch=2)
    there = cases.with_spikes(there, tiles, spikes) if spikes else there
    plan = plan_for(name, tiles, (TOP_SUMMARY,), smooth_k=smooth_k)
    found = {key: x.cpu().numpy() for key, x in hopper.prologue(*moved(there, "cuda"), plan, name).items()}
    assert_same_operands(found, host.images(*prepared(there), there[2], plan, name), plan)
