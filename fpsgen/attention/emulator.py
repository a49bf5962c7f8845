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
- A summary is further key tiles, after those of the list: the rows of each are 128 mean keys, with one scale. To each
  score is added the log2 of how many tokens that mean stands for; minus infinity where its tile is in the list. These
  scores are finished in FP32, whatever holds the products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import e, inf, log2
from typing import Literal

import torch
from torch import Tensor

from fpsgen.attention import quantize, select
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.quantize import Format, Quantized
from fpsgen.attention.sums import HOPPER, Sums, accumulate, accumulate_half, rules
from fpsgen.attention.tiles import TileGrid, key_lists

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
    chosen: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """Attention as `variant` computes it, in bfloat16; q, k, v [batch, tokens, heads, head_dim], rows in tile order.

    sums: how FP8 products are added. rows: int64, the query rows wanted, by default all. The result is [batch, rows,
    heads, head_dim]. chosen: the key tiles of each `top` share, by its index in `plan.seen`, int64 [batch, its heads,
    tiles, key tiles]; by default those of `select`, from which a kernel's own may differ where two fit equally well.
    """
    if (plan.qk, plan.pv) != (variant.qk, "fp8"):
        raise ValueError(f"the plan wants qk {plan.qk}, pv {plan.pv}; the variant computes {variant.qk}, fp8")
    if variant.scores == "fp16" and variant.largest**2 * q.shape[3] > 65504:
        raise ValueError(f"FP16 scores cannot hold {variant.largest:g}² · {q.shape[3]} channels")
    tiles = plan.tiles
    rows = torch.arange(tiles.tokens) if rows is None else rows.cpu()
    tile_of_row = torch.arange(len(tiles.valid)).repeat_interleave(tiles.valid)[rows]
    spans, logs = row_spans(tiles), tiles.valid.float().log2()
    queries, keys, values = operands(q, k, v, plan, variant)
    means = summary(k, v, values.scale, plan, variant)
    k8, k_scale, v8 = (
        torch.cat(both, 2) for both in zip((keys.numbers, keys.scale, values.numbers), means, strict=True)
    )
    out = torch.empty(len(q), q.shape[2], len(rows), q.shape[3], device=q.device)
    for index, seen in enumerate(plan.key_tiles):
        heads = plan.heads_of(index)
        own = [x[:, heads] for x in (queries.numbers, queries.scale, k8, k_scale, v8, out)]
        given = (chosen or {}).get(index)
        for some, query_tiles, listed in shared_lists(q[:, :, heads], k[:, :, heads], seen, tiles, given):
            here = torch.isin(tile_of_row, query_tiles).nonzero()[:, 0]
            if not len(here):
                continue
            picked, key_rows = rows[here].to(q.device), [spans[tile] for tile in listed.tolist()]
            addends: list[Tensor | None] = [None] * len(listed)
            if seen.rest == "summary":
                key_rows += spans[len(logs) :]
                addends += logs.index_fill(0, listed, -inf).to(q.device).split(select.SUMMARY_KEYS)
            of_q, of_q_scale, of_k, of_k_scale, of_v, found = (x[some] for x in own)
            found[:, :, here.to(q.device)] = online_softmax(
                of_q[:, :, picked],
                of_q_scale[:, :, picked],
                [of_k[:, :, span] for span in key_rows],
                [of_k_scale[:, :, span.start, None] for span in key_rows],
                [of_v[:, :, span] for span in key_rows],
                addends,
                variant,
                sums,
            )
        out[:, heads] = own[-1]
    return (out * values.scale).transpose(1, 2).bfloat16()


def row_spans(tiles: TileGrid) -> list[slice]:
    """The rows of each key tile, then those of each summary tile, which stand behind all tokens."""
    end = tiles.tokens + len(tiles.valid)
    summaries = range(tiles.tokens, end, select.SUMMARY_KEYS)
    return [slice(*ends) for ends in pairwise([*tiles.offsets[:-1].tolist(), *summaries, end])]


def shared_lists(
    q: Tensor, k: Tensor, seen: KeyTiles, tiles: TileGrid, chosen: Tensor | None
) -> Iterator[tuple[tuple[slice, slice], Tensor, Tensor]]:
    """Every list of key tiles: the batch entries and heads, and the query tiles, that share it, and the list, int64.

    q, k: not rounded, as `emulate` has them, of the heads that see `seen`. chosen: as there.
    """
    if seen.top is None:
        lists = key_lists(tiles, seen.window or tiles.counts)
        for number, listed in enumerate(lists.split()):
            yield (slice(None), slice(None)), (lists.list_of == number).nonzero()[:, 0], listed.long()
        return
    if chosen is None:
        chosen = select.best(select.means(q, tiles), select.means(k, tiles), seen.count(tiles))
    chosen = chosen.cpu()
    for entry, head, tile in product(*map(range, chosen.shape[:3])):
        some = slice(entry, entry + 1), slice(head, head + 1)
        yield some, torch.tensor([tile]), chosen[entry, head, tile]


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


def summary(k: Tensor, v: Tensor, v_scale: Tensor, plan: AttentionPlan, variant: Variant) -> tuple[Tensor, ...]:
    """Numbers and scales of each tile's mean key, and numbers of its mean value: [batch, heads, tiles, …].

    v_scale: of the mean values, too; [batch, heads, 1, head_dim], as `operands` gives it.
    """
    k, v = k.float(), v.float()
    k_mean, v_mean = (select.means(x, plan.tiles) for x in (quantize.smooth(k) if plan.smooth_k else k, v))
    runs = TileGrid((1, 1, k_mean.shape[1]), (1, 1, select.SUMMARY_KEYS))
    keys = quantize.per_tile(k_mean, variant.qk, runs, variant.largest)
    values = quantize.round_by(v_mean.transpose(1, 2), v_scale, "fp8")
    return keys.numbers.transpose(1, 2), keys.scale.transpose(1, 2), values.numbers


def online_softmax(
    q: Tensor,
    q_scale: Tensor,
    keys: list[Tensor],
    key_scales: list[Tensor],
    values: list[Tensor],
    addends: list[Tensor | None],
    variant: Variant,
    sums: Sums,
) -> Tensor:
    """Rows of queries over a list of key tiles, values still without their scale.

    q, keys, values: numbers of their formats, [batch, heads, rows, head_dim] as the result; scales: [batch, heads,
    rows, 1] and [batch, heads, 1, 1]; addends: of a summary's tiles, [rows of the tile], else None.
    """
    rows, dim = q.shape[:3], q.shape[3]
    per_score = q_scale * (dim**-0.5 * log2(e))
    reference = torch.full((*rows, 1), _FIRST_REFERENCE, device=q.device)
    total = torch.zeros(*rows, dim + 1, device=q.device)  # the last column is the denominator
    partial = torch.zeros_like(total)
    for number, (k, k_scale, v, added) in enumerate(zip(keys, key_scales, values, addends, strict=True), 1):
        scores, factor, own = products(q, k, variant, sums), per_score * k_scale, variant
        if added is not None:
            scores, factor, own = scores * factor + added, torch.ones_like(factor), replace(variant, scores="fp32")
        top = scores.amax(-1, keepdim=True) * factor
        raised = torch.where(top <= reference + _HEADROOM, reference, top.ceil())  # NaN raises it, to NaN
        fade = (reference - raised).exp2()
        total, partial, reference = total * fade, partial * fade, raised
        p, codes = exponentials(scores, factor, reference, own)
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
