"""The least time that a card needs for attention: tensor cores, exponential unit and memory, each at its peak.

A roofline (Williams, Waterman, Patterson, 2009), with a third roof: work that does F operations in matrix products,
takes E exponentials and must move B bytes needs at least max(F / peak operations per second, E / peak exponentials per
second, B / bytes per second). Only what cannot be avoided counts: pairs of tokens, not of padding; one exponential for
each of them and each head; every input read once and every output written once, as if caches were perfect. Whatever
else a softmax takes, its maxima, sums and conversions, is under no roof.

With heads of 128 channels a pair takes 512 operations, 1/16 of an SM's clock in 8 bits, and one exponential, 1/16 of a
clock, too: a kernel in 8 bits that has the unit compute every exponential is bound by both alike. Variants that
synthesise exponentials by multiply-adds (`attention.emulator`) leave none of them to the unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isclose
from typing import NamedTuple

from fpsgen.bench.record import MeasuredCard

# One SM in one clock, dense: 4 tensor cores with 1024 multiply-adds each in 8 bits, 512 in 16 (NVIDIA H100 Tensor
# Core GPU Architecture, the white paper).
FLOPS = {8: 8192, 16: 4096}
# Likewise: base-2 exponentials (NVIDIA CUDA C++ Programming Guide, throughput of native arithmetic instructions, for
# compute capability 9.0). Two in FP16 are no faster: ptxas makes two instructions of ex2.approx.f16x2.
EXPONENTIALS = 16
# Operations per second of an H100 or H200 SXM, 132 SMs, by its datasheet, which has twice as many with sparsity.
DATASHEET = {8: 1979e12, 16: 989.5e12}
_DATASHEET_SMS = 132
_ROOFS = ("tensor cores", "exponential unit", "memory")  # in the order of `Amounts`


class Amounts(NamedTuple):
    """Operations of matrix products, exponentials and bytes moved: of one stage, or of a card in one second. A stage is
    a part of the work that waits for the one before."""

    flops: float
    exponentials: float
    bytes: float


class Bound(NamedTuple):
    """seconds: what the stages take at least, one after another. by: what binds the longest of them."""

    seconds: float
    by: str


def rates(card: MeasuredCard, bits: int) -> Amounts:
    """What a card does in a second at most, at its highest clock and its measured bandwidth (`stopwatch.card`). bits: 8
    or 16, of the matrix products' operands."""
    clocks = card.multiprocessors * card.clock_hz
    return Amounts(FLOPS[bits] * clocks, EXPONENTIALS * clocks, card.copy_bytes_per_second)


def bound(stages: Iterable[Sequence[float]], most: Amounts) -> Bound:
    """The longest of its three times for each stage, summed."""
    each = []
    for stage in stages:
        needs = [amount / rate for amount, rate in zip(stage, most, strict=True)]
        binding = [roof for roof, need in zip(_ROOFS, needs, strict=True) if isclose(need, max(needs))]
        each.append(Bound(max(needs), " and ".join(binding)))
    return Bound(sum(one.seconds for one in each), max(each).by)


def has_datasheet(card: MeasuredCard) -> bool:
    """Whether the datasheet's figures are the card's: the other forms of an H100 have fewer SMs."""
    return card.multiprocessors == _DATASHEET_SMS and ("H100" in card.gpu or "H200" in card.gpu)
