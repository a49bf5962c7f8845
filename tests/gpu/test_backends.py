"""Backends on a CUDA device: what only a card can say. Neither diffusers nor ffmpeg is needed."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from fpsgen.attention import differentiable, door, emulator, flex, reference
from fpsgen.attention.emulator import error
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid
from tests.tools.gradients import by_hand, of_squares

pytestmark = pytest.mark.gpu

RAGGED = TileGrid((5, 6, 7), (2, 2, 3))
CUT = TileGrid((9, 14, 16), (3, 5, 8))  # tiles of 120 tokens, and of 96 at an edge
SD = TileGrid((21, 30, 52), (3, 10, 4))  # 832x480, 81 frames
TOP, SUMMARY = KeyTiles(top=0.3), KeyTiles(top=0.3, rest="summary")


def random_qkv(tiles: TileGrid, heads: int, head_dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tiles.tokens)
    shape = (1, tiles.tokens, heads, head_dim)
    return [torch.randn(shape, generator=generator).to("cuda", dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "plan",
    [
        AttentionPlan(CUT, ((1, 3, 1),)),
        AttentionPlan(CUT, ((1, 3, 1), None, (3, 1, 1)), (2, 0, 1)),
        AttentionPlan(SD, ((7, 3, 5),)),
        AttentionPlan(SD, ((3, 1, 3),)),
        AttentionPlan(CUT, (TOP, SUMMARY, KeyTiles((1, 3, 1), rest="summary")), (2, 0, 1)),
        AttentionPlan(SD, (TOP,)),
        AttentionPlan(SD, (SUMMARY,)),  # 273 tiles: three blocks of mean keys
    ],
    ids=str,
)
def test_flex_runs_sparse_plans(plan: AttentionPlan, dtype: torch.dtype) -> None:
    q, k, v = random_qkv(plan.tiles, 3, 128, dtype)
    choice = door.choose(q.device, plan, 128)
    assert choice.name == "flex", choice
    # bfloat16 rounds P, the result and, with a summary, mean keys and values: 2^-9 each; FlexAttention may use TF32 for
    # float32, with 2^-11.
    assert error(flex.attention(q, k, v, plan), reference.attention(q, k, v, plan)) < 1e-2


@pytest.mark.parametrize(("qk", "pv"), [("bf16", "bf16"), ("fp8", "fp8"), ("int8", "fp8")])
def test_reference_is_the_same_on_cuda(qk: str, pv: str) -> None:
    plan = AttentionPlan(RAGGED, ((1, 3, 3), None, (3, 1, 1)), (2, 0, 1), qk, pv)  # type: ignore[arg-type]
    q, k, v = random_qkv(RAGGED, 3, 128, torch.float32)
    on_cpu = reference.attention(q.cpu(), k.cpu(), v.cpu(), plan)
    assert error(reference.attention(q, k, v, plan).cpu(), on_cpu) < 1e-3  # a code of P on the other side of a tie


@pytest.mark.parametrize("name", emulator.VARIANTS)
def test_emulator_is_the_same_on_cuda(name: str) -> None:
    variant = emulator.VARIANTS[name]
    plan = AttentionPlan(RAGGED, ((1, 3, 3),), (), variant.qk, "fp8")
    q, k, v = random_qkv(RAGGED, 2, 128, torch.float32)
    on_cpu = emulator.emulate(q.cpu(), k.cpu(), v.cpu(), plan, variant)
    assert error(emulator.emulate(q, k, v, plan, variant).cpu(), on_cpu) < 3e-3  # as above, and bfloat16 results


def test_gradients_pass_through_flex() -> None:
    plan = AttentionPlan(RAGGED, ((1, 3, 3),))
    q, k, v = (x.requires_grad_() for x in random_qkv(RAGGED, 2, 64, torch.float32))
    flex.attention(q, k, v, plan).square().sum().backward()
    found = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    mask = torch.zeros(RAGGED.tokens, RAGGED.tokens, dtype=torch.bool, device="cuda")
    _, _, groups = reference.grouped(RAGGED, (1, 3, 3), q.device)
    order = reference.grouped(RAGGED, (1, 3, 3), q.device)[0]
    start = 0
    for group in groups:
        for keys in group.keys:
            mask[order[start : start + group.queries, None], keys] = True
            start += group.queries
    own = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
    )
    own.square().sum().backward()
    for mine, x in zip(found, (q, k, v), strict=True):
        assert error(mine, x.grad) < 1e-2


@pytest.mark.parametrize("seen", [TOP, SUMMARY, KeyTiles((1, 3, 1), rest="summary")], ids=str)
@pytest.mark.parametrize(("qk", "pv"), [("bf16", "bf16"), ("int8", "fp8"), ("fp8", "fp8")])
def test_gradients_pass_through_flex_and_lists_are_constants(seen: KeyTiles, qk: str, pv: str) -> None:
    plan = AttentionPlan(CUT, (seen,), (), qk, pv)  # type: ignore[arg-type]
    q, k, v = (x.requires_grad_() for x in random_qkv(CUT, 2, 64, torch.float32))
    found = of_squares(differentiable.attention(q, k, v, plan), q, k, v)
    for mine, theirs in zip(found, of_squares(by_hand(q, k, v, plan, rounds_p=False), q, k, v), strict=True):
        assert error(mine, theirs) < 1e-2


def test_flex_compiles_nothing_when_lists_change() -> None:
    plan = AttentionPlan(CUT, (SUMMARY,))
    flex.attention(*random_qkv(CUT, 2, 64, torch.bfloat16), plan)
    counters.clear()
    flex.attention(*(x.roll(1, 1) for x in random_qkv(CUT, 2, 64, torch.bfloat16)), plan)
    assert not counters["stats"]["unique_graphs"]
