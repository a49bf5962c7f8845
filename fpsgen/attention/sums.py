"""How Hopper's tensor cores add FP8 products: what is measured, and what is not.

One instruction adds 32 products a_i b_i of E4M3 numbers to its accumulator c:

    e_i = max(exp a_i, -6) + max(exp b_i, -6)     -6 is E4M3's smallest exponent; the product is not normalised
    q   = 2^(max(all e_i, exp c) - 13)
    s   = Σ trunc(a_i b_i / q) + trunc(c / q)     every summand towards zero
    d   = s q, cut to 13 bits behind its leading one, towards zero; with an FP16 accumulator, rounded to nearest even

Khattak and Mikaitis (arXiv 2512.07004) publish results of cards. With FP32 sums and c = 0, all 5000 of an H100 and all
5000 of an H200 obey this rule. The rest is measured on Ada only, whose instructions add 16 products: 5000 results with
FP32 sums and 5000 with FP16 sums obey it, all with an accumulator. So of Hopper it is not known whether c is aligned
with the products, and how FP16 sums are rounded. `rules` has every combination of what is possible: a card that agrees
with any of them is right. How far results are from those by the rule above, over the cases of tests/kernels:

                                          fp8-fp32    fp8-fp16    int8-int32
    accumulator added last                2 - 6e-3    4 - 6e-3    1 - 4e-3
    FP16 sums exact, then rounded                     2 - 6e-3
    FP16 sums cut                                     5 - 11e-3

benchmarks/results/numerics.md has more. No published result decides which exponent a product of zero has; left out or
as above, results in all of these cases are the same, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor

STEP = 32  # products of an 8-bit wgmma
Accumulator = Literal["aligned", "added last"]
Half = Literal["rounded", "cut", "exact"]


@dataclass(frozen=True)
class Sums:
    """bits: kept behind the leading one, by summands and by sums; None for exact sums, rounded only to the accumulator.

    accumulator: aligned and cut as products are, or added to their sum. fp16: with an FP16 accumulator, sums are
    rounded to nearest even, or cut towards zero; or summands are not cut at all, and sums rounded.
    """

    bits: int | None = 13
    accumulator: Accumulator = "aligned"
    fp16: Half = "rounded"

    def __post_init__(self) -> None:
        if self.bits is not None and not 1 <= self.bits <= 17:  # float32 adds 32 of them exactly; see `aligned`
            raise ValueError(f"summands keep 1 to 17 bits behind the leading one, not {self.bits}")


HOPPER = Sums()  # the likeliest
EXACT = Sums(bits=None)


def rules(fp16: bool) -> dict[str, Sums]:
    """All that Hopper's tensor cores may do, as far as is known, by name, the likeliest first. fp16: for a kernel that
    also has FP16 accumulators."""
    if not fp16:
        return {f"accumulator {where}": Sums(accumulator=where) for where in get_args(Accumulator)}
    both = product(get_args(Accumulator), get_args(Half))
    return {f"accumulator {where}, FP16 sums {how}": Sums(accumulator=where, fp16=how) for where, how in both}


def accumulate(c: Tensor, a: Tensor, b: Tensor, sums: Sums) -> Tensor:
    """c + a b in FP32, by instructions of 32 summands; a [..., rows, n], b [..., n, columns]: numbers of E4M3."""
    if sums.bits is None:
        return c + a @ b
    for start in range(0, a.shape[-1], STEP):
        step = slice(start, start + STEP)
        c = cut(aligned(c, a[..., step], b[..., step, :], sums), sums.bits).float()
    return c


def accumulate_half(c: Tensor, a: Tensor, b: Tensor, sums: Sums) -> Tensor:
    """The same in FP16, held as float32."""
    for start in range(0, a.shape[-1], STEP):
        part, other = a[..., start : start + STEP], b[..., start : start + STEP, :]
        if sums.bits is None or sums.fp16 == "exact":
            c = (c + part @ other).half().float()
            continue
        exact = aligned(c, part, other, sums)
        rounded = nearest_half(exact)
        if sums.fp16 == "cut":  # the number before, where rounding went away from zero
            rounded = (rounded.view(torch.int16) - (rounded.abs() > exact.abs()).short()).view(torch.half)
        c = rounded.float()
    return c


def nearest_half(x: Tensor) -> Tensor:
    """float64 values in FP16. `half` goes by way of float32, and would round twice: here what float32 has no place for
    only makes its last bit 1, and so no tie."""
    bits = x.view(torch.int64)
    rest = (1 << 29) - 1
    return (bits & ~rest | (bits & rest).ne(0).long() << 29).view(torch.float64).half()


def aligned(c: Tensor, a: Tensor, b: Tensor, sums: Sums) -> Tensor:
    """float64 [..., rows, columns]: the sum of one instruction before it is rounded."""
    assert sums.bits is not None
    c, b = c.expand(*a.shape[:-1], b.shape[-1]), b[..., None, :, :].contiguous()
    found = torch.empty(c.shape, dtype=torch.float64, device=c.device)
    # Products are needed one by one: of a few rows at a time, in memory that is used again.
    many = max(1, 2 ** (26 if a.is_cuda else 20) // b.numel())
    shape = (*a.shape[:-2], min(many, a.shape[-2]), *b.shape[-2:])
    products, exponents = (torch.empty(shape, dtype=dtype, device=c.device) for dtype in (torch.float32, torch.int8))
    of_a, of_b = (exponent(x).clamp(-6, 8).to(torch.int8) for x in (a[..., None], b))
    for start in range(0, a.shape[-2], many):
        rows, own = slice(start, start + many), slice(min(many, a.shape[-2] - start))
        before = c[..., rows, :]
        highest = torch.add(of_a[..., rows, :, :], of_b, out=exponents[..., own, :, :]).amax(-2).int()
        if sums.accumulator == "aligned":
            highest = torch.maximum(highest, exponent(before))
        q = ((highest + (127 - sums.bits)) << 23).view(torch.float32)
        part = torch.mul(a[..., rows, :, None], b, out=products[..., own, :, :])
        # Integers, each below 4 · 2^bits: float32 adds 32 of them exactly.
        total = part.div_(q[..., None, :], rounding_mode="trunc").sum(-2).double()
        before = before.double() / q
        found[..., rows, :] = (total + (before.trunc() if sums.accumulator == "aligned" else before)) * q
    return found


def exponent(x: Tensor) -> Tensor:
    """int32: floor(log2 |x|) of normal float32 values; of all smaller ones -127."""
    return (x.contiguous().view(torch.int32) >> 23 & 255) - 127


def cut(x: Tensor, bits: int) -> Tensor:
    """float64 values with all but `bits` bits behind the leading one cut off, towards zero."""
    return (x.view(torch.int64) & -(1 << (52 - bits))).view(torch.float64)
