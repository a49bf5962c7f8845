"""A block of the pocket model, a trained one, through the kernels' sources: attention with its prologue, and all else
between products."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from fpsgen import solvers
from fpsgen.attention import hopper
from fpsgen.attention.emulator import error
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.wan import elementwise
from fpsgen.wan.plan import Linears
from fpsgen.wan.transformer import Block
from fpsgen.weights import models
from fpsgen.weights.load import load_text_encoder, load_transformer
from tests.kernels import host
from tests.kernels.cases import assert_near, mostly

CPU = torch.device("cpu")
GRID = (7, 6, 10)  # the pocket model's own
LAYER = 3


@pytest.fixture(scope="module")
def layer() -> tuple[Block, tuple]:
    """A block in the middle, and what it is given at sigma 0.6 of a real prompt and of none, but for its plan."""
    checkpoint = models.find(models.POCKET).checkpoint
    encoder = load_text_encoder(checkpoint, CPU, torch.float32)
    texts = torch.cat([encoder.encode(prompt).text for prompt in ("a cat surfing", "")])
    transformer = load_transformer(checkpoint, CPU, torch.float32)
    block = list(transformer.layers())[LAYER]
    given: list[tuple] = []
    block.register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    latents = solvers.noise(16, (7, 12, 20), seed=1)
    with torch.inference_mode():
        transformer(latents.expand(2, -1, -1, -1, -1), torch.tensor([600.0, 600.0]), transformer.embed_text(texts))
    return block, given[0]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("plan", "branches"),
    [
        (AttentionPlan(TileGrid(GRID, (3, 2, 4)), ((1, 1, 3), (3, 1, 1), (1, 3, 1)), (0, 2, 1), "fp8", "fp8"), 1),
        (AttentionPlan(TileGrid(GRID, (4, 3, 5)), qk="fp8", pv="fp8"), 2),
        (AttentionPlan(TileGrid(GRID, (4, 3, 5)), ((1, 2, 1), None), (1, 0, 0), "int8", "fp8"), 2),
    ],
    ids=str,
)
def test_a_block_through_the_sources_is_the_emulator_s(
    layer: tuple[Block, tuple], plan: AttentionPlan, branches: int
) -> None:
    block, (x, modulation, key_value, rope, dense, *_) = layer
    rope = rope[dense.tiles.order][plan.tiles.inverse]
    x = x[:branches, dense.tiles.order][:, plan.tiles.inverse]
    modulation, key_value = modulation[:branches], tuple(of_text[:branches] for of_text in key_value)
    attended: list[Tensor] = []
    handle = block.self_attn.register_forward_hook(lambda *of: attended.append(of[2]))
    with host.on_this_machine(host.Schedule(seed=5)):
        found = block(x, modulation, key_value, rope, plan)
        with mock.patch.object(hopper, "attention", side_effect=host.emulated) as called:
            expected = block(x, modulation, key_value, rope, plan)
    assert called.call_count == 1  # `attend` had chosen the kernels
    handle.remove()
    assert_near(attended[0], attended[1])
    assert_near(found - x, expected - x)  # what the block adds: the residual stream would hide an error


@torch.inference_mode()
@pytest.mark.parametrize(
    "linear", mostly((Linears(), Linears("fp8", "fp8"), Linears("int8", "fp8")), Linears("int8", "fp8")), ids=str
)
def test_between_products_a_block_is_pytorch_s(layer: tuple[Block, tuple], linear: Linears) -> None:
    """In bfloat16, with dense attention. A last bit of an input that is another one moves what products make of it, and
    a code of 8 bits: both by less than bfloat16 and 8 bits do."""
    _, (x, modulation, key_value, rope, dense, *_) = layer
    x, modulation, key_value = x[:1], modulation[:1], tuple(of_text[:1].bfloat16() for of_text in key_value)
    half = load_transformer(models.find(models.POCKET).checkpoint, CPU, torch.bfloat16)
    block = list(half.layers())[LAYER]
    expected = block(x, modulation, key_value, rope, dense, linear)
    with host.on_this_machine(), mock.patch.object(elementwise, "launch", side_effect=elementwise.launch) as launched:
        found = block(x, modulation, key_value, rope, dense, linear)
    names = [call.args[1] for call in launched.call_args_list]
    if linear == Linears():
        assert names == []
        assert found.equal(expected), "a block without 8-bit products is PyTorch's, bit for bit"
        return
    assert sorted(names) == sorted(["fps_norm"] * 3 + ["fps_residual", "fps_round", "fps_gelu"])
    assert error(found - x, expected - x) < 2.0**-8
