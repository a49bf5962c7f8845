"""How FP8 products are added: against a second implementation in integers, and by hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from fpsgen.attention import sums
from fpsgen.attention.sums import EXACT, HOPPER, Sums
from tests.tools import fp8_sums

CODES = np.delete(np.arange(256), [0x7F, 0xFF]).astype(np.uint8)  # all but NaN
RULES = sums.rules(fp16=True)


def numbers(codes: np.ndarray) -> Tensor:
    return torch.from_numpy(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


def one_sum(pairs: list[tuple[float, float]], c: float = 0.0, how: Sums = HOPPER) -> float:
    """One instruction; what is missing of 32 pairs is zero."""
    a, b = torch.zeros(1, 32), torch.zeros(32, 1)
    for i, (x, y) in enumerate(pairs):
        a[0, i], b[i, 0] = x, y
    return float(sums.accumulate(torch.full((1, 1), c), a, b, how))


def cases() -> dict[str, np.ndarray]:
    """Bytes of rows of 96 numbers, three instructions, by what is hard about them."""
    random = np.random.default_rng(5)
    anything = random.choice(CODES, (40, 96))
    small = (random.integers(0, 16, (40, 96)) | random.integers(0, 2, (40, 96)) << 7).astype(np.uint8)  # subnormal
    sparse = np.where(random.random((40, 96)) < 0.8, random.choice([0x00, 0x80], (40, 96)), anything).astype(np.uint8)
    opposed = anything.copy()
    opposed[:, 1::2] = opposed[:, ::2] ^ 0x80  # neighbours cancel each other where b's are equal
    normal = (4 * random.standard_normal((40, 96))).clip(-16, 16).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return {"any": anything, "small": small, "zeros": sparse, "opposed": opposed, "normal": normal}


@pytest.mark.parametrize("of_a", cases())
@pytest.mark.parametrize("of_b", ["any", "small", "zeros", "normal", "repeated"])
def test_float32_sums_are_those_of_integers(of_a: str, of_b: str) -> None:
    a = cases()[of_a]
    b = cases()["any"].repeat(2, 1)[:, :96] if of_b == "repeated" else cases()[of_b][::-1].copy()
    for name, rule in sums.rules(fp16=False).items():
        found = sums.accumulate(torch.zeros(()), numbers(a), numbers(b).T, rule)
        assert np.array_equal(found.numpy(), fp8_sums.product(a, b, False, rule.accumulator)), name


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("of_a", ["zeros", "opposed", "normal", "small"])
def test_float16_sums_are_those_of_integers(name: str, of_a: str) -> None:
    a, b, rule = cases()[of_a], cases()["normal"][::-1].copy(), RULES[name]
    found = sums.accumulate_half(torch.zeros(()), numbers(a), numbers(b).T, rule)
    assert np.array_equal(found.numpy(), fp8_sums.product(a, b, True, rule.accumulator, rule.fp16))


def test_other_cards_have_other_numbers_of_bits() -> None:
    a, b = cases()["any"][:, :32], cases()["normal"][:, :32]
    for bits in (10, 17):
        found = sums.accumulate(torch.zeros(()), numbers(a), numbers(b).T, Sums(bits))
        whole = fp8_sums.instruction(np.zeros((40, 40)), *np.broadcast_arrays(a[:, None], b[None]), keep=bits)
        assert np.array_equal(found.numpy(), fp8_sums.shortened(whole, bits))
    with pytest.raises(ValueError, match="1 to 17 bits"):
        Sums(bits=18)


def test_all_rows_of_all_heads() -> None:
    """More products than are held at a time."""
    random = np.random.default_rng(6)
    a, b = random.choice(CODES, (2, 3, 300, 64)), random.choice(CODES, (2, 3, 40, 64))
    found = sums.accumulate(torch.zeros(()), numbers(a), numbers(b).mT, HOPPER)
    assert np.array_equal(found.numpy(), fp8_sums.product(a, b, False))


@pytest.mark.parametrize(
    ("pairs", "c", "expected"),
    [
        ([], 0.0, 0.0),
        ([], 1 + 2**-13, 1 + 2**-13),
        ([], 1 + 2**-14, 1.0),  # the accumulator alone is cut, too
        ([], -1 - 2**-14, -1.0),  # towards zero
        ([(448, 448), (-448, 448), (1, 2**-6)], 0.0, 0.0),  # what is left after large ones cancel was cut before
        ([(448, 448), (-448, 448), (1, 8)], 0.0, 8.0),
        ([(2**-9, 2**-9)], 0.0, 2.0**-18),  # the smallest product
        ([(2**-9, 2**-9)] * 32, 0.0, 2.0**-13),
        ([(1, 1)] + [(2**-7, 2**-7)] * 31, 0.0, 1.0),  # each is below 2^-13, their sum is not
        ([(1, 1)] + [(-(2**-7), 2**-7)] * 31, 0.0, 1.0),  # and never rounds down
        ([(1, 1)] + [(2**-7, 2**-6)] * 3, 0.0, 1 + 3 * 2**-13),
        # 1.5 · 1.5 has exponent 0, not 1: summands of 2^-13 count, and a sum of two of them is left of the result.
        ([(1.5, 1.5)] + [(2**-7, 2**-6)] * 2, 0.0, 2.25 + 2**-12),
        ([(1.5, 1.5), (2**-7, 2**-6)], 0.0, 2.25),
        # A subnormal number has exponent -6: 2^-9 · 2^8 is aligned as 2^2 would be, so that 2^-12 is cut off.
        ([(2**-9, 256), (2**-6, 2**-6)], 0.0, 0.5),
        ([(2**-6, 32), (2**-6, 2**-6)], 0.0, 0.5 + 2**-12),
        ([(1, 1)], 2.0**14, 2.0**14),  # the accumulator is the largest
        ([(1, 1)] * 2, 2.0**13, 2.0**13 + 2),
        ([(0.875, 1)] * 32, 2.0**13, 2.0**13),
        ([(1, 1)], -(2.0**14), -(2.0**14)),
    ],
)
def test_by_hand(pairs: list[tuple[float, float]], c: float, expected: float) -> None:
    assert one_sum(pairs, c) == expected


def test_what_is_not_known_makes_a_difference() -> None:
    last = Sums(accumulator="added last")
    assert one_sum([(0.875, 1)] * 32, 2.0**13, last) == 2.0**13 + 28
    assert one_sum([], 1 + 2**-14, last) == 1.0  # it is cut with the sum
    assert one_sum([(0.875, 1)] * 32, 2.0**13, EXACT) == 2.0**13 + 28

    def half(*pairs: tuple[float, float]) -> list[float]:
        rows, columns = torch.tensor(pairs).T
        return [
            float(sums.accumulate_half(torch.zeros(()), rows[None], columns[:, None], Sums(fp16=how)))
            for how in ("rounded", "cut", "exact")
        ]

    up = 1 + 2**-10  # the next number of FP16
    assert half((1, 1), (1.5 * 2**-5, 2**-6)) == [up, 1, up]
    assert half((-1, 1), (1.5 * 2**-5, -(2**-6))) == [-up, -1, -up]
    assert half((1, 1), (2**-5, 2**-6), (2**-9, 2**-6)) == [1, 1, up]  # the last makes more than half, unless it is cut


def test_float16_sums_are_rounded_once() -> None:
    """2^-24 beside a tie makes it more than a tie; by way of float32, it would be lost first."""
    added_last, a, b = Sums(accumulator="added last"), torch.tensor([[1, 2.0**-5]]), torch.tensor([[1], [2.0**-6]])
    for sign in (1, -1):
        found = sums.accumulate_half(torch.full((1, 1), sign * 2.0**-24), sign * a, b, added_last)
        assert float(found) == sign * (1 + 2.0**-10)


def test_nan_stays() -> None:
    for pairs, c in (([(float("nan"), 1)], 0.0), ([(1, float("nan"))], 1.0), ([(1, 1)], float("nan"))):
        assert np.isnan(one_sum(pairs, c)), (pairs, c)


def test_the_likeliest_rule_is_first_and_no_two_are_the_same() -> None:
    for fp16, count in ((False, 2), (True, 6)):
        rules = sums.rules(fp16)
        assert next(iter(rules.values())) == HOPPER
        assert len(set(rules.values())) == count
