"""Rules by which a card may add FP8 products: what `fpsgen.attention.sums` leaves open, and some that it excludes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fpsgen.attention import sums

# c + a b of c [rows, columns], a [rows, 32] and b [32, columns], all float32.
Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


def on_grid(x: Tensor, bits: int, least: int, how: Callable[[Tensor], Tensor]) -> Tensor:
    """float64 values to multiples of the last of `bits` bits behind the leading one; least: the smallest exponent."""
    places = (torch.frexp(x).exponent - 1).clamp(min=least) - bits
    return torch.ldexp(how(torch.ldexp(x, -places)), places)


def of_exact_sum(c: Tensor, a: Tensor, b: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
    return how(c.double() + a.double() @ b.double())


def rules(kind: str) -> dict[str, Rule]:
    """For FP32 sums, f32, or FP16 ones, f16; by name, the likeliest first."""
    add = sums.accumulate_half if kind == "f16" else sums.accumulate
    aligned = {name: own for name, own in sums.rules(kind == "f16").items() if own.fp16 != "exact"}
    bits, least = (10, -14) if kind == "f16" else (23, -126)
    exact = {
        "exact sum to nearest": partial(on_grid, bits=bits, least=least, how=torch.round),
        "exact sum toward zero": partial(on_grid, bits=bits, least=least, how=torch.trunc),
        **({} if kind == "f16" else {"exact sum cut at 13 bits": partial(sums.cut, bits=13)}),
    }
    return {
        **{name: partial(add, sums=own) for name, own in aligned.items()},
        **{name: partial(of_exact_sum, how=how) for name, how in exact.items()},
    }


def equal_shares(kind: str, a: Tensor, b: Tensor, c: Tensor | None, d: Tensor) -> dict[str, float]:
    """By rule, the share of results that it gives: of d [n, rows, columns], from a [n, rows, 32] and b [n, columns, 32]
    in E4M3, and c as d, or None for zeros."""
    equal = dict.fromkeys(rules(kind), 0)
    for number in range(len(a)):  # all at once are gigabytes
        given = torch.zeros_like(d[number]) if c is None else c[number]
        for name, rule in rules(kind).items():
            found = rule(given.float(), a[number].float(), b[number].float().T)
            equal[name] += int((found.double() == d[number].double()).sum())
    return {name: count / d.numel() for name, count in equal.items()}
