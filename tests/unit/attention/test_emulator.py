"""The emulator of the kernel's rounding, against a second one in NumPy that goes row by row and key by key."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from fpsgen.attention import dense, emulator, reference
from fpsgen.attention.emulator import VARIANTS, Variant, emulate, error
from fpsgen.attention.plan import AttentionPlan, KeyTiles, Seen
from fpsgen.attention.sums import EXACT, HOPPER, Sums
from fpsgen.attention.tiles import TileGrid
from tests.tools import fp8_sums

F8, F16, F32 = ml_dtypes.float8_e4m3fn, np.float16, np.float32
LINE = TileGrid((1, 1, 420), (1, 1, 120))  # tiles of 120, 120, 120 and 60


def random_qkv(tokens: int, heads: int = 2, head_dim: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens + heads)
    return [torch.randn(1, tokens, heads, head_dim, generator=generator) for _ in range(3)]


def plan_for(variant: Variant, tiles: TileGrid = LINE, **options: object) -> AttentionPlan:
    return AttentionPlan(tiles, qk=variant.qk, pv="fp8", **options)  # type: ignore[arg-type]


def encode(x: np.ndarray, qk: str) -> np.ndarray:
    return np.rint(x).astype(np.int8) if qk == "int8" else np.clip(x, -448, 448).astype(F8)


def scalar_kernel(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, variant: Variant, lists: list[list[int]] | None = None
) -> np.ndarray:
    """One head, exact sums of products, promoted or not: [tokens, head_dim]. lists: the key tiles of each query tile,
    with a summary of the rest; without them attention is dense."""
    tokens, dim = q.shape
    tiles = [slice(i, min(i + 120, tokens)) for i in range(0, tokens, 120)]
    k = k - k.mean(0, dtype=F32)
    limit = F32(variant.largest)
    q_scale = np.abs(q).max(1) / limit
    k_scale = [np.abs(k[tile]).max() / limit for tile in tiles]
    v_scale = np.abs(v[[tile.start for tile in tiles]]).max(0) / F32(28)
    v_scale = np.where(np.abs(v / v_scale).max(0) > 448, np.abs(v).max(0) / F32(448), v_scale)
    q8 = encode(q / q_scale[:, None], variant.qk).astype(F32)
    k8 = [encode(k[tile] / scale, variant.qk).astype(F32) for tile, scale in zip(tiles, k_scale, strict=True)]
    v8 = encode(v / v_scale, "fp8").astype(F32)
    means, v_means = (np.stack([x[tile].mean(0, dtype=F32) for tile in tiles]) for x in (k, v))
    mean_scale = np.abs(means).max() / limit
    means8, v_means8 = encode(means / mean_scale, variant.qk).astype(F32), encode(v_means / v_scale, "fp8").astype(F32)
    logs = np.log2([tile.stop - tile.start for tile in tiles]).astype(F32)
    out = np.zeros((tokens, dim))
    for row in range(tokens):
        listed = lists[row // 120] if lists else range(len(tiles))
        seen = [(k8[tile], k_scale[tile], v8[tiles[tile]], None) for tile in listed]
        if lists:
            seen.append(
                (means8, mean_scale, v_means8, np.where(np.isin(range(len(tiles)), listed), F32(-np.inf), logs))
            )
        m, o, l = F32(-1000), np.zeros(dim), 0.0  # noqa: E741
        for keys, scale, values, added in seen:
            real = F16 if variant.scores == "fp16" else F32
            s = np.zeros(len(keys), real)
            for step in range(0, dim, 32):
                s = (s.astype(F32) + keys[:, step : step + 32] @ q8[row, step : step + 32]).astype(real)
            factor = F32(q_scale[row] * F32(math.log2(math.e) / math.sqrt(dim))) * scale
            if added is not None:
                s, factor, real = s.astype(F32) * factor + added, F32(1), F32
            top = F32(s.max()) * factor
            new = np.ceil(top) if top > m + F32(1.75) else m
            o, l, m = o * 2.0 ** float(m - new), l * 2.0 ** float(m - new), new  # noqa: E741
            x = (s.astype(F32) * F32(real(factor)) + F32(real(7 - m))).astype(real)
            p = np.exp2(x.astype(F32)).astype(real).astype(F32)
            code = p.astype(F8).astype(F32)
            if variant.synthesise:
                slope, offset = F32(real(factor * F32(8 / 126))), F32(real(F32(14 - m) * F32(8 / 126)))
                y = np.clip(s.astype(F32) * slope + offset, 0, 1).astype(real).astype(F32)
                code = np.rint(y * 126).astype(np.uint8).view(F8).astype(F32)
            o = o + code.astype(float) @ values.astype(float)
            l = l + float((code if variant.sum_codes else p).astype(float).sum())  # noqa: E741
        out[row] = o / l * v_scale
    return out


@pytest.mark.parametrize(
    ("seen", "lists"),
    [((None,), None), ((KeyTiles((1, 1, 1), rest="summary"),), [[0], [1], [2], [3]])],
    ids=["dense", "window and summary"],
)
@pytest.mark.parametrize("name", VARIANTS)
def test_against_a_second_emulator(name: str, seen: tuple[Seen, ...], lists: list[list[int]] | None) -> None:
    q, k, v = random_qkv(LINE.tokens)
    q = 2 * q
    found = emulate(q, k, v, plan_for(VARIANTS[name], seen=seen), VARIANTS[name], sums=EXACT)
    for head in range(2):
        expected = scalar_kernel(*(x[0, :, head].numpy() for x in (q, k, v)), VARIANTS[name], lists)
        # bfloat16 results: 2^-9 / √3 = 0.0011 where every other rounding agrees; a code of P that falls on the
        # other side of a tie costs 3 % of one weight.
        assert error(found[0, :, head].float(), torch.from_numpy(expected)) < 2.5e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_near_the_operator_and_exact_attention(name: str) -> None:
    tiles = TileGrid((7, 6, 10), (2, 2, 2))
    q, k, v = random_qkv(tiles.tokens, heads=3)
    windows = ((3, 1, 3), None, (1, 3, 5))
    plan = AttentionPlan(tiles, windows, (2, 0, 1), VARIANTS[name].qk, "fp8")
    found = emulate(q, k, v, plan, VARIANTS[name])
    exact = reference.attention(q, k, v, AttentionPlan(tiles, windows, (2, 0, 1)))
    # Two independent roundings of q, k, v and P each: the numerics table has 0.02 to 0.06 against exact attention.
    assert 0.005 < error(found, exact) < 0.07
    assert error(found, reference.attention(q, k, v, plan)) < 0.09


def test_rows_are_those_of_the_whole() -> None:
    q, k, v = random_qkv(LINE.tokens)
    variant = VARIANTS["int8-int32"]
    rows = torch.tensor([0, 7, 119, 120, 419])
    whole = emulate(q, k, v, plan_for(variant), variant)
    assert torch.equal(emulate(q, k, v, plan_for(variant), variant, rows=rows), whole[:, rows])


def test_options_change_what_they_say() -> None:
    q, k, v = random_qkv(LINE.tokens)
    variant = VARIANTS["int8-int32"]
    shifted = k + 30 * torch.randn(1, 1, 2, 64, generator=torch.Generator().manual_seed(1))
    smoothed, raw = (
        error(emulate(q, shifted, v, plan_for(variant, smooth_k=smooth), variant), dense.attention(q, shifted, v))
        for smooth in (True, False)
    )
    assert smoothed < raw / 3


def test_sums_of_13_bits_are_biased_and_promotion_mends_it() -> None:
    """Values with a mean, many keys: what is cut off is always towards zero."""
    tokens = 128 * 64
    q, k, v = random_qkv(tokens, heads=1)
    v = v + 1
    tiles, variant, rows = TileGrid((1, 1, tokens), (1, 1, 128)), VARIANTS["fp8-fp32"], torch.arange(64)

    def error_of(promote: int | None, sums: Sums) -> float:
        chosen = dataclasses.replace(variant, promote=promote)
        found = emulate(q, k, v, plan_for(chosen, tiles), chosen, sums=sums, rows=rows)
        return error(found, dense.attention(q[:, rows], k, v))

    exact = error_of(1, EXACT)
    assert error_of(None, HOPPER) > 1.5 * exact
    assert error_of(1, HOPPER) < 1.1 * exact


@pytest.mark.parametrize(("name", "promote"), [("fp8-fp32", 1), ("fp8-fp16", 4), ("int8-int32", 4)])
def test_sums_are_promoted_after_so_many_tiles(name: str, promote: int) -> None:
    """By hand: the tensor cores' sum over `promote` tiles, cut after each 32 keys; then float32."""
    variant = VARIANTS[name]
    assert variant.promote == promote
    generator = torch.Generator().manual_seed(3)
    tiles = 11
    v = [e4m3(torch.randn(1, 1, 64, 64, generator=generator) + 1) for _ in range(tiles)]
    # All scores alike, so that P is 2^7 everywhere, or its synthesised code; two steps of 32 keys in a tile.
    q, keys = torch.zeros(1, 1, 1, 64), [torch.zeros(1, 1, 64, 64)] * tiles
    scale = torch.ones(1, 1, 1, 1)
    found = emulator.online_softmax(q, scale, keys, [scale] * tiles, v, [None] * tiles, variant, HOPPER)[0, 0, 0]
    p, codes = emulator.exponentials(torch.zeros(1, 1, 1, 64), scale, torch.zeros(1, 1, 1, 1), variant)
    total, ones = torch.zeros(65), torch.ones(64, 1)
    for first in range(0, tiles, promote):
        short = np.zeros(65)
        for tile in v[first : first + promote]:
            for step in (slice(0, 32), slice(32, 64)):
                values = as_bytes(torch.cat([tile[0, 0, step], ones[step]], 1).T)
                summed = fp8_sums.instruction(short, np.tile(as_bytes(codes[0, 0, 0, step]), (65, 1)), values)
                short = fp8_sums.shortened(summed)
        total = total + torch.from_numpy(short).float()
    denominator = total[64] if variant.sum_codes else p.sum() * tiles
    torch.testing.assert_close(found, total[:64] / denominator, rtol=1e-6, atol=0)


def e4m3(x: Tensor) -> Tensor:
    return x.to(torch.float8_e4m3fn).float()


def as_bytes(x: Tensor) -> np.ndarray:
    return x.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


@pytest.mark.parametrize("name", ["fp8-fp32", "fp8-fp16"])
def test_scores_are_sums_of_8_bit_products(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    q, k = (e4m3(4 * torch.randn(1, 1, rows, 128, generator=generator)) for rows in (30, 50))
    found = emulator.products(q, k, VARIANTS[name], HOPPER)
    assert np.array_equal(found.numpy(), fp8_sums.product(as_bytes(q), as_bytes(k), half=name == "fp8-fp16"))
    assert not torch.equal(found, emulator.products(q, k, VARIANTS[name], EXACT))


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_far_below_zero(name: str) -> None:
    """A query that sees none but keys it dislikes: the first maximum is whatever it is."""
    tiles = TileGrid((1, 1, 64), (1, 1, 32))
    k = torch.randn(1, 64, 1, 64, generator=torch.Generator().manual_seed(1))
    k[:, :32] -= 40
    k[:, 32:] += 40
    v = torch.randn(1, 64, 1, 64, generator=torch.Generator().manual_seed(2))
    q = torch.full((1, 64, 1, 64), 8.0)
    plan = plan_for(VARIANTS[name], tiles, seen=((1, 1, 1),))
    assert bool(emulate(q, k, v, plan, VARIANTS[name]).isfinite().all())


def test_what_a_format_cannot_hold_is_refused() -> None:
    x = torch.ones(1, 420, 1, 256)
    with pytest.raises(ValueError, match="FP16"):
        emulate(x, x, x, plan_for(VARIANTS["fp8-fp16"]), VARIANTS["fp8-fp16"])


def test_a_variant_runs_its_own_precision_only() -> None:
    q, k, v = random_qkv(LINE.tokens)
    with pytest.raises(ValueError, match="the variant computes int8"):
        emulate(q, k, v, plan_for(VARIANTS["fp8-fp32"]), VARIANTS["int8-int32"])
