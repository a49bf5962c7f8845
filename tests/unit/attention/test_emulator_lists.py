"""The emulator over key tiles chosen by their content, and with a summary of the rest. `test_emulator` has windows, and
every rounding of a summary, too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fpsgen.attention import reference, select
from fpsgen.attention.emulator import VARIANTS, emulate, error
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid

RAGGED = TileGrid((3, 5, 7), (2, 2, 3))  # 2 x 3 x 3 tiles of 1 to 12 tokens
MANY = TileGrid((1, 1, 420), (1, 1, 3))  # 140 tiles: two summary tiles, the second of 12 mean keys
TOP, TOP_SUMMARY = KeyTiles(top=0.3), KeyTiles(top=0.3, rest="summary")
WINDOW_SUMMARY = KeyTiles((1, 3, 1), rest="summary")


def random_qkv(tiles: TileGrid, heads: int = 2, dim: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tiles.tokens)
    return [torch.randn(2, tiles.tokens, heads, dim, generator=generator) for _ in range(3)]


def plan_for(name: str, tiles: TileGrid, *seen: KeyTiles | None, heads: tuple[int, ...] = ()) -> AttentionPlan:
    return AttentionPlan(tiles, seen, heads, VARIANTS[name].qk, "fp8")


@pytest.mark.parametrize("name", VARIANTS)
def test_near_the_operator(name: str) -> None:
    """A head of each kind, both guidance branches. Independent roundings of q, k, v and P, as of windows."""
    q, k, v = random_qkv(RAGGED, heads=4)
    plan = plan_for(name, RAGGED, TOP, TOP_SUMMARY, None, WINDOW_SUMMARY, heads=(3, 0, 1, 2))
    found = emulate(q, k, v, plan, VARIANTS[name])
    for head in range(4):
        exact, operator = (
            reference.attention(q, k, v, own)[:, :, head]
            for own in (AttentionPlan(RAGGED, plan.seen, plan.heads), plan)
        )
        assert 0.005 < error(found[:, :, head], exact) < 0.07
        assert error(found[:, :, head], operator) < 0.09


@pytest.mark.parametrize("name", ["fp8-fp16", "int8-int32"])
def test_several_summary_tiles(name: str) -> None:
    q, k, v = random_qkv(MANY, heads=1)
    plan = plan_for(name, MANY, KeyTiles(top=0.02, rest="summary"))
    rows = torch.arange(0, 420, 7)
    exact = reference.attention(q, k, v, AttentionPlan(MANY, plan.seen))[:, rows]
    assert 0.005 < error(emulate(q, k, v, plan, VARIANTS[name], rows=rows), exact) < 0.07


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seen", [TOP, TOP_SUMMARY], ids=str)
def test_lists_of_all_tiles_are_dense_bit_for_bit(name: str, seen: KeyTiles) -> None:
    """All mean keys are then minus infinity, and their P zero."""
    q, k, v = random_qkv(RAGGED)
    count = len(RAGGED.valid)
    every = torch.arange(count).expand(2, 2, count, count)
    found = emulate(q, k, v, plan_for(name, RAGGED, seen), VARIANTS[name], chosen={0: every})
    assert torch.equal(found, emulate(q, k, v, plan_for(name, RAGGED, None), VARIANTS[name]))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seen", [TOP_SUMMARY, WINDOW_SUMMARY], ids=str)
def test_a_summary_of_equal_tokens_is_dense_up_to_rounding(name: str, seen: KeyTiles) -> None:
    q, k, v = random_qkv(RAGGED)
    k, v = (x[:, RAGGED.offsets[:-1]].repeat_interleave(RAGGED.valid, 1) for x in (k, v))
    exact = reference.attention(q, k, v, AttentionPlan(RAGGED))
    assert error(emulate(q, k, v, plan_for(name, RAGGED, seen), VARIANTS[name]), exact) < 0.07
    dropped = AttentionPlan(RAGGED, (seen.window or TOP,))
    assert error(reference.attention(q, k, v, dropped), exact) > 0.3


def test_given_lists_are_used_and_select_s_are_the_default() -> None:
    q, k, v = random_qkv(RAGGED, heads=3)
    variant = VARIANTS["int8-int32"]
    plan = plan_for("int8-int32", RAGGED, TOP_SUMMARY, None, heads=(0, 1, 0))
    own = select.best(*(select.means(x[:, :, [0, 2]], RAGGED) for x in (q, k)), 6)
    chosen = emulate(q, k, v, plan, variant)
    assert torch.equal(emulate(q, k, v, plan, variant, chosen={0: own}), chosen)
    other = emulate(q, k, v, plan, variant, chosen={0: own.flip(0)})
    assert [torch.equal(chosen[:, :, head], other[:, :, head]) for head in range(3)] == [False, True, False]


def test_rows_are_those_of_the_whole() -> None:
    q, k, v = random_qkv(RAGGED)
    variant, rows = VARIANTS["int8-int32"], torch.tensor([0, 7, 50, 104])
    plan = plan_for("int8-int32", RAGGED, TOP_SUMMARY, WINDOW_SUMMARY, heads=(0, 1))
    whole = emulate(q, k, v, plan, variant)
    assert torch.equal(emulate(q, k, v, plan, variant, rows=rows), whole[:, rows])
