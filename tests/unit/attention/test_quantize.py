"""8-bit formats, bit for bit, against ml_dtypes and exhaustive tables."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from fpsgen.attention import quantize
from fpsgen.attention.tiles import TileGrid


def e4m3_numbers() -> torch.Tensor:
    """Every finite number of the format, ascending, from its definition: (1 + m / 8) 2^(e - 7), or m / 8 · 2^-6."""
    positive = [m / 8 * 2.0**-6 for m in range(8)]
    positive += [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]  # the last code is NaN
    return torch.tensor(sorted({-x for x in positive} | set(positive)))


def around(numbers: torch.Tensor) -> torch.Tensor:
    """The numbers, the points half way between neighbours, and the float32 values next to all of these."""
    middles = (numbers[1:].double() + numbers[:-1].double()).div(2).float()  # exact: they need one more bit
    points = torch.cat([numbers, middles, torch.tensor([0.0, -0.0, 448.0, 464.0, 480.0, 1e30, -1e30, 1e-45])])
    beside = [torch.nextafter(points, torch.tensor(end)) for end in (float("inf"), float("-inf"))]
    return torch.cat([points, *beside])


def test_e4m3_rounds_as_ml_dtypes_does() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(200_000, generator=generator) * torch.logspace(-12, 4, 200_000, base=2.0)
    x = torch.cat([around(e4m3_numbers()), wide])
    expected = x.clamp(-448, 448).numpy().astype(ml_dtypes.float8_e4m3fn)  # ml_dtypes does not saturate
    found = quantize.round_to_(x.clone(), "fp8")
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))
    codes = found.to(torch.float8_e4m3fn)
    np.testing.assert_array_equal(codes.view(torch.uint8).numpy(), expected.view(np.uint8))  # the sign of zeros, too


def test_e4m3_is_the_nearest_number_and_the_even_one_in_a_tie() -> None:
    """By search, without any library's rounding."""
    numbers = e4m3_numbers()
    x = around(numbers)
    x = x[x.abs() <= 448]
    distance = (x.double()[:, None] - numbers.double()).abs()
    nearest = distance == distance.min(1, keepdim=True).values
    found = quantize.round_to_(x.clone(), "fp8")
    is_found = numbers == found[:, None]
    assert bool((is_found & nearest).any(1).all())
    ties = nearest.sum(1) == 2
    assert int(ties.sum()) > 200  # the test sees them
    even = found[ties].to(torch.float8_e4m3fn).view(torch.uint8) % 2 == 0
    assert bool(even.all())


def test_int8_rounds_to_the_even_of_a_tie_and_saturates() -> None:
    x = torch.arange(-600, 601) / 4  # all quarters, among them all ties, and beyond both ends
    found = quantize.round_to_(x.clone(), "int8")
    expected = [min(127, max(-128, round(float(value)))) for value in x]  # Python's round is half to even
    assert found.tolist() == expected


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_what_is_not_finite_shows(kind: quantize.Format) -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf")])
    found = quantize.round_to_(x, kind)
    assert found[0].isnan()
    assert found[1:].tolist() == ([448, -448] if kind == "fp8" else [127, -128])


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_scales_are_of_tile_token_and_channel(kind: quantize.Format) -> None:
    tiles = TileGrid((3, 3, 5), (2, 2, 2))  # ragged everywhere
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, tiles.tokens, 3, 16, generator=generator)
    limit = quantize.LARGEST[kind]
    found = quantize.per_tile(x, kind, tiles)
    assert found.scale.shape == (2, tiles.tokens, 3, 1)
    for first, last in zip(tiles.offsets[:-1], tiles.offsets[1:], strict=True):
        amax = x[:, first:last].abs().amax((1, 3))
        expected = (amax / limit)[:, None].expand(-1, int(last - first), -1)
        torch.testing.assert_close(found.scale[:, first:last, :, 0], expected, rtol=0, atol=0)
    token, channel = quantize.per_token(x, kind), quantize.per_channel(x, kind)
    torch.testing.assert_close(token.scale, x.abs().amax(3, keepdim=True) / limit, rtol=0, atol=0)
    torch.testing.assert_close(channel.scale, x.abs().amax(1, keepdim=True) / limit, rtol=0, atol=0)
    # Half a step of the format: E4M3 has 3 bits behind the leading one; INT8's step is the scale.
    for one in (found, token, channel):
        bound = x.abs() / 16 + 2.0**-10 * one.scale if kind == "fp8" else one.scale / 2
        assert bool(((one.dequantize() - x).abs() <= bound * 1.0001).all())  # float32 arithmetic on top
        assert float(one.numbers.abs().max()) == limit


def test_a_channel_s_scale_by_a_sample() -> None:
    """28 for the largest in the first row of each tile; as `per_channel` where anything is then beyond 448."""
    tiles = TileGrid((1, 1, 6), (1, 1, 4))
    x = torch.ones(1, 6, 1, 4)
    x[0, 4, 0, :2] = 2
    x[0, 1, 0, :2] = torch.tensor([-32.0, 32.5])  # 16 times the sample's, and more
    x[0, [0, 4], 0, 2] = 0
    x[..., 3] = 0
    found = quantize.per_channel_by_sample(x, tiles)
    least = torch.finfo(torch.float32).tiny
    expected = torch.tensor([2 / 28, 32.5 / 448, 1 / 448, least])
    torch.testing.assert_close(found.scale, expected.view(1, 1, 1, 4), rtol=1e-7, atol=0)
    assert found.numbers[0, 1, 0].tolist() == [-448, 448, 448, 0]


def test_a_smaller_largest_number_is_what_scales_aim_at() -> None:
    found = quantize.per_token(torch.tensor([[[[1.0, -3.0]]]]), "fp8", largest=16.0)
    assert found.numbers.tolist() == [[[[5.5, -16.0]]]]  # 16 / 3 lies between 5 and 5.5
    assert float(found.scale) == pytest.approx(3 / 16)


def test_zeros_have_a_scale() -> None:
    x = torch.zeros(1, 8, 1, 4)
    for found in (
        quantize.per_token(x, "int8"),
        quantize.per_tile(x, "fp8", TileGrid((2, 2, 2), (1, 2, 2))),
        quantize.per_channel(x, "fp8"),
    ):
        assert bool((found.scale == 1).all())
        assert bool((found.dequantize() == 0).all())


def test_the_smallest_numbers_are_not_divided_by_zero() -> None:
    for kind in quantize.LARGEST:
        found = quantize.per_token(torch.tensor([[[[1e-45, 0.0, -1e-40, 0.0]]]]), kind)
        assert bool(found.numbers.isfinite().all())
        assert float(found.scale) > 0


def test_smoothing_moves_every_score_of_a_query_alike() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 30, 2, 16, generator=generator) for _ in range(2))
    k = k + 10
    moved = torch.einsum("bqhd,bkhd->bhqk", q, k - quantize.smooth(k))
    torch.testing.assert_close(moved, moved[..., :1].expand_as(moved), rtol=1e-4, atol=1e-3)  # of scores near 100
    assert float(quantize.smooth(k).mean(1).abs().max()) < 1e-5
