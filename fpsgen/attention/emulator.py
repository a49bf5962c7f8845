"""What the Hopper kernel computes, rounding by rounding, in PyTorch on any device.

`reference.py` says what attention is; this module says how each variant of the kernel gets there, so that a kernel can
be held to a few parts in a thousand: quantised operands that differ by one code already differ by several percent.

A row of queries goes through its key tiles one by one, with a running softmax (FlashAttention, arXiv 2205.14135):

- The reference m of the softmax follows the running maximum of the scores in log2 units, and P is 2^(s - m + 7). E4M3
  ends at 448 = 2^8.8: a score may lie above m by 1.75. Beyond that m rises, to the next integer above the row's
  maximum, which multiplies all sums by a power of two, exactly. Most key tiles raise no reference.
- Tensor cores add up 32 channels or keys per instruction. Hopper's FP8 instructions keep 13 bits behind the leading
  one, of summands and of the sum, and cut off the rest (`sums`): a bias that grows with the number of keys. Hence two
  levels (DeepSeek-V3, arXiv 2412.19437, section 3.3.2): a sum over `promote` tiles there, their sum in true float32.
- An E4M3 code is a coarse logarithm: code ≈ 8 (log2 p + 7). A synthesised exponential is the code itself, from two
  multiply-adds and a rounding; its mantissa is linear where that of the exponential is curved, so that P is up to 6 %
  too large, as is the sum that it is divided by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import e, log2
from typing import Literal

import torch
from torch import Tensor

from fpsgen.attention import quantize
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.quantize import Format, Quantized
from fpsgen.attention.sums import HOPPER, Sums, accumulate, accumulate_half, rules
from fpsgen.attention.tiles import key_lists

_P_LOG2 = 7.0  # P is scaled by 2^7
_HEADROOM = 1.75  # of scores above the reference
_FIRST_REFERENCE = -1e30  # below any score
_LARGEST_CODE = 126.0  # E4M3's 448; 127 is NaN

# The largest relative error of a kernel's result to its emulator's, in tests, benches and `doctor`. On a CPU the worst
# of all tests/kernels is 1e-4: float32 sums in another order, exponentials that differ by an ulp, a code of P beside a
# tie. A card's prologue and exponentials may differ a little more. The rules that its sums may obey are 1e-3 to 1e-2
# apart (`sums.rules`).
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Variant:
    """The kernel's compile-time choices that change its numbers.

    qk: format of q and k; largest: the number that their scales aim at; scores: what holds q kᵀ; synthesise: whether
    exponentials are synthesised; sum_codes: whether the denominator sums P after its rounding, on the tensor cores, or
    before; promote: key tiles from one promotion to the next, None for none (one level).
    """

    qk: Format
    largest: float
    scores: Literal["fp32", "fp16", "int32"]
    synthesise: bool
    sum_codes: bool
    promote: int | None


# By the format of q and k, then that of the scores. fp8-fp32 is the plainest: it computes every exponential. fp8-fp16
# has the fewest instructions; its largest of 16 keeps |q kᵀ| at 16 · 16 · head_dim at most, which at 128 is half of
# what FP16 can hold. int8-int32 is the most exact.
VARIANTS: dict[str, Variant] = {
    "fp8-fp32": Variant("fp8", 448.0, "fp32", synthesise=False, sum_codes=False, promote=1),
    "fp8-fp16": Variant("fp8", 16.0, "fp16", synthesise=True, sum_codes=True, promote=4),
    "int8-int32": Variant("int8", 127.0, "int32", synthesise=True, sum_codes=True, promote=4),
}


def emulate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    variant: Variant,
    *,
    sums: Sums = HOPPER,
    rows: Tensor | None = None,
) -> Tensor:
    """Attention as `variant` computes it, in bfloat16; q, k, v [batch, tokens, heads, head_dim], rows in tile order.

    sums: how FP8 products are added. rows: int64, the query rows wanted, by default all. The result is [batch, rows,
    heads, head_dim].
    """
    if (plan.qk, plan.pv) != (variant.qk, "fp8"):
        raise ValueError(f"the plan wants qk {plan.qk}, pv {plan.pv}; the variant computes {variant.qk}, fp8")
    tiles = plan.tiles
    if variant.scores == "fp16" and variant.largest**2 * q.shape[3] > 65504:
        raise ValueError(f"FP16 scores cannot hold {variant.largest:g}² · {q.shape[3]} channels")
    rows = torch.arange(tiles.tokens) if rows is None else rows.cpu()
    tile_of_row = torch.arange(len(tiles.valid)).repeat_interleave(tiles.valid)[rows]
    queries, keys, values = operands(q, k, v, plan, variant)
    out = torch.empty(len(q), q.shape[2], len(rows), q.shape[3], device=q.device)
    for index, window in enumerate(plan.windows):
        heads = plan.heads_of(index)
        lists = key_lists(tiles, window or tiles.counts)
        list_of_row = lists.list_of[tile_of_row]
        own = torch.empty_like(out[:, heads])
        for number, key_tiles in enumerate(lists.split()):
            here = (list_of_row == number).nonzero()[:, 0]
            if len(here):
                spans = [slice(int(tiles.offsets[tile]), int(tiles.offsets[tile + 1])) for tile in key_tiles]
                picked = rows[here].to(q.device)
                own[:, :, here.to(q.device)] = online_softmax(
                    queries.numbers[:, heads][:, :, picked],
                    queries.scale[:, heads][:, :, picked],
                    [keys.numbers[:, heads, span] for span in spans],
                    [keys.scale[:, heads, span.start, None] for span in spans],
                    [values.numbers[:, heads, span] for span in spans],
                    variant,
                    sums,
                )
        out[:, heads] = own
    return (out * values.scale).transpose(1, 2).bfloat16()


def error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖; NaN where anything is."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def errors(found: Tensor, variant: Variant, emulated: Callable[[Sums], Tensor]) -> dict[str, float]:
    """Relative error of a card's result, by the rule that its sums may obey: of the likeliest one, and only where that
    is above TOLERANCE, of all others. emulated: what the variant computes with such sums."""
    found_errors: dict[str, float] = {}
    for name, sums in rules(fp16=variant.scores == "fp16").items():
        found_errors[name] = error(found, emulated(sums))
        if len(found_errors) == 1 and found_errors[name] <= TOLERANCE:
            break
    return found_errors


def operands(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, variant: Variant) -> list[Quantized]:
    """q, k and v as the kernel's prologue hands them over; numbers and scales [batch, heads, tokens or 1, …]."""
    q, k, v = q.float(), k.float(), v.float()
    each = (
        quantize.per_token(q, variant.qk, variant.largest),
        quantize.per_tile(quantize.smooth(k) if plan.smooth_k else k, variant.qk, plan.tiles, variant.largest),
        quantize.per_channel_by_sample(v, plan.tiles),
    )
    return [Quantized(x.numbers.transpose(1, 2), x.scale.transpose(1, 2)) for x in each]


def online_softmax(
    q: Tensor,
    q_scale: Tensor,
    keys: list[Tensor],
    key_scales: list[Tensor],
    values: list[Tensor],
    variant: Variant,
    sums: Sums,
) -> Tensor:
    """Rows of queries over a list of key tiles, values still without their scale.

    q, keys, values: numbers of their formats, [batch, heads, rows, head_dim] as the result; scales: [batch, heads,
    rows, 1] and [batch, heads, 1, 1].
    """
    rows, dim = q.shape[:3], q.shape[3]
    per_score = q_scale * (dim**-0.5 * log2(e))
    reference = torch.full((*rows, 1), _FIRST_REFERENCE, device=q.device)
    total = torch.zeros(*rows, dim + 1, device=q.device)  # the last column is the denominator
    partial = torch.zeros_like(total)
    for number, (k, k_scale, v) in enumerate(zip(keys, key_scales, values, strict=True), 1):
        scores = products(q, k, variant, sums)
        factor = per_score * k_scale
        top = scores.amax(-1, keepdim=True) * factor
        raised = torch.where(top <= reference + _HEADROOM, reference, top.ceil())  # NaN raises it, to NaN
        fade = (reference - raised).exp2()
        total, partial, reference = total * fade, partial * fade, raised
        p, codes = exponentials(scores, factor, reference, variant)
        ones = v.new_ones(*v.shape[:3], 1) if variant.sum_codes else v.new_zeros(*v.shape[:3], 1)
        partial = accumulate(partial, codes, torch.cat([v, ones], -1), sums)
        if not variant.sum_codes:
            total[..., -1:] += p.sum(-1, keepdim=True)
        if variant.promote and number % variant.promote == 0:
            total, partial = total + partial, torch.zeros_like(partial)
    total = total + partial
    return total[..., :-1] / total[..., -1:]


def products(q: Tensor, k: Tensor, variant: Variant, sums: Sums) -> Tensor:
    """q kᵀ as its accumulator holds it: FP32, FP16, or exact integers."""
    if variant.scores == "int32":
        return q @ k.mT  # below 2^24: exact in float32
    add = accumulate if variant.scores == "fp32" else accumulate_half
    return add(q.new_zeros(()), q, k.mT, sums)


def exponentials(scores: Tensor, factor: Tensor, reference: Tensor, variant: Variant) -> tuple[Tensor, Tensor]:
    """P before and after its rounding to E4M3. Arithmetic is FP16 where the scores are, else FP32."""
    held = (lambda x: x.half().float()) if variant.scores == "fp16" else (lambda x: x)
    if not variant.synthesise:
        p = held(held(scores * held(factor) + held(_P_LOG2 - reference)).exp2())
        return p, quantize.round_to_(p.clone(), "fp8")
    # y, in [0, 1], is the code over the largest; saturating arithmetic is free, a conversion is not.
    slope = held(factor * (8 / _LARGEST_CODE))
    offset = held((_P_LOG2 + 7 - reference) * (8 / _LARGEST_CODE))
    y = held((scores * slope + offset).clamp(0, 1).nan_to_num(0))
    code = (y * _LARGEST_CODE).round().to(torch.uint8).view(torch.float8_e4m3fn).float()
    return code, code
