"""Faults to edit into the kernels' sources, one at a time; `mutations` does, for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.kernels import host

ATTENTION, PROLOGUE, SELECT, TILE = "sm90_attention.cu", "sm90_prologue.cu", "sm90_select.cu", "tile.cuh"
ELEMENTWISE = "sm90_elementwise.cu"


@dataclass(frozen=True)
class Fault:
    """In `file`, the `number`-th `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    number: int = 0

    def source(self) -> str:
        """The kernel's text with the fault; that of the prologue, which makes tiles, for a fault in their header."""
        parts = (host.SOURCES / self.file).read_text().split(self.old)
        assert len(parts) > self.number + 1, f"{self.name}: the source has no such line"
        at = self.number + 1
        text = self.old.join(parts[:at]) + self.new + self.old.join(parts[at:])
        if self.file != TILE:
            return text
        include = f"#include <{TILE}>"
        kernel = (host.SOURCES / PROLOGUE).read_text()
        assert include in kernel
        return kernel.replace(include, text.replace("#pragma once", ""))


def of_attention() -> Iterator[Fault]:
    wait_k, wait_v = "mbarrier_wait(&sm.k_full[k.at], k.parity);", "mbarrier_wait(&sm.v_full[v.at], v.parity);"
    wait_free_q = "mbarrier_wait(&sm.q_empty[q.at], q.parity ^ 1);"
    work = "sm.work[q.at] = {stream, first, valid, list.count, list.count + summaries};"
    columns = "{\n      if constexpr (COLUMNS == 120) wgmma_n120_f16"
    for name, old, new, *number in (
        ("no wait for q", "mbarrier_wait(&sm.q_full[q.at], q.parity);", ""),
        ("no wait for the first k", wait_k, ""),
        ("no wait for the next k", wait_k, "", 1),
        ("no wait for the next query tile's k", wait_k, "", 2),
        ("no wait for the next q", "mbarrier_wait(&sm.q_full[q.at], q.parity);", "", 1),
        ("no wait for v", wait_v, ""),
        ("no wait for the last v", wait_v, "", 1),
        ("producer takes a full k buffer", "mbarrier_wait(&sm.k_empty[kv.at], kv.parity ^ 1);", ""),
        ("producer takes a full v buffer", "mbarrier_wait(&sm.v_empty[kv.at], kv.parity ^ 1);", ""),
        ("producer takes a full q buffer", wait_free_q, ""),
        ("wrong parity for k", wait_k, wait_k.replace("k.parity", "k.parity ^ 1"), 1),
        ("wrong parity for a free v", "kv.parity ^ 1);", "kv.parity);", 1),
        ("k is never released", "mbarrier_arrive_warp(&sm.k_empty[k.at]);", ""),
        ("v is released before it is read", "wgmma_wait<0>();\n      mbarrier_arrive_warp(&sm.v_empty[v.at]);",
         "mbarrier_arrive_warp(&sm.v_empty[v.at]);\n      wgmma_wait<0>();"),
        ("q is released before its rows are stored", "store(P, sm, sums, denominator",
         "mbarrier_arrive_warp(&sm.q_empty[before.at]);\n    store(P, sm, sums, denominator"),
        ("q is never released", "    mbarrier_arrive_warp(&sm.q_empty[before.at]);\n", ""),
        ("the next query tile's work is written too early",
         f"    {wait_free_q}\n    {work}", f"    {work}\n    {wait_free_q}"),
        ("scales of the next query tile", "sm.v_scale[before.at]", "sm.v_scale[q.at]"),
        ("rows of the next query tile", "group, sm.work[before.at]", "group, sm.work[q.at]"),
        ("a key of 120 too many rows back", "wgmma_n120_f16_e4m3_ss(s, a + 2 * i, b + 2 * i, i > 0);",
         "wgmma_n120_f16_e4m3_ss(s, a + 2 * i, b + 2 * i + 64, i > 0);"),
        ("the wrong group begins", "if (group == 1) pass_turn(group);", "if (group == 0) pass_turn(group);"),
        ("no turn is passed on", "      pass_turn(group);\n", ""),
        ("no turn is passed on at a query tile's end", "\n    pass_turn(group);\n", "\n"),
        ("scores are used before they are there", "wgmma_wait<1>();", "wgmma_wait<2>();"),
        ("sums are used before they are there", "      wgmma_wait<0>();\n      mbarrier", "      mbarrier"),
        ("p is packed before the last one is read", "      if (rose) sums.scale_total(reference.fade);\n",
         "      pack(p, pairs);\n      if (rose) sums.scale_total(reference.fade);\n"),
        ("q and k swapped", "u64 a = swizzled_operand(q), b = swizzled_operand(k);",
         "u64 a = swizzled_operand(k), b = swizzled_operand(q);", 2),
        ("second group reads the first one's q", "sm.q[q.at] + GROUP_ROWS * group * HEAD_DIM,", "sm.q[q.at],"),
        ("scale of the next tile", "trailers + key, ",
         "trailers + (is_mean ? key : (u64)stream * P.tiles + list[j + 1 < list.count ? j + 1 : 0]), "),
        ("a step along K left out", f"i < K_STEPS; i++) {columns}", f"i < K_STEPS - 1; i++) {columns}"),
        ("stale reference", "      m[h] = raised;\n", ""),
        ("the reference never rises again", "if (!warp_any(!within)) return false;",
         "if (!warp_any(m[0] == FIRST_M)) return false;"),
        ("the reference rises with any score", "float raised = top[h] <= m[h] + HEADROOM ? m[h] : ceilf(top[h]);",
         "float raised = max(m[h], ceilf(top[h]));"),
        ("a reference that is no integer", "m[h] : ceilf(top[h]);", "m[h] : top[h];"),
        ("no headroom in the reference", "HEADROOM = 1.75f", "HEADROOM = 3.f"),
        ("maximum of one thread, not of the row", "top[h] = max_or_nan(top[h], shuffle_xor(top[h], 2));", ""),
        ("a damaged score raises nothing", "if (!warp_any(!within)) return false;",
         "if (!warp_any(top[0] > m[0] + HEADROOM | top[1] > m[1] + HEADROOM)) return false;"),
        ("earlier sums are not rescaled", "if (rose) sums.scale_total(reference.fade);", ""),
        ("the short sum is not rescaled", "if (rose) sums.scale_short(reference.fade);", ""),
        ("the sum of P is not rescaled", "if (rose) sum[0] *= reference.fade[0], sum[1] *= reference.fade[1];", ""),
        ("sums are rescaled before P V is in them",
         "if (rose) sums.scale_total(reference.fade);\n      wgmma_wait<0>();",
         "if (rose) sums.scale_total(reference.fade), sums.scale_short(reference.fade), rose = false;\n"
         "      wgmma_wait<0>();"),
        ("never promoted", "if (j % PROMOTE == 0) sums.promote();", ""),
        ("promoted by the first group alone", "if (j % PROMOTE == 0) sums.promote();",
         "if (j % PROMOTE == 0 && (PROMOTE == 1 || group == 0)) sums.promote();"),
        ("the second group's p is spoilt in a long list", "pack(p, pairs);  // not before",
         "pack(p, pairs);\n      if (group == 1 && j >= 4) p[0] = 0;  // not before"),
        ("promoted one tile late", "sums.issue(p, sm.v[v.at], (j - 1) % PROMOTE != 0);",
         "sums.issue(p, sm.v[v.at], j % PROMOTE != 0);"),
        ("a masked key too few", "if (8 * (i / 4) + 2 * quad + (i & 1) >= valid) s[i] = -1e30f;",
         "if (8 * (i / 4) + 2 * quad + (i & 1) > valid) s[i] = -1e30f;"),
        ("a masked key too many", "if (8 * (i / 4) + 2 * quad + (i & 1) >= valid) s[i] = -1e30f;",
         "if (8 * (i / 4) + 2 * quad + (i & 1) >= valid - 1) s[i] = -1e30f;"),
        ("a row too many is stored", "if (first + 2 * i < work.valid)", "if (first + 2 * i <= work.valid)"),
        ("a row too few is stored", "if (first + 2 * i < work.valid)", "if (first + 2 * i + 1 < work.valid)"),
        *of_clusters(),
        ("k is freed by half of its readers", "k_empty[i], CONSUMER_WARPS)", "k_empty[i], CONSUMER_WARPS / 2)"),
        ("v is freed by half of its readers", "v_empty[i], CONSUMER_WARPS)", "v_empty[i], CONSUMER_WARPS / 2)"),
        ("q is freed by half of its readers", "q_empty[i], CONSUMER_WARPS)", "q_empty[i], CONSUMER_WARPS / 2)"),
        ("rows leave before all are written", "  warp_sync();\n  const int first", "  const int first"),
        ("a warp sends another's rows", "first = at.row - at", "first = (at.row ^ 16) - at"),
        ("p in another order than v", "int a = 4 * (i / 2) + (i & 1);", "int a = 4 * (i / 2) + 1 - (i & 1);"),
        ("codes are one octave too low", "(P_LOG2 + 7.f - m) * PER_CODE", "(P_LOG2 + 6.f - m) * PER_CODE"),
        ("the sum of one thread, not of the row", "denominator[h] += shuffle_xor(denominator[h], 2);", ""),
        ("v's scale of another channel", "scale[pair].low", "scale[pair].high"),
        ("lists of the first head for all", "P.list_of[head * P.tiles + tile]", "P.list_of[tile]"),
        ("all of the batch into its first entry",
         "static_cast<u64>(work.stream / P.heads) * P.tokens", "static_cast<u64>(0)"),
    ):  # fmt: skip
        yield Fault(name, ATTENTION, old, new, *number)


def of_lists() -> Iterator[Fault]:
    """Of the attention kernel, too: chosen lists, and a summary of the rest."""
    of_head = "head = P.order[place / batch], stream = place % batch * P.heads + head"
    issue = "sm.k[k.at]);\n      issue_sums(j);\n      const float factor"
    factors = "{per_score[0] * k_scale, per_score[1] * k_scale};\n      const Finished"
    for name, old, new in (
        ("chosen lists of the first query tile for all", "P.chosen + chosen + tile * count", "P.chosen + chosen"),
        ("chosen lists of the first batch entry for all", "P.chosen_of[stream]", "P.chosen_of[head]"),
        ("list lengths of the first head for all", "count(P.counts[head])", "count(P.counts[0])"),
        ("heads of one order, streams of another", of_head,
         "head = place / batch, stream = place % batch * P.heads + P.order[head]"),
        ("one batch entry twice", of_head, "head = P.order[place / batch], stream = head"),
        ("a summary of another head", "summaries = P.summaries[head]", "summaries = P.summaries[1]"),
        ("a summary of the first stream for all", "(u64)stream * summaries + mean", "mean"),
        ("a summary of its first tile alone", "(u64)stream * summaries + mean", "(u64)stream * summaries"),
        ("keys of a summary as many as of a tile", "is_mean ? TILE_BYTES : K_BYTES", "K_BYTES"),
        ("addends of the first query tile for all", "(own * summaries + mean) * SLOTS",
         "((u64)stream * P.tiles * summaries + mean) * SLOTS"),
        ("addends of the first summary tile for all", "(own * summaries + mean) * SLOTS", "own * summaries * SLOTS"),
        ("addends are not waited for", "(is_mean ? 4 * SLOTS : 0)", "0"),
        ("addends of another stage", "sm.addends[k.at], at.quad", "sm.addends[(k.at + 1) % STAGES], at.quad"),
        ("addends of neighbouring keys", "8 * (i / 4) + 2 * quad);", "8 * (i / 4) + 2 * (quad ^ 1));"),
        ("no addends", "factor[i >> 1 & 1], added.low", "factor[i >> 1 & 1], 0.f"),
        ("a summary's keys without their scale", factors, "{per_score[0], per_score[1]};\n      const Finished"),
        ("a summary raises no reference", "      const bool rose = raise(top);",
         "      top[0] = top[1] = -1e30f;\n      const bool rose = raise(top);"),
        ("a summary's codes in the other byte", "SCORES == FP16 ? 0x0400 : 0x0040", "SCORES == FP16 ? 0x0040 : 0x0400"),
        ("a summary drops what was not promoted", issue, issue.replace("(j)", "(1)")),
        ("the last P V without the summary's count", "(all - 1) % PROMOTE", "(count - 1) % PROMOTE"),
    ):  # fmt: skip
        yield Fault(name, ATTENTION, old, new)


def of_clusters() -> Iterator[tuple[str, str, str]]:
    """What two blocks can do wrong to each other."""
    yield "a block begins before the other is ready", "    cluster_sync();\n", "    __syncthreads();\n"
    yield "a block leaves before its copies are there", "i < STAGES; i++, kv.next()) mbarrier", "i < 0; i++) mbarrier"
    yield "the other block's buffer may be full", "    meet(other, parity);\n", ""
    yield "the other block may be gone", "    meet(&sm.k_other, meetings);\n", ""
    yield "a meeting is not counted", "      meetings ^= is_shared;\n", ""
    yield "meetings are counted where there are none", "meetings ^= is_shared;", "meetings ^= 1;"
    yield "a block tells itself that the other's buffer is empty", "(other, rank() ^ 1)", "(other, rank())"
    yield "the other block's answer is not waited for", "  mbarrier_wait(other, parity);\n", ""
    yield "wrong parity for the other's buffer", "mbarrier_wait(other, parity);", "mbarrier_wait(other, parity ^ 1);"
    yield "both blocks copy the same half", "at = rank() * half;", "at = 0;"
    yield "a half comes to one block alone", "half, full, 3)", "half, full, 1 << rank())"
    yield "pairs with two lists share", "IN_PAIRS && list.cols ==", "IN_PAIRS || list.cols =="
    yield "an odd query tile is left out", "(P.tiles + CLUSTER - 1) / CLUSTER", "P.tiles / CLUSTER"
    yield "both blocks have the first query tile", "* CLUSTER + rank(),", "* CLUSTER,"
    yield "each block begins with an item of its own", "return blockIdx.x / CLUSTER;", "return blockIdx.x;"
    yield "a cluster leaves items out", "return gridDim.x / CLUSTER;", "return gridDim.x;"


def of_prologue() -> Iterator[Fault]:
    is_beyond = "if (!(largest[i] * sm.v_inverse[at.channel + i] <= E4M3_LARGEST))"
    for name, old, new, *number in (
        ("RoPE turns the wrong way", "even * turn[i] - odd * turn[i + 1];", "even * turn[i] + odd * turn[i + 1];"),
        ("wrong RoPE pair", "odd = x[i + 1] * factor", "odd = x[i ? i - 1 : i + 1] * factor"),
        ("RoPE of the row in the tile", "static_cast<u64>(at.first + in_tile)", "static_cast<u64>(in_tile)"),
        ("norm over one head", "sum / (P.heads * HEAD_DIM)", "sum / HEAD_DIM"),
        ("norm over one warp's heads", "sm.squares[turn][n][warp]", "sm.squares[turn][n][0]"),
        ("a head that is not there counts in the norm", "if (!heads.own(round)) continue;",
         "if (!heads.any(round)) continue;"),
        ("sums of squares are read before they are there", "squares[n];\n  }\n  __syncthreads();", "squares[n];\n  }"),
        ("heads of the second round are those of the first", "min(round * AT_ONCE + static_cast", "min(static_cast"),
        ("k's factors are q's", "(OF_K ? P.k : P.q) + from", "P.q + from"),
        ("k's factors are those of the row before", "tile.batch_row + first + n] = factor[n]",
         "tile.batch_row + first + n] = factor[0]"),
        ("k's norm is q's", "load(norm, P.norm_k", "load(norm, P.norm_q"),
        ("k is pooled by q's norm", "(OF_K ? P.norm_k : P.norm_q)", "P.norm_q"),
        ("empty slots are pooled", "if (first + n >= tile.valid) continue;", ""),
        ("pooled tiles are sums", "sums[round][i] *= share;", ""),
        ("q's scale of half a row", "lanes = ROW_THREADS / 2", "lanes = ROW_THREADS / 4"),
        ("q's image of another head", "quantize_q(P, tile.item_of(P, heads.at(round))",
         "quantize_q(P, tile.item_of(P, heads.at(round) ^ 1)"),
        ("k's scale of one warp", "sm.largest[warp]);", "largest);"),
        ("tokens of v in their own order", "token = token_at(position + i);", "token = position + i;"),
        ("v's channels swapped", "even[i] = bf16_low(pair)", "even[i] = bf16_high(pair)"),
        ("v read where it was not written", "sm.v[token][pair_at(token, channel / 2)]", "sm.v[token][channel / 2]"),
        ("v read before it is written", "threadIdx.x);\n  __syncthreads();", "threadIdx.x);"),
        ("mean of k over a token too many", "sum / P.tokens", "sum / (P.tokens + 1)"),
        ("k is not smoothed", "x[n][i] -= mean[i]", "x[n][i] -= 0"),
        ("k's mean is taken of one half of the tiles", "own[i] + other", "own[i]"),
        ("short tiles count as much in k's mean", "at.valid * pooled[i]", "P.tokens / P.tiles * pooled[i]"),
        ("empty slots of q repeat the next tile's token", "min(first + n, tile.valid - 1)) + heads",
         "min(first + n, tile.valid)) + heads"),
        ("empty slots of k repeat the next tile's token", "at.row + n * AT_ONCE, at.valid - 1)",
         "at.row + n * AT_ONCE, at.valid)"),
        ("ones below tokens that are not there", "if (token_at(position + i) < valid) ones", "ones"),
        ("a token of v too many", "if (row < at.valid) raw", "if (row <= at.valid) raw"),
        ("v's sample is of the last tiles", "max_or_nan(all, sm.warps[w][threadIdx.x])", "sm.warps[w][threadIdx.x]"),
        ("v's sample is another row", "at.element(P, 0)", "at.element(P, at.valid - 1)"),
        ("v's scale has no room above its sample", "V_LARGEST = 28.f", "V_LARGEST = 448.f"),
        ("v beyond its scale is cut off", is_beyond, "if (false)"),
        ("v that is no number is not beyond its scale", is_beyond,
         "if (largest[i] * sm.v_inverse[at.channel + i] > E4M3_LARGEST)"),
        ("v is beyond its scale from the start", "P.v_beyond[to] = 0;", ""),
        ("the largest v is that of the last tile", "atomic_max(beyond + i, __float_as_int(largest[i]));",
         "beyond[i] = __float_as_int(largest[i]);"),
        ("v again, by the scale that was too small", "if (!beyond) return", "return"),
        ("v again, with a scale that attention never sees", "if (at.tile == 0) P.v_scale[which] = scale;", ""),
        ("v again, a tile before all have read the last", "__syncthreads();  // all have read", ""),
        ("v again, the first tiles of a head alone", "tile += gridDim.x / streams", "tile += P.tiles"),
        ("v again, where the first channels are beyond", "channel < HEAD_DIM; channel += 32",
         "channel < 32; channel += 32"),
        ("v's tile means are sums", "all / at.valid", "all"),
        ("empty slots of v count in its mean", "all / at.valid", "all / SLOTS"),
        ("v's mean of one row", "if (MEANS) sum[i] += x[i];", "if (MEANS) sum[i] = x[i];"),
        ("mean keys are not smoothed", "x[n][i] -= mean[i];\n  }\n  write_k(P.summary",
         "x[n][i] -= 0;\n  }\n  write_k(P.summary"),
        ("mean keys of the first tiles again", "first = index % many * SLOTS", "first = 0"),
        ("mean keys of the next head", "mean = (static_cast<u64>(stream) * P.tiles + first)",
         "mean = (static_cast<u64>(index) * P.tiles + first)"),
        ("the last mean key is left out", "n * AT_ONCE, at.valid - 1);\n    load(x[n]",
         "n * AT_ONCE, max(at.valid - 2, 0));\n    load(x[n]"),
        ("mean values in their own order", "int tile = token_at(position + i);", "int tile = position + i;"),
        ("a mean value too many", "tile < at.valid ? P.v_means", "tile <= at.valid ? P.v_means"),
        ("mean values without v's scale", "channel] * inverse : 0.f", "channel] : 0.f"),
        ("mean values by the first channel's scale", "1.f / P.v_scale[at.stream * HEAD_DIM + channel], x",
         "1.f / P.v_scale[at.stream * HEAD_DIM], x"),
        ("no ones below mean values", "write_ones(image, position, at.valid)", "write_ones(image, position, 0)", 1),
        ("no log2 e in the scale", "scale * (LOG2_E / sqrtf(HEAD_DIM))", "scale * (1.f / sqrtf(HEAD_DIM))"),
    ):  # fmt: skip
        yield Fault(name, PROLOGUE, old, new, *number)
    for name, old, new in (
        ("another swizzle", "(column / 16 ^ (row & 7)) << 4", "(column / 16 ^ (row & 3)) << 4"),
        ("tokens of v by halves", "inner % 4 / 2) + 2 *", "inner % 2) + 2 *"),
    ):
        yield Fault(name, TILE, old, new)


def of_select() -> Iterator[Fault]:
    taken = "own[n] > least || (own[n] == least && __popc(ties & lower) < equal)"
    for name, old, new, *number in (
        ("half of the channels is scored twice", "channel = step % 2 * PART + threadIdx.x", "channel = threadIdx.x"),
        ("q's first channels for both halves", "sm.q[own + i] + step % 2 * PART + channel", "sm.q[own + i] + channel"),
        ("mean keys are read before they are there", "next.store(sm);\n    __syncthreads();", "next.store(sm);"),
        ("mean keys are overwritten before all have read", "__syncthreads();  // all have read", ""),
        ("the next head's mean keys", "P.k_pooled + static_cast<u64>(stream)",
         "P.k_pooled + static_cast<u64>(stream + 1 < P.streams ? stream + 1 : 0)"),
        ("scores go on from the last piece", "        sum[i][m] = 0;\n", ""),
        ("scores of another lane's tiles", "KEYS + 32 * m + lane] = ordered", "KEYS + OF_LANE * lane + m] = ordered"),
        ("the largest score below zero is the first", "bits >> 31 ? ~bits : bits | 1u << 31", "bits"),
        ("scores below zero the wrong way round", "bits >> 31 ? ~bits :", "bits >> 31 ? bits & ~(1u << 31) :"),
        ("zeros differ by their sign", "score + 0.f", "score"),
        ("NaN is the last choice", "return 0xffffffff;", "return 1;"),
        ("tiles that are not there can be chosen", "32 * n + lane < P.tiles ? scores[32 * n + lane] : 0",
         "scores[32 * n + lane]"),
        ("the last bit of a threshold is left out", "bit; bit /= 2", "bit > 1; bit /= 2"),
        ("the search stops one tile too late", "if (many == wanted) break;", "if (many == wanted + 1) break;"),
        ("a tile too many", "if (many >= wanted) least", "if (many > wanted) least"),
        ("as many ties as if none were above", "    else above = many;\n", ""),
        ("all that tie are taken", taken, "own[n] >= least"),
        ("of equal tiles those of higher number", "__popc(ties & lower) < equal",
         "__popc(ties & ~lower) - 1 < equal"),
        ("ties of earlier tiles are not counted", "equal -= __popc(ties);", ""),
        ("a list in no order", "list[before + __popc(all & lower)]", "list[before + __popc(all & ~lower) - 1]"),
        ("lists of each head as long as the first one's", "count = P.counts[head]", "count = P.counts[0]"),
        ("lists of each query tile at the first one's place", "static_cast<u64>(tile) * count", "0"),
        ("the last query tiles choose nothing", "if (tile >= P.tiles) return;",
         "if (first + QUERIES > P.tiles) return;"),
        ("a tile in the list is summarised, too",
         "for (int i = lane; i < count; i += 32) row[list[i]] = __int_as_float(NEVER);", ""),
        ("the list is read before other lanes wrote theirs", "warp_sync();  // also", "//"),
        ("a window's list is that of the first query tile", "P.list_of[head * P.tiles + tile]",
         "P.list_of[head * P.tiles]"),
        ("empty slots of a summary count", "tile < P.tiles ? P.log_valid[tile] : __int_as_float(NEVER)",
         "P.log_valid[min(tile, P.tiles - 1)]"),
        ("every tile counts as the first", "P.log_valid[tile]", "P.log_valid[0]"),
        ("windows have no addends", "if (begin < 0 && slots == 0) return;", "if (begin < 0) return;"),
    ):  # fmt: skip
        yield Fault(name, SELECT, old, new, *number)


def of_elementwise() -> Iterator[Fault]:
    loop = "channel < P.channels; channel += THREADS * 4"
    for name, old, new, *number in (
        ("sums of half a warp", "int lanes = 16", "int lanes = 8"),
        ("sums of warps are read before they are there", "threadIdx.x / 32] = own[n];\n  }\n  __syncthreads();",
         "threadIdx.x / 32] = own[n];\n  }"),
        ("the first warp's sum for all", "sm.warps[turn][n][warp];", "sm.warps[turn][n][0];"),
        ("both rows have the first one's sums", "sm.warps[turn][n][warp];", "sm.warps[turn][0][warp];"),
        ("the last of an odd number of rows is left out", "(P.tokens + TOGETHER - 1) / TOGETHER",
         "P.tokens / TOGETHER"),
        ("behind the last row comes the next entry's", "min(first + n, P.tokens - 1)", "first + n"),
        ("rows of the first batch entry", "static_cast<u64>(entry) * P.tokens + min", "min"),
        ("vectors of the first batch entry", "entry = blockIdx.x / blocks;", "entry = 0;"),
        ("gates of the first batch entry", "P.gate + entry * P.gate_stride", "P.gate"),
        ("factors of the first batch entry", "P.factor + rows.entry * P.factor_stride", "P.factor"),
        ("addends of the first batch entry", "P.addend + rows.entry * P.addend_stride", "P.addend"),
        ("one gate for four channels", "__fmul_rn(gate.x[i], y.x[i])", "__fmul_rn(gate.x[0], y.x[i])"),
        ("y without its gate", "__fmul_rn(gate.x[i], y.x[i])", "y.x[i]"),
        ("a gate where there is none", "Four{1.f, 1.f, 1.f, 1.f}", "Four{}"),
        ("numbers of a pair swapped", "{bf16_low(low), bf16_high(low),", "{bf16_high(low), bf16_low(low),"),
        ("the sum is not written", "  put(P.sum + from, x);\n", ""),
        ("the sum is that of a row alone", "sm.row[n][channel / 4] = x;  // which", "sm.row[0][channel / 4] = x;  //"),
        ("a residual stream that ends early", loop, "channel < P.channels - 4; channel += THREADS * 4"),
        ("a mean that ends early", loop, "channel < P.channels - 4; channel += THREADS * 4", 1),
        ("a variance that ends early", loop, "channel < P.channels - 4; channel += THREADS * 4", 2),
        ("a norm that ends early", loop, "channel < P.channels - 4; channel += THREADS * 4", 3),
        ("codes that end early", loop, "channel < P.channels - 4; channel += THREADS * 4", 4),
        ("a number left out of the mean", "(x.x[2] + x.x[3])", "x.x[2]"),
        ("a mean over the room for channels", "mean[n] /= P.channels", "mean[n] /= MOST_CHANNELS"),
        ("mean squares of what the mean was not taken from", "fmaf(x.x[i] - mean[n], x.x[i] - mean[n], rms[n])",
         "fmaf(x.x[i], x.x[i], rms[n])"),
        ("a variance over a channel less", "rms[n] / P.channels + P.eps", "rms[n] / (P.channels - 1) + P.eps"),
        ("no eps", "rms[n] / P.channels + P.eps", "rms[n] / P.channels"),
        ("the mean stays in the norm", "(x.x[i] - mean[n]) * rms[n]", "x.x[i] * rms[n]"),
        ("a scale without the 1", "P.base + factor.x[i]", "factor.x[i]"),
        ("one factor for four channels", "P.base + factor.x[i]", "P.base + factor.x[0]"),
        ("no addend", "+ addend.x[i];", "+ 0.f;"),
        ("codes of numbers that were not rounded to bfloat16",
         "      x = widened(rounded.word[0], rounded.word[1]);\n", ""),
        ("the largest number of a norm is that above zero", "max_or_nan(largest[n], fabsf(x.x[i]))",
         "max_or_nan(largest[n], x.x[i])"),
        ("the largest number of a row is that of even channels",
         "      largest[0] = max_or_nan(largest[0], fabsf(bf16_high(raw.word[i])));\n", ""),
        ("both rows have the first one's scale", "scale_for(largest[n])", "scale_for(largest[0])"),
        ("scales by blocks", "P.scale[rows.row[n]] = scale", "P.scale[blockIdx.x * TOGETHER + n] = scale"),
        ("zeros have the least scale", "fmaxf(largest / LARGEST, LEAST_NORMAL) : 1.f",
         "fmaxf(largest / LARGEST, LEAST_NORMAL) : LEAST_NORMAL"),
        ("scales whose inverse is infinite", "fmaxf(largest / LARGEST, LEAST_NORMAL)", "(largest / LARGEST)"),
        ("a scale of what is no number", "if (!(largest <= LARGEST_FINITE)) return __int_as_float(0x7fffffff);",
         "if (!(largest <= LARGEST_FINITE)) return 1.f;"),
        ("infinity has a scale", "if (!(largest <= LARGEST_FINITE))", "if (largest != largest)"),
        ("INT8 as large as E4M3", "FORMAT == 2 ? 127.f : 448.f", "448.f"),
        ("codes without their scale", "__fmul_rn(x.x[3], inverse)", "x.x[3]"),
        ("INT8 codes by pairs swapped", "0x0040), 0x5410)", "0x0040), 0x1054)"),
        ("INT8 codes are cut", "c + WHOLE), __float", "c - 0.5f + WHOLE), __float"),
        ("GELU without its cube", "0.044715f * (x * x * x)", "0.f"),
        ("GELU of half of its sum", "-2 * LOG2_E * u", "-LOG2_E * u"),
        ("GELU by the wrong base", "-2 * LOG2_E * u", "-2 * u"),
        ("GELU of even channels alone", "gelu(bf16_high(raw.word[i])))", "bf16_high(raw.word[i]))"),
        ("the first row for all", "u64 first = static_cast<u64>(blockIdx.x) * P.channels;", "u64 first = 0;"),
        ("a row that ends early", "channel < P.channels; channel += THREADS * 8",
         "channel < P.channels - 8; channel += THREADS * 8"),
        ("codes of a row that end early", "channel < P.channels; channel += THREADS * 8",
         "channel < P.channels - 8; channel += THREADS * 8", 1),
        ("the first four codes twice", "four_codes(widened(raw.word[2], raw.word[3]), inverse)}", "low}"),
        ("no scale of a row", "P.scale[blockIdx.x] = scale;", "P.scale[0] = scale;"),
    ):  # fmt: skip
        yield Fault(name, ELEMENTWISE, old, new, *number)


FAULTS = {
    fault.name: fault for fault in (*of_attention(), *of_lists(), *of_prologue(), *of_select(), *of_elementwise())
}


def digest() -> str:
    """Of all that the CPU machine runs, and of the faults: what a table of who noticed them is true for."""
    paths = sorted([*host.SOURCES.glob("*.cu"), *host.SOURCES.glob("*.cuh"), *(host.SOURCES / "host").iterdir()])
    content = [(path.name, path.read_text()) for path in paths if path.is_file()]
    return hashlib.sha256(repr((content, list(FAULTS.values()))).encode()).hexdigest()[:32]
