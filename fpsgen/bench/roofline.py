"""The least time that a card needs for attention: tensor cores, exponential unit and memory, each at its peak.

A roofline (Williams, Waterman, Patterson, 2009), with a third roof: work that does F operations in matrix products,
takes E exponentials and must move B bytes needs at least max(F / peak operations per second, E / peak exponentials per
second, B / bytes per second). Only what cannot be avoided counts: pairs of tokens, not of padding; one exponential for
each of them and each head; every input read once and every output written once, as if caches were perfect. Whatever
else a softmax takes, its maxima, sums and conversions, is under no roof.

With heads of 128 channels a pair takes 512 operations, 1/16 of an SM's clock in 8 bits, and one exponential, 1/16 of a
clock, too: a kernel in 8 bits that has the unit compute every exponential is bound by both alike. Variants that
synthesise every other 16 exponentials by multiply-adds (`attention.emulator`) leave half of them to the unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

from fpsgen.attention.emulator import Variant
from fpsgen.kernels.sm90_attention import SLOTS, TRAILER_BYTES

# One SM in one clock, dense: 4 tensor cores with 1024 multiply-adds each in 8 bits, 512 in 16 (NVIDIA H100 Tensor
# Core GPU Architecture, the white paper).
FLOPS_8BIT, FLOPS_16BIT = 8192, 4096
# Likewise: base-2 exponentials (NVIDIA CUDA C++ Programming Guide, throughput of native arithmetic instructions, for
# compute capability 9.0). Two in FP16 are no faster: ptxas makes two instructions of ex2.approx.f16x2.
EXPONENTIALS = 16
# Per second, of an H100 or H200 SXM with 132 SMs by its datasheet, which has twice as much with sparsity.
DATASHEET_8BIT, DATASHEET_16BIT = 1979e12, 989.5e12
DATASHEET_SMS = 132

# Each kernel that waits for the one before: operations of its matrix products, exponentials, bytes that must be
# moved. A sequence, because JSON makes lists of tuples.
Stage = Sequence[float]


@dataclass(frozen=True)
class Rates:
    """What a card does in a second at most: operations of matrix products, exponentials, bytes moved."""

    flops: float
    exponentials: float
    bytes: float


@dataclass(frozen=True)
class Bound:
    """seconds: what the stages take at least, one after another. by: what binds the longest of them."""

    seconds: float
    by: str


def rates(card: dict[str, Any], bits: int) -> Rates:
    """For a card as `stopwatch.card` has it, at its highest clock and its measured bandwidth; bits: 8 or 16, of the
    matrix products' operands."""
    per_clock = {8: FLOPS_8BIT, 16: FLOPS_16BIT}[bits]
    flops, exponentials = (peak(rate, card["multiprocessors"], card["clock_hz"]) for rate in (per_clock, EXPONENTIALS))
    return Rates(flops, exponentials, card["copy_bytes_per_second"])


def peak(per_clock: int, multiprocessors: int, clock_hz: float) -> float:
    """What all SMs do in a second, of which one does so much in a clock."""
    return per_clock * multiprocessors * clock_hz


def bound(stages: Iterable[Stage], most: Rates) -> Bound:
    """The longest of its three times for each stage, summed."""
    each = []
    for flops, exponentials, moved in stages:
        needs = {
            "tensor cores": flops / most.flops,
            "exponential unit": exponentials / most.exponentials,
            "memory": moved / most.bytes,
        }
        longest = max(needs.values())
        each.append(Bound(longest, " and ".join(name for name, need in needs.items() if isclose(need, longest))))
    return Bound(sum(one.seconds for one in each), max(each, key=lambda one: one.seconds).by)


def exponentials(pairs: float, variant: Variant | None = None) -> float:
    """For so many pairs of tokens, over all heads: one each, or half as many where `variant` synthesises the others.
    (Of a tile of 120 keys 64 are left to the unit, not 60; the tensor cores need half as long again even then.)"""
    return pairs / 2 if variant and variant.synthesise else pairs


def activations(tokens: int, heads: int, head_dim: int) -> int:
    """Bytes of one of q, k, v and the result, of one batch entry: 16 bits each."""
    return 2 * tokens * heads * head_dim


def sdpa_bytes(tokens: int, heads: int, head_dim: int) -> int:
    """What attention in 16 bits must move: q, k, v in, the result out."""
    return 4 * activations(tokens, heads, head_dim)


def prepare_bytes(tokens: int, heads: int, head_dim: int) -> int:
    """What norm and RoPE in 16 bits must move: q and k in and out, the float32 table of RoPE in. The weights of the
    norm are too few to count."""
    return 4 * activations(tokens, heads, head_dim) + 4 * tokens * head_dim


def image_bytes(tiles: int, heads: int, head_dim: int, v_ones: int) -> int:
    """What lies between prologue and kernel (`hopper.prologue`): for each tile of each head q, k and v with its v_ones
    rows of ones, 128 slots of one byte; k's trailer; q's scales, float32; for each channel of a head v's scale."""
    tile = SLOTS * (2 * head_dim + head_dim + v_ones) + TRAILER_BYTES + 4 * SLOTS
    return heads * (tiles * tile + 4 * head_dim)


def prologue_bytes(tokens: int, tiles: int, heads: int, head_dim: int, v_ones: int) -> int:
    """What the prologue must move: q, k, v and RoPE's table in; the images and each tile's mean of q and of k out.

    Its four launches read k three times and q and v twice, because a norm goes over all heads and k's mean over all
    tokens: that is the prologue's own, and no bound.
    """
    pooled = 2 * heads * tiles * head_dim * 4
    table = 4 * tokens * head_dim
    return 3 * activations(tokens, heads, head_dim) + table + image_bytes(tiles, heads, head_dim, v_ones) + pooled


def kernel_bytes(tokens: int, tiles: int, heads: int, head_dim: int, v_ones: int) -> int:
    """What the attention kernel must move: the images in, the result out. Each tile of k and v is in some list, so
    that sparsity saves none of it; the lists themselves are too short to count."""
    return image_bytes(tiles, heads, head_dim, v_ones) + activations(tokens, heads, head_dim)
