"""Rules by which tensor cores may add 32 products of E4M3 numbers and an accumulator, in float64.

The rule that an H100 and an H200 obey without an accumulator (measured: arXiv 2512.07004) aligns all addends to the
largest exponent, that of a product being the sum of its factors' exponents, not that of their product; each is cut
there at 13 bits, towards zero, and so is their sum. What the accumulator does, and what FP16 results are, is open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 13  # behind the leading one, of an addend and of a sum
_LEAST = {"f32": -126, "f16": -14}  # the exponent of the least normal number
_KEPT = {"f32": 23, "f16": 10}


def exponents(x: Tensor) -> Tensor:
    """floor(log2 |x|), int32; for 0 less than any other."""
    return torch.where(x == 0, -10_000, torch.frexp(x).exponent - 1)


def cut(x: Tensor, places: Tensor | int) -> Tensor:
    """Towards zero, to multiples of 2^places."""
    return torch.ldexp(torch.ldexp(x, -torch.as_tensor(places)).trunc(), torch.as_tensor(places))


def shortened(x: Tensor, bits: int = BITS) -> Tensor:
    """Cut off all but `bits` bits behind the leading one."""
    return torch.where(x == 0, x, cut(x, exponents(x) - bits))


@dataclass(frozen=True)
class Addends:
    """products: [..., 32], exact; exponents: of them, not normalised; c: the accumulator [...], or zeros."""

    products: Tensor
    exponents: Tensor
    c: Tensor

    @staticmethod
    def of(a: Tensor, b: Tensor, c: Tensor) -> Addends:
        """Of rows a [rows, 32] and b [columns, 32], float64, with c [rows, columns]."""
        one, other = (exponents(x).clamp(min=-6) for x in (a, b))
        return Addends(a[:, None] * b, one[:, None] + other, c)

    @property
    def total(self) -> Tensor:
        return self.products.sum(-1) + self.c

    def aligned(self, zeros: bool = True, c: bool = True, c_is_cut: bool = True) -> Tensor:
        """All cut at the largest exponent's 13 bits, and their sum again. zeros, c: whether a product that is zero, and
        the accumulator, have a say in which is the largest; c_is_cut: whether the accumulator is cut there."""
        counted = self.exponents if zeros else torch.where(self.products == 0, -10_000, self.exponents)
        largest = counted.amax(-1).clamp(min=-1000)
        if c:
            largest = torch.maximum(largest, exponents(self.c))
        products = cut(self.products, largest[..., None] - BITS).sum(-1)
        return shortened(products + (cut(self.c, largest - BITS) if c_is_cut else self.c))


def nearest(x: Tensor, kind: str) -> Tensor:
    """To the nearest number of the format, ties to even."""
    places = exponents(x).clamp(min=_LEAST[kind]) - _KEPT[kind]
    return torch.ldexp(torch.ldexp(x, -places).round(), places)


def toward_zero(x: Tensor, kind: str) -> Tensor:
    return cut(x, exponents(x).clamp(min=_LEAST[kind]) - _KEPT[kind])


Rule = Callable[[Addends], Tensor]
RULES: dict[str, dict[str, Rule]] = {
    "f32": {
        "aligned": lambda x: x.aligned(),
        "aligned, zeros left out": lambda x: x.aligned(zeros=False),
        "aligned, accumulator left out": lambda x: x.aligned(c=False),
        "aligned, accumulator left out and whole": lambda x: x.aligned(c=False, c_is_cut=False),
        "sum cut": lambda x: shortened(x.total),
        "nearest": lambda x: nearest(x.total, "f32"),
        "toward zero": lambda x: toward_zero(x.total, "f32"),
    },
    "f16": {
        "nearest": lambda x: nearest(x.total, "f16"),
        "toward zero": lambda x: toward_zero(x.total, "f16"),
        "aligned, nearest": lambda x: nearest(x.aligned(), "f16"),
        "aligned, toward zero": lambda x: toward_zero(x.aligned(), "f16"),
    },
}


def equal_shares(kind: str, a: Tensor, b: Tensor, c: Tensor | None, d: Tensor) -> dict[str, float]:
    """By rule, the share of results that it gives.

    kind: f32 or f16; a [n, rows, 32] and b [n, columns, 32]: E4M3; c and d [n, rows, columns].
    """
    equal = dict.fromkeys(RULES[kind], 0)
    for number in range(len(a)):  # all at once are gigabytes
        own = c[number].double() if c is not None else torch.zeros_like(d[number], dtype=torch.float64)
        addends = Addends.of(a[number].double(), b[number].double(), own)
        for name, rule in RULES[kind].items():
            equal[name] += int((rule(addends) == d[number].double()).sum())
    return {name: count / d.numel() for name, count in equal.items()}
