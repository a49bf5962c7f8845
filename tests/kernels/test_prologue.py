"""sm90_prologue.cu, run on a CPU: what it hands over, against the emulator's operands; then the kernel behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fpsgen.attention import QKTransform, hopper, prepare
from fpsgen.attention.emulator import VARIANTS, emulate
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from tests.kernels import host
from tests.kernels.host import Schedule

RAGGED = TileGrid((2, 5, 9), (2, 3, 4))
FULL = TileGrid((2, 8, 16), (2, 8, 8))


def inputs(tiles: TileGrid, heads: int = 2, batch: int = 2) -> tuple[list[Tensor], QKTransform]:
    generator = torch.Generator().manual_seed(tiles.tokens)
    q, k, v = (torch.randn(batch, tiles.tokens, heads, 128, generator=generator).bfloat16() for _ in range(3))
    norm_q, norm_k = (torch.rand(heads * 128, generator=generator) + 0.5 for _ in range(2))
    angles = torch.rand(tiles.tokens, 64, generator=generator) * 6
    return [3 * q, k + 1, v], QKTransform(norm_q, norm_k, 1e-6, torch.stack([angles.cos(), angles.sin()], -1))


def prepared(q: Tensor, k: Tensor, transform: QKTransform) -> list[Tensor]:
    """q and k in float32, as the prologue holds them; `attend` would round them to bfloat16."""
    return [prepare(q, transform.norm_q, transform), prepare(k, transform.norm_k, transform)]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("tiles", [RAGGED, FULL], ids=str)
@pytest.mark.parametrize("smooth_k", [True, False])
def test_images_and_scales(name: str, tiles: TileGrid, smooth_k: bool) -> None:
    (q, k, v), transform = inputs(tiles)
    plan = AttentionPlan(tiles, qk=VARIANTS[name].qk, pv="fp8", smooth_k=smooth_k)
    found = host.prologue(q, k, v, transform, plan, name)
    expected = host.images(*prepared(q, k, transform), v, plan, name)
    tokens = np.arange(host.SLOTS) < tiles.valid.numpy()[:, None]  # what the scale of a slot without one is, is free
    for key, kept in (("q_scale", tokens), ("v_scale", ...)):
        ours, theirs = found[key], expected[key].reshape(found[key].shape)
        if key == "q_scale":
            ours, theirs = ours[:, kept], theirs[:, kept]
        np.testing.assert_allclose(ours, theirs, rtol=2e-6)  # sums in another order
    ours, theirs = host.trailers(found["trailers"]), host.trailers(expected["trailers"])
    np.testing.assert_allclose(ours["scale"], theirs["scale"], rtol=2e-6)
    np.testing.assert_array_equal(ours["valid"], theirs["valid"])
    np.testing.assert_array_equal(found["v"], expected["v"])  # v is only rounded: every byte
    for key in ("q", "k"):  # a value beside a tie may fall to either side: few codes, by one
        differ = found[key] != expected[key]
        assert differ.mean() < 1e-3, key
        assert np.abs(found[key].astype(int) - expected[key])[differ].max(initial=0) == differ.any(), key


def test_pooled_tiles_are_means() -> None:
    (q, k, v), transform = inputs(RAGGED)
    plan = AttentionPlan(RAGGED, qk="int8", pv="fp8")
    found = host.prologue(q, k, v, transform, plan, "E")
    for key, x in zip(("q_pooled", "k_pooled"), prepared(q, k, transform), strict=True):
        x = x.transpose(1, 2).flatten(0, 1)
        for tile, (first, last) in enumerate(zip(RAGGED.offsets[:-1], RAGGED.offsets[1:], strict=True)):
            np.testing.assert_allclose(found[key][:, tile], x[:, first:last].mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_prologue_and_kernel(name: str) -> None:
    (q, k, v), transform = inputs(RAGGED, heads=3)
    variant = VARIANTS[name]
    plan = AttentionPlan(RAGGED, ((1, 1, 3), None), (1, 0, 0), variant.qk, "fp8")
    with host.on_this_machine(Schedule(seed=2)):
        found = hopper.attention(q, k, v, transform, plan, name)
    expected = emulate(*prepared(q, k, transform), v, plan, variant)
    assert float((found.double() - expected.double()).norm() / expected.double().norm()) < 3e-3


def test_zeros_are_no_trouble() -> None:
    (q, k, v), transform = inputs(RAGGED, batch=1)
    plan = AttentionPlan(RAGGED, qk="fp8", pv="fp8")
    found = host.prologue(q * 0, k * 0, v * 0, transform, plan, "C")
    assert np.isfinite(found["q_scale"]).all()
    assert np.isfinite(found["v_scale"]).all()
    for key in ("q", "k", "v"):
        assert not (found[key][:, :, :128] & 127).any()  # zeros, of either sign
