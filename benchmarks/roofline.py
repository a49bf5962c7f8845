"""The least time that a card needs for attention: its tensor cores' peak against its memory's.

A roofline (Williams, Waterman, Patterson, 2009): work that does F operations and must move B bytes takes at least
max(F / peak operations per second, B / bytes per second). Bytes are those that cannot be avoided, every input read
once and every output written once; the caches are taken to be perfect. What is not in it is the softmax: one
exponential for each 4 · head_dim operations of the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fpsgen.jit.attention import SLOTS, TRAILER_BYTES

# Of one SM in one clock, dense: 4 tensor cores with 1024 multiply-adds each in 8 bits, 512 in 16 (NVIDIA H100 Tensor
# Core GPU Architecture, the white paper).
FLOPS_8BIT, FLOPS_16BIT = 8192, 4096
# Per second, of an H100 or H200 SXM by its datasheet, which has twice as much with sparsity: 132 SMs at 1.83 GHz.
DATASHEET_8BIT, DATASHEET_16BIT = 1979e12, 989.5e12
DATASHEET_SMS, DATASHEET_HZ = 132, 1.83e9

# Floating-point operations, and bytes that must be moved: of each kernel that waits for the one before.
Stage = tuple[float, float]


@dataclass(frozen=True)
class Bound:
    """seconds: what the stages take at least, one after another. by: what binds the longest of them."""

    seconds: float
    by: str


def bound(stages: Iterable[Stage], flops_per_second: float, bytes_per_second: float) -> Bound:
    """The roofline of each stage, max(F / peak, B / bandwidth), summed."""
    each = []
    for flops, moved in stages:
        tensor, memory = flops / flops_per_second, moved / bytes_per_second
        each.append(Bound(tensor, "tensor cores") if tensor >= memory else Bound(memory, "memory"))
    return Bound(sum(one.seconds for one in each), max(each, key=lambda one: one.seconds).by)


def peak(flops_per_clock: int, multiprocessors: int, clock_hz: float) -> float:
    """Operations per second of all tensor cores."""
    return flops_per_clock * multiprocessors * clock_hz


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
