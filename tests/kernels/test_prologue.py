"""sm90_prologue.cu, run on a CPU: what it hands over, against the emulator's operands; then the kernel behind it."""

from __future__ import annotations

import numpy as np
import pytest

from fpsgen.attention import hopper
from fpsgen.attention.emulator import VARIANTS, emulate
from fpsgen.attention.tiles import TileGrid
from tests.kernels import host
from tests.kernels.cases import RAGGED, assert_near, assert_pooled, assert_same_operands, inputs, plan_for, prepared
from tests.kernels.host import Schedule

FULL = TileGrid((2, 8, 16), (2, 8, 8))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("tiles", [RAGGED, FULL], ids=str)
@pytest.mark.parametrize("smooth_k", [True, False])
def test_images_and_scales(name: str, tiles: TileGrid, smooth_k: bool) -> None:
    given = inputs(tiles, batch=2)
    plan = plan_for(name, tiles, smooth_k=smooth_k)
    found = host.prologue(*given, plan, name)
    assert_same_operands(found, host.images(*prepared(given), given[2], plan, name), plan, every_v=True)


def test_pooled_tiles_are_means() -> None:
    given = inputs(RAGGED, batch=2)
    assert_pooled(host.prologue(*given, plan_for("int8-int32", RAGGED), "int8-int32"), given, RAGGED)


@pytest.mark.parametrize("name", VARIANTS)
def test_prologue_and_kernel(name: str) -> None:
    given = inputs(RAGGED, heads=3, batch=2)
    plan = plan_for(name, RAGGED, ((1, 1, 3), None), heads=(1, 0, 0))
    with host.on_this_machine(Schedule(seed=2)):
        found = hopper.attention(*given, plan, name)
    assert_near(found, emulate(*prepared(given), given[2], plan, VARIANTS[name]))


def test_zeros_are_no_trouble() -> None:
    q, k, v, transform = inputs(RAGGED)
    found = host.prologue(q * 0, k * 0, v * 0, transform, plan_for("fp8-fp16", RAGGED), "fp8-fp16")
    assert np.isfinite(found["q_scale"]).all()
    assert np.isfinite(found["v_scale"]).all()
    for key in ("q", "k", "v"):
        assert not (found[key][:, :, :128] & 127).any()  # zeros, of either sign
