"""Our DiT against diffusers' WanTransformer3DModel, an oracle that is not our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from fpsgen.attention.tiles import TileGrid
from fpsgen.wan.plan import Linears, dense
from fpsgen.wan.transformer import WanTransformer, rope_table, sinusoid
from fpsgen.weights.layout import recognise
from fpsgen.weights.load import load_transformer

CPU = torch.device("cpu")

# float32 on both sides; what remains is the order of summation.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def ours(wan_folder: Path) -> WanTransformer:
    return load_transformer(recognise(wan_folder), CPU, torch.float32)


def inputs(latents: tuple[int, int, int], batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batch, 16, *latents, generator=generator)
    return x, torch.tensor([700.0, 31.0][:batch]), torch.randn(batch, 9, 24, generator=generator)


# Latent sizes: a video's, a single frame, one token, portrait, and two that no tile divides.
GRIDS = [(3, 8, 12), (1, 8, 8), (1, 2, 2), (5, 14, 6), (2, 10, 14), (7, 6, 22)]


@pytest.mark.parametrize("latents", GRIDS, ids=str)
@pytest.mark.parametrize("tile", [None, (2, 2, 2), (3, 5, 4)], ids=str)
def test_equals_diffusers(wan_pipeline: WanPipeline, ours: WanTransformer, latents: tuple, tile: tuple | None) -> None:
    x, timestep, text = inputs(latents)
    grid = ours.config.grid(latents)
    plan = None if tile is None else dense(TileGrid(grid, tile), ours.config.num_layers)
    with torch.inference_mode():
        expected = wan_pipeline.transformer(x, timestep, text).sample
        got = ours(x, timestep, ours.embed_text(text), plan)
    assert got.shape == expected.shape
    assert (got - expected).norm() <= TOLERANCE * expected.norm()


def test_two_equal_times_are_one_with_8_bit_linear_layers(ours: WanTransformer) -> None:
    x, timestep, text = inputs((3, 8, 12))
    plan = dense(TileGrid(ours.config.grid((3, 8, 12)), (2, 2, 2)), ours.config.num_layers)
    plan = replace(plan, linear=(Linears("int8", "int8"),) * ours.config.num_layers)
    with torch.inference_mode():
        context = ours.embed_text(text)
        both, one = ours(x, timestep[:, None].expand(2, 2), context, plan), ours(x, timestep, context, plan)
    torch.testing.assert_close(both, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tile", [(2, 2, 2), (3, 5, 4)], ids=str)
def test_the_first_frame_may_have_a_time_of_its_own(
    wan_pipeline: WanPipeline, ours: WanTransformer, tile: tuple
) -> None:
    """As diffusers' with a timestep for each token; and two equal ones are one."""
    x, timestep, text = inputs((3, 8, 12))
    grid = ours.config.grid((3, 8, 12))
    plan, per_frame = dense(TileGrid(grid, tile), ours.config.num_layers), grid[1] * grid[2]
    both = torch.stack([torch.zeros(2), timestep], dim=1)
    per_token = torch.cat([both[:, :1].expand(-1, per_frame), both[:, 1:].expand(-1, 2 * per_frame)], dim=1)
    with torch.inference_mode():
        context = ours.embed_text(text)
        expected, got = wan_pipeline.transformer(x, per_token, text).sample, ours(x, both, context, plan)
        alike, one = ours(x, timestep[:, None].expand(2, 2), context, plan), ours(x, timestep, context, plan)
    assert (got - expected).norm() <= TOLERANCE * expected.norm()
    torch.testing.assert_close(alike, one, rtol=1e-4, atol=1e-5)
    assert (got - one).norm() > 0.01 * one.norm()


def test_branches_together_equal_branches_apart(ours: WanTransformer) -> None:
    x, timestep, text = inputs((3, 8, 12))
    x = x[:1].expand(2, -1, -1, -1, -1)
    timestep = timestep[:1].expand(2)
    with torch.inference_mode():
        together = ours(x, timestep, ours.embed_text(text))
        apart = [ours(x[:1], timestep[:1], ours.embed_text(text[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_one_context_serves_a_batch(ours: WanTransformer) -> None:
    x, timestep, text = inputs((1, 8, 8))
    one = ours.embed_text(text[:1])
    both = ours.embed_text(text[:1].expand(2, -1, -1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x, timestep, one), ours(x, timestep, both))


def test_time_and_modulation_stay_float32_in_bfloat16(wan_folder: Path) -> None:
    model = load_transformer(recognise(wan_folder), CPU, torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert dtypes["blocks.0.self_attn.q.weight"] == torch.bfloat16
    assert dtypes["patch_embedding.weight"] == torch.bfloat16
    for name in (
        "blocks.0.modulation", "blocks.1.norm3.weight", "blocks.0.self_attn.norm_q.weight", "head.head.weight",
        "head.modulation", "time_embedding.0.weight", "time_projection.1.weight",
    ):  # fmt: skip
        assert dtypes[name] == torch.float32, name


def test_bfloat16_is_close_to_float32(wan_folder: Path, ours: WanTransformer) -> None:
    half = load_transformer(recognise(wan_folder), CPU, torch.bfloat16)
    x, timestep, text = inputs((3, 8, 12))
    with torch.inference_mode():
        exact = ours(x, timestep, ours.embed_text(text))
        rounded = half(x, timestep, half.embed_text(text))
    assert rounded.dtype == torch.float32
    # bfloat16 keeps 8 bits: 0.4 % a rounding, several of them in a row.
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.03


def test_sinusoid_follows_its_formula() -> None:
    got = sinusoid(torch.tensor([0.0, 999.0]), 6)
    rates = [10_000 ** (-i / 3) for i in range(3)]
    for row, t in zip(got, (0.0, 999.0), strict=True):
        angles = torch.tensor([t * rate for rate in rates], dtype=torch.float64)
        torch.testing.assert_close(row.double(), torch.cat([angles.cos(), angles.sin()]), rtol=0, atol=1e-7)


def test_rope_table_splits_a_head_over_the_axes() -> None:
    table = rope_table((2, 3, 4), 128, 10_000.0).view(2, 3, 4, 64, 2)
    angle = torch.atan2(table[..., 1].double(), table[..., 0].double())
    # The first pair of each axis turns by one radian a step: pairs 0, 22 and 43.
    assert angle[1, 0, 0, 0] == pytest.approx(1)
    assert angle[0, 1, 0, 22] == pytest.approx(1)
    assert angle[0, 0, 1, 43] == pytest.approx(1)
    assert angle[1, 0, 0, 22:].abs().max() == 0
    assert angle[0, 2, 0, 22 + 1] == pytest.approx(2 * 10_000 ** (-1 / 21))
