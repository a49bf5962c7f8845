"""sm90_prologue.cu, run on a CPU: what it hands over, against the emulator's operands; then the kernel behind it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from torch import Tensor

from fpsgen.attention import hopper
from fpsgen.attention.emulator import VARIANTS, emulate
from fpsgen.attention.plan import KeyTiles
from fpsgen.attention.qk import unchanging
from fpsgen.attention.tiles import TileGrid
from fpsgen.bench.attention.shapes import shape
from fpsgen.kernels.sm90_prologue import MOST_HEADS, traffic
from fpsgen.kernels.sm90_prologue import VARIANTS as KERNELS
from tests.kernels import host
from tests.kernels.cases import (
    MANY,
    RAGGED,
    TOP,
    TOP_SUMMARY,
    WINDOW_SUMMARY,
    assert_near,
    assert_pooled,
    assert_same_operands,
    inputs,
    mostly,
    plan_for,
    prepared,
    with_spikes,
)
from tests.kernels.host import Schedule

FULL = TileGrid((2, 8, 16), (2, 8, 8))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("tiles", "smooth_k"),
    mostly(product((RAGGED, FULL), (True, False)), (RAGGED, True), (RAGGED, False), (FULL, True)),
    ids=str,
)
def test_images_and_scales(name: str, tiles: TileGrid, smooth_k: bool) -> None:
    given = inputs(tiles, batch=2)
    plan = plan_for(name, tiles, smooth_k=smooth_k)
    found = host.prologue(*given, plan, name)
    assert_same_operands(found, host.images(*prepared(given), given[2], plan, name), plan, every_v=True)
    assert not any(found[key].size for key in found if key.startswith("summary"))


@pytest.mark.parametrize("name", mostly(VARIANTS, "fp8-fp16"))
def test_what_is_normed_and_rotated_already(name: str) -> None:
    """As GPUs that share a video's tokens have it: a transform that changes nothing."""
    given = inputs(RAGGED, batch=2)
    q, k = (x.bfloat16().to(x.dtype) for x in prepared(given))
    plan = plan_for(name, RAGGED)
    found = host.prologue(q.bfloat16(), k.bfloat16(), given[2], unchanging(q.shape, q.device), plan, name)
    assert_same_operands(found, host.images(q, k, given[2], plan, name), plan, every_v=True)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("smooth_k", "spikes"), mostly(product((True, False), (0.0, 1000.0)), (True, 0.0), (False, 1000.0))
)
def test_summary(name: str, smooth_k: bool, spikes: float) -> None:
    """v's scales are those of v again."""
    given = with_spikes(inputs(RAGGED, batch=2), RAGGED, spikes) if spikes else inputs(RAGGED, batch=2)
    plan = plan_for(name, RAGGED, (TOP_SUMMARY,), smooth_k=smooth_k)
    found = host.prologue(*given, plan, name)
    assert_same_operands(found, host.images(*prepared(given), given[2], plan, name), plan)


def test_two_tiles_of_means() -> None:
    """The second has two: the others of its slots are the last key again, and zeros."""
    given = inputs(MANY, heads=1)
    plan = plan_for("fp8-fp16", MANY, (TOP_SUMMARY,))
    found = host.prologue(*given, plan, "fp8-fp16")
    assert_same_operands(found, host.images(*prepared(given), given[2], plan, "fp8-fp16"), plan)


@pytest.mark.parametrize("name", mostly(VARIANTS, "fp8-fp16"))
def test_a_summary_leaves_all_else_as_it_is(name: str) -> None:
    given = inputs(RAGGED, batch=2)
    plain, more = (host.prologue(*given, plan_for(name, RAGGED, (own,)), name) for own in (None, TOP_SUMMARY))
    assert all(np.array_equal(plain[key], more[key]) for key in plain if not key.startswith("summary"))


@pytest.mark.parametrize("which", ["k", "v"])
def test_damage_shows_in_the_summary(which: str) -> None:
    """A scale that is none: of the tile of mean keys, and of the channel of v."""
    q, k, v, transform = inputs(RAGGED)
    {"k": k, "v": v}[which][0, 3, 1, 7] = float("nan")
    found = host.prologue(q, k, v, transform, plan_for("fp8-fp16", RAGGED, (TOP_SUMMARY,)), "fp8-fp16")
    scales = host.trailers(found["summary_trailers"])["scale"]
    assert np.isnan(scales).any() == (which == "k")
    assert np.isnan(found["v_scale"]).sum() == (which == "v")
    assert which == "k" or not (found["summary_v"][0, :, :128, 6:] & 127 == 127).any()  # of another head


@pytest.mark.parametrize("heads", [1, 3, 17, MOST_HEADS])
def test_any_number_of_heads(heads: int) -> None:
    """An odd one leaves half a warp idle, one above 16 makes a second round, and all are three."""
    tiles = TileGrid((1, 2, 5), (1, 2, 3))
    given = inputs(tiles, heads)
    plan = plan_for("fp8-fp16", tiles)
    found = host.prologue(*given, plan, "fp8-fp16")
    assert_same_operands(found, host.images(*prepared(given), given[2], plan, "fp8-fp16"), plan, every_v=True)
    assert_pooled(found, given, tiles)


def test_more_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=f"room for {MOST_HEADS}"):
        host.prologue(*inputs(RAGGED, MOST_HEADS + 1), plan_for("fp8-fp16", RAGGED), "fp8-fp16")


@pytest.mark.parametrize("name", VARIANTS)
def test_v_beyond_the_scale_of_its_sample(name: str) -> None:
    """The result is as if the sample had been all of v: not cut off. More tiles than a head has blocks then."""
    tiles = TileGrid((1, 5, 9), (1, 3, 2))
    given = with_spikes(inputs(tiles, batch=2), tiles, 1000.0)
    plan = plan_for(name, tiles)
    found = host.prologue(*given, plan, name)
    assert_same_operands(found, host.images(*prepared(given), given[2], plan, name), plan, every_v=True)
    scales, v = found["v_scale"].reshape(2, 2, 128), given[2].float().abs().amax(1).numpy()
    beyond = np.zeros_like(v, bool)
    beyond[0, 0, [70, 9]] = beyond[1, 1, 5] = True
    assert np.array_equal(scales[beyond], v[beyond] / np.float32(448))
    assert (scales[~beyond] > v[~beyond] / 448).all()


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_v_that_is_no_number_leaves_no_scale(row: int, value: float) -> None:
    """In the sample, which is row 0 of each tile, and elsewhere."""
    q, k, v, transform = inputs(RAGGED)
    v[0, row, 1, 7] = value
    found = host.prologue(q, k, v, transform, plan_for("fp8-fp16", RAGGED), "fp8-fp16")
    damaged = np.zeros((2, 128), bool)
    damaged[1, 7] = True
    assert np.array_equal(np.isnan(found["v_scale"]), damaged)


def test_the_order_of_a_block_s_threads_does_not_matter() -> None:
    given = with_spikes(inputs(RAGGED, heads=3), RAGGED, 1000.0)
    made = [
        host.prologue(*given, plan_for("int8-int32", RAGGED), "int8-int32", schedule=Schedule(seed)) for seed in (1, 2)
    ]
    assert all(np.array_equal(made[0][key], made[1][key]) for key in made[0])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("smooth_k", [True, False])
@pytest.mark.parametrize("seen", [None, TOP_SUMMARY], ids=str)
def test_traffic_is_that_of_the_tensors(
    name: str, smooth_k: bool, seen: KeyTiles | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    between: dict[str, Tensor] = {}
    monkeypatch.setattr(hopper, "packed", lambda _, values: between.update(values))
    monkeypatch.setattr(hopper, "launch", lambda *_: None)
    given, plan = inputs(RAGGED, heads=3, batch=2), plan_for(name, RAGGED, (seen,), smooth_k=smooth_k)
    made = sum(x.nbytes for x in hopper.prologue(*given, plan, name).values())
    k_rms, k_mean, beyond, pooled = (between[key].nbytes for key in ("k_rms", "k_mean", "v_beyond", "k_pooled"))
    v_means = between["v_means"].nbytes
    q, k, v, transform = given
    kernel, _ = hopper.kernels(plan, name)
    found = traffic(kernel, RAGGED.tokens, heads=3, tiles=len(RAGGED.valid), batch=2)
    assert sum(own.written for own in found.values()) == made + k_rms + smooth_k * k_mean + beyond + v_means
    of_v = v[:, RAGGED.offsets[:-1]].nbytes + between["v_scale"].nbytes + beyond
    of_k = k_rms + smooth_k * (pooled + k_mean)
    read = q.nbytes + 2 * k.nbytes + v.nbytes + 2 * transform.rope.nbytes
    of_summary = v_means + pooled + between["v_scale"].nbytes + smooth_k * k_mean if plan.has_summary else 0
    assert sum(own.read for own in found.values()) == read + of_v + of_k + of_summary


def test_traffic_at_720p() -> None:
    """Of 14B, in GB: one of q, k and v is 0.77, and its image 0.41. What is not needed is k and a table once more."""
    most = max(sum(map(sum, traffic(kernel, 75_600, 40, 630).values())) for kernel in KERNELS.values())
    needed = shape("14b", "720p").prologue("fp8-fp16").bytes
    assert needed + 0.77e9 < most < 4.5e9


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


@pytest.mark.parametrize("name", VARIANTS)
def test_prologue_choice_and_kernel(name: str) -> None:
    """The emulator chooses by sums in float64: here no two tiles fit so nearly alike that it would choose others."""
    given = inputs(RAGGED, heads=5, batch=2)
    plan = plan_for(name, RAGGED, (TOP_SUMMARY, WINDOW_SUMMARY, TOP, None), heads=(0, 1, 2, 3, 0))
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
