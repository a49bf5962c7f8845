"""Self-attention with gradients: against autograd through one formula over all pairs, and against differences."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fpsgen.attention import dense, differentiable, door, flex, hopper, quantize, reference
from fpsgen.attention.plan import AttentionPlan, KeyTiles, Seen
from fpsgen.attention.qk import QKTransform
from fpsgen.attention.tiles import TileGrid
from fpsgen.wan.transformer import rope_table
from tests.tools.gradients import by_hand, of_squares
from tests.tools.plain_flex import plain

RAGGED = TileGrid((3, 3, 5), (2, 2, 2))  # 2 x 2 x 3 tiles, 45 tokens
MANY = TileGrid((2, 12, 12), (2, 1, 1))  # 144 tiles: two scales for mean keys
TOP, SUMMARY = KeyTiles(top=0.3), KeyTiles(top=0.3, rest="summary")
PRECISIONS = [("int8", "fp8"), ("fp8", "fp8"), ("int8", "bf16"), ("bf16", "fp8")]
SEEN: list[tuple[TileGrid, tuple[Seen, ...], tuple[int, ...]]] = [
    (RAGGED, ((1, 1, 3),), ()),
    (RAGGED, (TOP,), ()),
    (RAGGED, (KeyTiles((2, 1, 1), rest="summary"),), ()),
    (RAGGED, (SUMMARY, None, (1, 1, 3)), (1, 0, 2)),
    (RAGGED, (None, TOP), (1, 0, 1)),
    (MANY, (SUMMARY, KeyTiles((1, 3, 1), rest="summary")), (1, 0, 0)),
]
UNROUNDED = [AttentionPlan(*seen) for seen in SEEN]
ROUNDED = [
    AttentionPlan(*seen, *precision, smooth)  # type: ignore[arg-type]
    for seen, precision, smooth in product([*SEEN, (RAGGED, (None,), ())], PRECISIONS, (True, False))
    if precision in PRECISIONS[:2] or (seen is SEEN[3] and smooth)
]
MIXED = AttentionPlan(*SEEN[3], "int8", "fp8")


def random_qkv(tiles: TileGrid, dtype: torch.dtype = torch.float32, heads: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tiles.tokens)
    q, k, v = (torch.randn(2, tiles.tokens, heads, 16, generator=generator) for _ in range(3))
    return [x.to(dtype).requires_grad_() for x in (q, k + 1, v)]


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("plan", [*UNROUNDED, *ROUNDED], ids=str)
def test_it_computes_what_inference_computes(plan: AttentionPlan) -> None:
    given = random_qkv(plan.tiles)
    found = differentiable.attention(*given, plan)
    with torch.inference_mode():
        assert torch.equal(found, reference.attention(*given, plan))
    # P beside a tie may fall on either side in float64: one step of one weight, here and there.
    assert distance(found, by_hand(*given, plan)) < (1e-5 if plan.pv == "bf16" else 2e-3)


@pytest.mark.parametrize("plan", UNROUNDED, ids=str)
def test_gradients_where_nothing_is_rounded_are_autograd_s(plan: AttentionPlan) -> None:
    given = random_qkv(plan.tiles)
    found = of_squares(differentiable.attention(*given, plan), *given)
    for mine, theirs in zip(found, of_squares(by_hand(*given, plan), *given), strict=True):
        assert distance(mine, theirs) < 1e-5  # sums in float32


@pytest.mark.parametrize("plan", ROUNDED, ids=str)
def test_gradients_pass_rounding_straight_through(plan: AttentionPlan) -> None:
    given = random_qkv(plan.tiles)
    found = of_squares(differentiable.attention(*given, plan), *given)
    for mine, theirs in zip(found, of_squares(by_hand(*given, plan), *given), strict=True):
        assert distance(mine, theirs) < (1e-5 if plan.pv == "bf16" else 2e-3)  # ties, as above
    unrounded = AttentionPlan(plan.tiles, plan.seen, plan.heads)
    for mine, theirs in zip(found, of_squares(by_hand(*given, unrounded), *given), strict=True):
        assert distance(mine, theirs) > 3e-3  # so that rounding shows


@pytest.mark.parametrize("seen", [SEEN[0], SEEN[1], SEEN[4]], ids=str)
def test_where_nothing_is_lost_gradients_are_those_of_the_unrounded_operator(seen: Any) -> None:
    """q and k are whole numbers of 1/64, and in each tile and head the largest is 127/64: rounding to INT8 is exact."""
    q, k, v = random_qkv(seen[0])
    tiles = seen[0]
    for x in (q, k):
        x.data.mul_(40).round_().clamp_(-126, 126)
        x.data[:, tiles.offsets[:-1], :, 0] = 127
        x.data.div_(64)
    plan, unrounded = AttentionPlan(*seen, "int8", "bf16", False), AttentionPlan(*seen)
    found, exact = (of_squares(differentiable.attention(q, k, v, own), q, k, v) for own in (plan, unrounded))
    for mine, theirs in zip(found, exact, strict=True):
        assert distance(mine, theirs) < 1e-6


@pytest.mark.parametrize("plan", [*UNROUNDED, AttentionPlan(RAGGED)], ids=str)
@pytest.mark.parametrize("which", range(3), ids="qkv")
def test_gradients_are_what_small_steps_change(
    plan: AttentionPlan, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the mask and the summary, lists held. Steps of 1e-3: float32 errs by some 1e-4 of the slope."""
    given = random_qkv(plan.tiles)
    lists = {
        own: reference.key_tiles(*(x[:, :, plan.heads_of(i)] for x in given[:2]), own, plan.tiles)
        for i, own in enumerate(plan.key_tiles)
    }
    monkeypatch.setattr(reference, "key_tiles", lambda q, k, own, tiles: lists[own])
    generator = torch.Generator().manual_seed(which)
    weight, direction = (torch.randn(given[0].shape, generator=generator) for _ in range(2))

    def value(step: float) -> Tensor:
        at = [x + step * direction if index == which else x for index, x in enumerate(given)]
        return (differentiable.attention(*at, plan).double() * weight).sum()

    (gradient,) = torch.autograd.grad(value(0.0), given[which])
    slope = float((value(1e-3) - value(-1e-3)).detach()) / 2e-3
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(("kind", "largest", "beyond"), [("fp8", 448.0, 465.0), ("int8", 127.0, 128.0)])
def test_what_saturates_has_no_gradient(kind: Any, largest: float, beyond: float) -> None:
    x = torch.tensor([0.0, 0.3, -largest, largest, beyond, -beyond, 1e9]).requires_grad_()
    quantize.round_by(x * 0.5, torch.tensor(0.5), kind).dequantize().sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.5, 0.5, 0.5, 0.5, 0, 0, 0]


@pytest.mark.parametrize("make", [quantize.per_token, quantize.per_channel, quantize.per_tile])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_nothing_saturates_where_a_scale_knows_the_largest(make: Any, kind: Any) -> None:
    x = random_qkv(RAGGED)[1]
    more = (RAGGED,) if make is quantize.per_tile else ()
    (gradient,) = torch.autograd.grad(make(x, kind, *more).dequantize().sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x), rtol=1e-6, atol=0)  # by a scale, and its inverse


@pytest.mark.parametrize("plan", [MIXED, AttentionPlan(*SEEN[5])], ids=str)
def test_little_memory_changes_nothing(plan: AttentionPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_qkv(plan.tiles)
    whole = of_squares(differentiable.attention(*given, plan), *given)
    monkeypatch.setattr(reference, "_MOST_NUMBERS", 2**12)
    for mine, theirs in zip(of_squares(differentiable.attention(*given, plan), *given), whole, strict=True):
        assert distance(mine, theirs) < 1e-3  # sums in another order, and ties


def test_no_scores_are_kept_for_the_backward_pass() -> None:
    tiles = TileGrid((4, 16, 16), (2, 4, 4))  # 1024 tokens
    given, kept = random_qkv(tiles), []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        differentiable.attention(*given, AttentionPlan(tiles, (SUMMARY,), (), "int8", "fp8"))
    scores = 2 * 3 * tiles.tokens**2
    assert max(kept) < scores / 8
    assert sum(kept) < scores


def test_it_can_be_computed_again_in_the_backward_pass() -> None:
    given = random_qkv(RAGGED)
    kept = of_squares(differentiable.attention(*given, MIXED), *given)
    again = of_squares(checkpoint(differentiable.attention, *given, MIXED, use_reentrant=False), *given)
    assert all(map(torch.equal, kept, again))


@pytest.mark.parametrize("plan", [MIXED, AttentionPlan(RAGGED, (SUMMARY,))], ids=str)
def test_autocast_changes_nothing(plan: AttentionPlan) -> None:
    """It would round all products to bfloat16, in training and when a model renders that is being trained."""
    given = random_qkv(RAGGED)
    norm, rope = torch.ones(48), rope_table(RAGGED.grid, 16, 10_000.0)
    plainly = door.attend(*given, QKTransform(norm, norm, 1e-6, rope), plan)
    with torch.autocast("cpu", torch.bfloat16):
        cast = door.attend(*given, QKTransform(norm, norm, 1e-6, rope), plan)
        gradients = of_squares(cast, *given)
        with torch.no_grad():
            rendered = door.attend(*given, QKTransform(norm, norm, 1e-6, rope), plan)
    assert torch.equal(plainly, cast)
    torch.testing.assert_close(rendered, plainly)  # in float32, by the kernels of inference
    assert all(map(torch.equal, gradients, of_squares(plainly, *given)))


def test_results_and_gradients_have_the_dtype_of_what_is_given() -> None:
    given = random_qkv(RAGGED, torch.bfloat16)
    found = differentiable.attention(*given, MIXED)
    assert found.dtype == torch.bfloat16
    for mine, theirs in zip(of_squares(found, *given), of_squares(by_hand(*given, MIXED), *given), strict=True):
        assert mine.dtype == torch.bfloat16
        assert distance(mine, theirs) < 1e-2  # 8 bits of each number


def test_dense_attention_that_is_not_rounded_is_torch_s() -> None:
    given = random_qkv(RAGGED)
    with dense.using(lambda q, k, v: q + k + v):
        assert torch.equal(differentiable.attention(*given, AttentionPlan(RAGGED)), sum(given))  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("seen", SEEN[:5], ids=str)
@pytest.mark.parametrize(("qk", "pv"), [("bf16", "bf16"), *PRECISIONS])
def test_on_a_gpu_all_but_p_is_rounded(
    seen: tuple[TileGrid, tuple[Seen, ...], tuple[int, ...]], qk: str, pv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain PyTorch in the place of FlexAttention, which has no gradients on a CPU."""
    monkeypatch.setattr(flex, "by_blocks", plain)
    monkeypatch.setattr(flex, "why_not", lambda device, plan, head_dim: "8 bits" if plan.is_8bit else None)
    plan = AttentionPlan(*seen, qk, pv)  # type: ignore[arg-type]
    given = random_qkv(RAGGED)
    found, expected = differentiable.attention(*given, plan), by_hand(*given, plan, rounds_p=False)
    assert distance(found, expected) < 1e-5
    for mine, theirs in zip(of_squares(found, *given), of_squares(expected, *given), strict=True):
        assert distance(mine, theirs) < 1e-5


@pytest.mark.parametrize("wanted", ["q", "norm_k"])
def test_the_door_leads_here_where_gradients_are_wanted(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a GPU whose kernel has none."""
    q, k, v = (x.detach() for x in random_qkv(RAGGED))
    norms = {name: torch.rand(48, generator=torch.Generator().manual_seed(1)) + 0.5 for name in ("norm_q", "norm_k")}
    transform = QKTransform(**norms, eps=1e-6, rope=rope_table(RAGGED.grid, 16, 10_000.0)[RAGGED.inverse])
    inference = door.attend(q, k, v, transform, MIXED)
    monkeypatch.setattr(door, "choose", lambda *given: door.Choice("hopper", ()))
    monkeypatch.setattr(hopper, "attention", lambda *given: None)
    leaf = {"q": q, **norms}[wanted].requires_grad_()
    found = door.attend(q, k, v, transform, MIXED)
    assert torch.equal(found, inference)
    assert torch.autograd.grad(found.sum(), leaf)[0].abs().max() > 0
    with torch.no_grad():
        assert door.attend(q, k, v, transform, MIXED) is None
