"""Every backend computes the plan: against SDPA, against a masked softmax by hand, against each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fpsgen.attention import dense, door, flex, quantize, reference
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import Shape3, TileGrid, default_tile, key_lists

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RAGGED = TileGrid((5, 6, 7), (2, 2, 3))  # 3 x 3 x 3 tiles, short ones along T and W
WHOLE = TileGrid((3, 10, 16), (3, 5, 8))  # tiles of 120
SLIDING = TileGrid((7, 6, 10), (2, 2, 2))  # 4 x 3 x 5: windows of 3 move along T and W
LONG = TileGrid((3, 9, 13), (3, 1, 2))  # 1 x 9 x 7: windows of 5 and 7 move, too; the last along W is ragged
PER_HEAD = ((1, 3, 3), None, (3, 1, 1))


def test_nothing_is_left_to_be_made_at_a_phase_s_first_step() -> None:
    """`make_ready` groups the rows of all windows; whoever groups them later makes a step wait."""
    reference.grouped.cache_clear()
    windows: list[Shape3] = [(t, h, w) for t in (1, 3, 4) for h in (1, 3) for w in (1, 3)]
    plans = [AttentionPlan(SLIDING, (window, None), (0, 1, 0), "int8", "fp8") for window in windows]
    plans += [AttentionPlan(SLIDING), AttentionPlan(SLIDING, (None,), (), "fp8", "fp8")]
    assert door.make_ready(CPU, plans, 3, 32) == []
    made = reference.grouped.cache_info().misses
    assert made == len(windows) + 1
    for plan in plans:
        door._PREPARED[door.choose(CPU, plan, 32).name].attention(*random_qkv(SLIDING, batch=1), plan)
    assert reference.grouped.cache_info().misses == made


def random_qkv(tiles: TileGrid, heads: int = 3, head_dim: int = 32, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tiles.tokens)
    return [torch.randn(batch, tiles.tokens, heads, head_dim, generator=generator) for _ in range(3)]


def visible(tiles: TileGrid, window: Shape3 | None) -> Tensor:
    """bool [tokens, tokens], rows in tile order: which keys a query sees, from tile coordinates and nothing else."""
    if window is None:
        return torch.ones(tiles.tokens, tiles.tokens, dtype=torch.bool)
    coordinates = torch.stack(torch.meshgrid(*map(torch.arange, tiles.grid), indexing="ij"), -1).flatten(0, 2)
    tile = (coordinates // torch.tensor(tiles.tile))[tiles.inverse]
    inside = torch.ones(tiles.tokens, tiles.tokens, dtype=torch.bool)
    for axis, (length, count) in enumerate(zip(window, tiles.counts, strict=True)):
        half = length // 2
        centre = tile[:, axis].clamp(half, count - 1 - half) if length < count else tile[:, axis]
        reach = half if length < count else count
        inside &= (tile[None, :, axis] - centre[:, None]).abs() <= reach
    return inside


def by_hand(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """The whole score matrix in float64, masked; q, k, v already rounded."""
    masks = [visible(plan.tiles, own.window) for own in plan.key_tiles]
    which = plan.heads or (0,) * q.shape[2]
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / math.sqrt(q.shape[3])
    scores = scores.masked_fill(~torch.stack([masks[i] for i in which]), -torch.inf)
    p = (scores - scores.amax(-1, keepdim=True)).exp()
    if plan.pv == "fp8":
        p = (448 * p).float().to(torch.float8_e4m3fn).double() / 448
    return torch.einsum("bhqk,bkhd->bqhd", p / p.sum(-1, keepdim=True), v.double()).float()


@pytest.mark.parametrize("grid", [(5, 6, 7), (7, 6, 10), (1, 1, 1), (3, 5, 8)], ids=str)
def test_reference_of_a_full_window_is_sdpa(grid: Shape3) -> None:
    tiles = TileGrid(grid, default_tile(grid))
    q, k, v = random_qkv(tiles)
    torch.testing.assert_close(
        reference.attention(q, k, v, AttentionPlan(tiles)), dense.attention(q, k, v), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("tiles", "window"),
    [
        *((RAGGED, window) for window in ((1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 3), (1, 3, 3))),
        *((SLIDING, window) for window in ((3, 1, 3), (1, 3, 3), (4, 1, 3), (3, 3, 5), (1, 1, 1))),
        *((LONG, window) for window in ((1, 5, 3), (1, 3, 5), (1, 7, 5))),
    ],
    ids=str,
)
def test_reference_of_a_window_is_a_masked_softmax(tiles: TileGrid, window: Shape3) -> None:
    q, k, v = random_qkv(tiles)
    plan = AttentionPlan(tiles, (window,))
    assert float(visible(tiles, window).double().mean()) == pytest.approx(plan.density)
    torch.testing.assert_close(reference.attention(q, k, v, plan), by_hand(q, k, v, plan), rtol=0, atol=1e-5)


def test_reference_of_even_windows_that_span_an_axis() -> None:
    tiles = TileGrid((4, 5, 6), (1, 2, 2))  # 4 x 3 x 3
    q, k, v = random_qkv(tiles)
    plan = AttentionPlan(tiles, ((4, 1, 1),))
    torch.testing.assert_close(reference.attention(q, k, v, plan), by_hand(q, k, v, plan), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("qk", "pv"), [("fp8", "fp8"), ("int8", "fp8"), ("bf16", "fp8"), ("int8", "bf16")])
@pytest.mark.parametrize("smooth_k", [True, False])
def test_reference_rounds_what_it_says(qk: str, pv: str, smooth_k: bool) -> None:
    q, k, v = random_qkv(RAGGED)
    k = k + 2
    plan = AttentionPlan(RAGGED, PER_HEAD, (2, 0, 1), qk, pv, smooth_k)  # type: ignore[arg-type]
    found = reference.attention(q, k, v, plan)
    if qk != "bf16":
        smoothed = quantize.smooth(k) if smooth_k else k
        q, k = (quantize.per_tile(x, qk, RAGGED).dequantize() for x in (q, smoothed))  # type: ignore[arg-type]
    if pv != "bf16":
        v = quantize.per_channel(v, "fp8").dequantize()
    expected = by_hand(q, k, v, plan)
    # P within float32's error of a tie may fall on either side: one step of one weight, here and there.
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    assert float((found - by_hand(*random_qkv(RAGGED), AttentionPlan(RAGGED))).norm()) > 1  # and it does round and skip


def test_each_head_has_its_window() -> None:
    q, k, v = random_qkv(RAGGED)
    found = reference.attention(q, k, v, AttentionPlan(RAGGED, PER_HEAD, (2, 0, 1)))
    for head, window in enumerate((PER_HEAD[2], PER_HEAD[0], PER_HEAD[1])):
        alone = [x[:, :, head : head + 1] for x in (q, k, v)]
        expected = reference.attention(*alone, AttentionPlan(RAGGED, (window,)))
        torch.testing.assert_close(found[:, :, head : head + 1], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("most", [1, 1000, 20_000])
def test_reference_in_little_memory_is_the_same(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random_qkv(RAGGED)
    plan = AttentionPlan(RAGGED, ((1, 3, 3),), (), "fp8", "fp8")
    expected = reference.attention(q, k, v, plan)
    monkeypatch.setattr(reference, "_MOST_NUMBERS", most)
    found = reference.attention(q, k, v, plan)
    assert float((found - expected).norm() / expected.norm()) < 1e-3  # as above: sums in another order


def test_small_tiles_gather_no_more_than_may_be() -> None:
    """Keys and values of a list are many times its scores where a tile has one token."""
    tiles = TileGrid((4, 6, 6), (1, 1, 1))
    _, _, groups = reference.grouped(tiles, (3, 3, 3), CPU)
    for group in groups:
        lists, rows = reference.at_once(heads=2, head_dim=64, group=group)
        assert lists * group.keys.shape[1] * 2 * 64 * 2 <= reference._MOST_NUMBERS
        assert rows == group.queries
    small = reference.QueryGroup(torch.zeros(10, 2**12, dtype=torch.int32), queries=1)
    assert reference.at_once(heads=2, head_dim=128, group=small)[0] == 2**26 // (2 * 2**12 * 256)


def test_what_is_too_small_for_float32_is_0_once_it_is_rounded() -> None:
    """Though its exponential is not computed. Around e^-13 the first P that is not 0 appears."""
    s = torch.cat([torch.linspace(-120, 0, 100_001), torch.tensor([-torch.inf, torch.nan])])
    expected = quantize.round_to_(s.exp() * 448, "fp8")
    found = quantize.round_to_(reference.exponentials_(s.clone(), "fp8"), "fp8")
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))
    assert torch.equal(reference.exponentials_(s.clone(), "bf16")[:-1], s.exp()[:-1])


def test_reference_keeps_the_dtype() -> None:
    q, k, v = (x.bfloat16() for x in random_qkv(RAGGED))
    found = reference.attention(q, k, v, AttentionPlan(RAGGED, ((1, 1, 3),)))
    assert found.dtype == torch.bfloat16
    assert found.shape == q.shape


def test_not_a_number_comes_through() -> None:
    """The pipeline looks for it and stops; rounding must not hide it."""
    q, k, v = random_qkv(RAGGED)
    k[0, 3] = torch.nan
    assert reference.attention(q, k, v, AttentionPlan(RAGGED, (None,), (), "int8", "fp8")).isnan().any()


@pytest.mark.parametrize(
    "plan",
    [
        # What is marked is compiled anew, and the last one has a part of each.
        pytest.param(AttentionPlan(RAGGED, ((1, 3, 3),)), marks=pytest.mark.slow),
        pytest.param(AttentionPlan(RAGGED, PER_HEAD, (2, 0, 1)), marks=pytest.mark.slow),
        pytest.param(AttentionPlan(WHOLE, ((1, 1, 1),)), marks=pytest.mark.slow),
        AttentionPlan(TileGrid((6, 6, 16), (6, 6, 8)), ((1, 1, 1),)),  # 288 tokens, more than one block of 128
        AttentionPlan(RAGGED, (KeyTiles(top=0.3), None, (1, 3, 3)), (0, 1, 2)),
    ],
    ids=str,
)
def test_flex_is_the_reference(plan: AttentionPlan) -> None:
    """Compiled, on the CPU, so that skipped blocks are really skipped: uncompiled FlexAttention only masks."""
    q, k, v = random_qkv(plan.tiles)
    torch.testing.assert_close(flex.attention(q, k, v, plan), reference.attention(q, k, v, plan), rtol=0, atol=1e-5)


def test_flex_visits_the_blocks_of_the_lists() -> None:
    tiles, window = TileGrid((7, 6, 10), (2, 2, 2)), (3, 1, 3)
    mask = flex.block_mask(tiles, window, CPU)
    lists = key_lists(tiles, window)
    for tile, own in enumerate(lists.list_of.tolist()):
        count = int(mask.kv_num_blocks[0, 0, tile])
        assert mask.kv_indices[0, 0, tile, :count].tolist() == lists.split()[own].tolist()


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("window", [None, (1, 1, 1)], ids=str)
@pytest.mark.parametrize("qk", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("pv", ["bf16", "fp8"])
def test_the_choice_and_its_reasons(
    device: torch.device, window: Shape3 | None, qk: str, pv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "find_spec", lambda name: object())  # as if Triton were here
    door.choose.cache_clear()
    plan = AttentionPlan(WHOLE, (window,), (), qk, pv)  # type: ignore[arg-type]
    rounds, sparse = qk != "bf16" or pv != "bf16", window is not None
    choice = door.choose(device, plan, 128)
    door.choose.cache_clear()
    expected = "reference" if rounds or (sparse and device == CPU) else "flex" if sparse else "dense"
    assert choice.name == expected
    refused = dict(choice.refused)
    assert list(refused) == list(door.BACKENDS)[: list(door.BACKENDS).index(expected)]
    if "dense" in refused:
        assert ("sparse" if sparse else "8 bits") in refused["dense"]
    if "flex" in refused:
        assert ("CUDA" if device == CPU else "8 bits") in refused["flex"]


def test_flex_refuses_what_it_cannot_run_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "find_spec", lambda name: None)
    assert "Triton" in str(flex.why_not(CUDA, AttentionPlan(WHOLE, ((1, 1, 1),)), 128))
    monkeypatch.setattr(flex, "find_spec", lambda name: object())
    assert flex.why_not(CUDA, AttentionPlan(WHOLE, ((1, 1, 1),)), 128) is None
    small = AttentionPlan(RAGGED, ((1, 3, 3),))  # tiles of 12 tokens or fewer
    assert "pads every tile to 128 rows" in str(flex.why_not(CUDA, small, 128))


def test_flex_never_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch stops compiling a function after so many shapes, and uncompiled FlexAttention would see every key."""
    q, k, v = random_qkv(RAGGED, heads=1)
    plan = AttentionPlan(RAGGED, ((1, 3, 3),))
    flex.attention(q[..., :16], k[..., :16], v[..., :16], plan)  # so that one is compiled
    monkeypatch.setattr(flex, "_MOST_SHAPES", 1)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        flex.attention(q[..., :24], k[..., :24], v[..., :24], plan)


def test_what_inference_kept_can_be_trained_through() -> None:
    """Rows and lists stay in caches, and autograd refuses tensors that were made in inference mode."""
    tiles = TileGrid((3, 5, 7), (2, 2, 2))  # of no other test: nothing is kept of it yet
    with torch.inference_mode():
        rows = flex.padded_rows(tiles, CPU)
        reference.grouped(tiles, (1, 3, 1), CPU)
    x = torch.ones(1, 10_000, requires_grad=True)  # longer than any index
    order, inverse, groups = reference.grouped(tiles, (1, 3, 1), CPU)
    kept = [rows, order, inverse, *(group.keys.flatten() for group in groups), tiles.order, tiles.inverse]
    kept += [key_lists(tiles, (1, 3, 1)).cols]
    for index in kept:
        x.index_select(1, index).square().sum().backward()
