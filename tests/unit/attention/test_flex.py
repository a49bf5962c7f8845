"""FlexAttention over tiles chosen by content, and with a summary of the rest, on a CPU.

Compiled for a CPU, FlexAttention follows lists, but gives no log-sum-exps and no gradients. A summary is therefore
tested with uncompiled FlexAttention, whose lists are put into its mask, and gradients with plain PyTorch in its place.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from fpsgen.attention import door, flex, reference
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid
from tests.tools.gradients import by_hand, of_squares
from tests.tools.plain_flex import plain, uncompiled

RAGGED = TileGrid((3, 3, 5), (2, 2, 2))  # 2 x 2 x 3 tiles, 45 tokens
MANY = TileGrid((2, 12, 12), (2, 1, 1))  # 144 tiles: several blocks of mean keys
LARGE = TileGrid((3, 4, 16), (3, 4, 8))  # 96 tokens a tile, more than one block of 16
WINDOW, TOP = KeyTiles((1, 1, 3), rest="summary"), KeyTiles(top=0.3)
SUMMARY = KeyTiles(top=0.3, rest="summary")


def random_qkv(tiles: TileGrid, heads: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, tiles.tokens, heads, 16, generator=generator) for _ in range(3)]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("tiles", [RAGGED, MANY, LARGE], ids=["ragged", "many", "large"])
@pytest.mark.parametrize("seen", [WINDOW, SUMMARY, TOP], ids=str)
def test_lists_and_summaries_are_the_reference(
    seen: KeyTiles, tiles: TileGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 sums in another order."""
    monkeypatch.setattr(flex, "_compiled", lambda: uncompiled)
    q, k, v = random_qkv(tiles, heads=4)
    window = KeyTiles((1, 3, 1), rest="summary") if tiles is MANY else KeyTiles((1, 1, 1), rest="summary")
    seen = seen if tiles is RAGGED or seen.window is None else window
    plan = AttentionPlan(tiles, (seen, None), (0, 1, 0, 0))
    torch.testing.assert_close(flex.attention(q, k, v, plan), reference.attention(q, k, v, plan), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seen", [KeyTiles((1, 1, 1), rest="summary"), SUMMARY, TOP], ids=str)
def test_it_is_chosen_on_any_cuda_gpu_unless_numbers_are_rounded(
    seen: KeyTiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "find_spec", lambda name: object())  # as if Triton were here
    tiles, cuda = TileGrid((9, 15, 16), (3, 5, 8)), torch.device("cuda")
    door.choose.cache_clear()
    assert door.choose(cuda, AttentionPlan(tiles, (seen,)), 128).name == "flex"
    rounded = door.choose(cuda, AttentionPlan(tiles, (seen,), (), "int8", "fp8"), 128)
    door.choose.cache_clear()
    assert "8 bits" in dict(rounded.refused)["flex"]


def test_every_head_of_every_branch_has_lists_of_its_own() -> None:
    q, k, _ = random_qkv(RAGGED)
    lists = reference.key_tiles(q, k, TOP, RAGGED)
    mask = flex.blocks_of(lists, RAGGED)
    assert mask.kv_num_blocks.unique().tolist() == [4]
    assert torch.equal(mask.kv_indices[..., :4], lists.int())
    assert torch.equal(mask.to_dense().nonzero()[:, 3].view(2, 2, 12, 4), lists)
    assert len(lists.flatten(0, 1).flatten(1).unique(dim=0)) == 4  # so that a mix-up shows


def test_nothing_is_compiled_anew_when_lists_change() -> None:
    """Compiled, on the CPU. Another share is another list in the same room."""
    plans = [AttentionPlan(RAGGED, (KeyTiles(top=share),)) for share in (0.3, 0.3, 0.6)]
    torch.compiler.reset()
    flex._compiled.cache_clear()
    counters.clear()
    for seed, plan in enumerate(plans):
        q, k, v = random_qkv(RAGGED, seed=seed)
        torch.testing.assert_close(flex.attention(q, k, v, plan), reference.attention(q, k, v, plan), rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_nothing_is_compiled_anew_when_addends_change() -> None:
    torch.compiler.reset()
    flex._compiled.cache_clear()
    counters.clear()
    for seed in range(2):
        q, k, v = (x.transpose(1, 2) for x in random_qkv(RAGGED, seed=seed))
        addends = torch.randn(2, 2, 3, 45, generator=torch.Generator().manual_seed(seed))  # for 15 rows each
        found = flex.by_blocks(q, k, v, score_mod=flex.adding(addends, 15))
        rows = addends.repeat_interleave(15, 2)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=rows)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("seen", [WINDOW, SUMMARY, TOP], ids=str)
def test_gradients_are_those_of_one_softmax_over_constant_lists(
    seen: KeyTiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "by_blocks", plain)
    plan = AttentionPlan(RAGGED, (seen,))
    q, k, v = (x.requires_grad_() for x in random_qkv(RAGGED))
    found = of_squares(flex.attention(q, k, v, plan), q, k, v)
    for mine, theirs in zip(found, of_squares(by_hand(q, k, v, plan), q, k, v), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
