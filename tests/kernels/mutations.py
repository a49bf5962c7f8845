"""Faults edited into the kernels' sources, one at a time: does a check notice, and which?

    python -m tests.kernels.mutations --out tests/kernels/mutations.md

The checks are small versions of the tests beside this file. A fault that none notices ends the command with an error.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fpsgen.attention import QKTransform
from fpsgen.attention.emulator import VARIANTS, emulate
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from tests.kernels import host
from tests.kernels.host import Schedule
from tests.kernels.test_attention import TOLERANCE, error, plan_for, random_qkv
from tests.kernels.test_prologue import inputs, prepared

ATTENTION, PROLOGUE, TILE = "sm90_attention.cu", "sm90_prologue.cu", "tile.cuh"


_LONGEST = 600.0  # seconds that all checks of one fault may take


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


def attention_faults() -> Iterator[Fault]:
    wait_k, wait_v = "mbarrier_wait(&sm.k_full[k.at], k.parity);", "mbarrier_wait(&sm.v_full[v.at], v.parity);"
    for name, old, new, *number in (
        ("no wait for q", "mbarrier_wait(&sm.q_full[q.at], q.parity);", ""),
        ("no wait for the first k", wait_k, ""),
        ("no wait for the next k", wait_k, "", 1),
        ("no wait for v", wait_v, ""),
        ("no wait for the last v", wait_v, "", 1),
        ("producer takes a full k buffer", "mbarrier_wait(&sm.k_empty[kv.at], kv.parity ^ 1);", ""),
        ("producer takes a full v buffer", "mbarrier_wait(&sm.v_empty[kv.at], kv.parity ^ 1);", ""),
        ("producer takes a full q buffer", "mbarrier_wait(&sm.q_empty[q.at], q.parity ^ 1);", ""),
        ("wrong parity for k", wait_k, wait_k.replace("k.parity", "k.parity ^ 1"), 1),
        ("wrong parity for a free v", "kv.parity ^ 1);", "kv.parity);", 1),
        ("k is never released", "mbarrier_arrive_warp(&sm.k_empty[k.at]);", ""),
        ("v is released before it is read", "wgmma_wait<0>();\n      mbarrier_arrive_warp(&sm.v_empty[v.at]);",
         "mbarrier_arrive_warp(&sm.v_empty[v.at]);\n      wgmma_wait<0>();"),
        ("the wrong group begins", "if (group == 1) pass_turn(group);", "if (group == 0) pass_turn(group);"),
        ("no turn is passed on", "      pass_turn(group);\n", ""),
        ("scores are used before they are there", "wgmma_wait<1>();", "wgmma_wait<2>();"),
        ("sums are used before they are there", "      wgmma_wait<0>();\n      mbarrier", "      mbarrier"),
        ("p is packed before the last one is read", "      bool rose = softmax();\n",
         "      bool rose = softmax();\n      pack(p, scores);\n"),
        ("q and k swapped", "u64 a = swizzled_operand(q), b = swizzled_operand(k);",
         "u64 a = swizzled_operand(k), b = swizzled_operand(q);", 2),
        ("second group reads the first one's q", "GROUP_ROWS * group * HEAD_DIM;", "0;"),
        ("scale of the next tile", "P.trailers + key",
         "P.trailers + (u64)stream * P.tiles + list[j + 1 < list.count ? j + 1 : 0]"),
        ("a step along K left out", "i < K_STEPS; i++) wgmma_n128_f16", "i < K_STEPS - 1; i++) wgmma_n128_f16"),
        ("stale row maximum", "      m[h] = raised;\n", ""),
        ("maximum of one thread, not of the row", "top[h] = fmaxf(top[h], shuffle_xor(top[h], 2));", ""),
        ("earlier sums are not rescaled", "sums.scale(reference.fade, promoted);", ""),
        ("the short sum is rescaled at the wrong time", "if (!promoted) short_sum", "if (promoted) short_sum"),
        ("never promoted", "if (promoted) sums.promote();", ""),
        ("promoted one tile late", "sums.issue(p, sm.v[v.at], (j - 1) % PROMOTE != 0);",
         "sums.issue(p, sm.v[v.at], j % PROMOTE != 0);"),
        ("a masked key too few", "if (8 * (i / 4) + 2 * quad + (i & 1) >= valid) s[i] = -1e30f;",
         "if (8 * (i / 4) + 2 * quad + (i & 1) > valid) s[i] = -1e30f;"),
        ("a masked key too many", "if (8 * (i / 4) + 2 * quad + (i & 1) >= valid) s[i] = -1e30f;",
         "if (8 * (i / 4) + 2 * quad + (i & 1) >= valid - 1) s[i] = -1e30f;"),
        ("a row too many is stored", "if (own < P.offsets[tile + 1] - P.offsets[tile])",
         "if (own <= P.offsets[tile + 1] - P.offsets[tile])"),
        ("a row too few is stored", "if (own < P.offsets[tile + 1] - P.offsets[tile])",
         "if (own + 1 < P.offsets[tile + 1] - P.offsets[tile])"),
        ("the block ends before its last rows have left",
         "  bulk_store_wait_read();            // shared memory goes with the block\n", ""),
        ("k is freed by half of its readers", "k_empty[i], CONSUMER_WARPS)", "k_empty[i], CONSUMER_WARPS / 2)"),
        ("v is freed by half of its readers", "v_empty[i], CONSUMER_WARPS)", "v_empty[i], CONSUMER_WARPS / 2)"),
        ("q is freed by half of its readers", "q_empty[i], CONSUMER_WARPS)", "q_empty[i], CONSUMER_WARPS / 2)"),
        ("rows are overwritten while they leave",
         "  bulk_store_wait_read();  // the previous tile's rows have left\n", ""),
        ("rows leave before all are written", "  fence_async();\n  barrier_sync(ROWS_WRITTEN + group, GROUP);\n", ""),
        ("p in another order than v", "int a = 4 * (i / 2) + (i & 1);", "int a = 4 * (i / 2) + 1 - (i & 1);"),
        ("the wrong half is synthesised", "return SYNTHESISE && (j & 2);", "return SYNTHESISE && !(j & 2);"),
        ("synthesised codes one too low", "LINEAR = 0.044f", "LINEAR = 0.169f"),
        ("the sum of one thread, not of the row", "denominator[h] += shuffle_xor(denominator[h], 2);", ""),
        ("v's scale of another channel", "* v_scale[channel];", "* v_scale[channel + 1];"),
        ("lists of the first head for all", "P.list_of[head * P.tiles + tile]", "P.list_of[tile]"),
        ("all of the batch into its first entry", "(u64)(stream / P.heads) * P.tokens", "(u64)0"),
    ):  # fmt: skip
        yield Fault(name, ATTENTION, old, new, *number)


def prologue_faults() -> Iterator[Fault]:
    for name, old, new, *number in (
        ("RoPE turns the wrong way", "even * turn[i] - odd * turn[i + 1];", "even * turn[i] + odd * turn[i + 1];"),
        ("wrong RoPE pair", "odd = x[i + 1] * factor", "odd = x[i ? i - 1 : i + 1] * factor"),
        ("RoPE of the row in the tile", "static_cast<u64>(at.first + in_tile)", "static_cast<u64>(in_tile)"),
        ("norm over one head", "int width = P.heads * HEAD_DIM;", "int width = HEAD_DIM;"),
        ("k's norm is q's", "(x[pass], P, at, row, P.norm_k", "(x[pass], P, at, row, P.norm_q"),
        ("q's scale of half a row", "lanes = ROW_THREADS / 2", "lanes = ROW_THREADS / 4"),
        ("k's scale of one warp",
         "for (int warp = 0; warp < THREADS / 32; warp++) largest = fmaxf(largest, sm.largest[warp]);", ""),
        ("tokens of v in their own order", "x[i] = (channel % 2",
         "pair = sm.v[position + i][channel / 2], x[i] = (channel % 2"),
        ("v read before it is written", "+ i] = raw.word[i];\n  }\n  __syncthreads();", "+ i] = raw.word[i];\n  }"),
        ("mean of k over a token too many", "sum / P.tokens", "sum / (P.tokens + 1)"),
        ("k is not smoothed", "x[pass][i] -= mean[i];", ""),
        ("k's mean is taken of one half of the tiles",
         "sum += sm.warps[0][channel], largest = fmaxf(largest, sm.warps[1][channel]);", ""),
        ("empty slots repeat the next tile's token", "at.valid - 1);", "at.valid);"),
        ("ones below tokens that are not there", "if (token_at(position + i) < at.valid) codes", "codes"),
        ("a token too many", "if (row < at.valid) {", "if (row <= at.valid) {"),
        ("v's largest of the last rows", "LARGEST ? fmaxf(all, sm.warps[w][threadIdx.x])",
         "LARGEST ? sm.warps[w][threadIdx.x]"),
        ("no log2 e in the scale", "scale * (LOG2_E / sqrtf(HEAD_DIM))", "scale * (1.f / sqrtf(HEAD_DIM))"),
    ):  # fmt: skip
        yield Fault(name, PROLOGUE, old, new, *number)
    for name, old, new in (
        ("another swizzle", "(column / 16 ^ (row & 7)) << 4", "(column / 16 ^ (row & 3)) << 4"),
        ("tokens of v by halves", "inner % 4 / 2) + 2 *", "inner % 2) + 2 *"),
    ):
        yield Fault(name, TILE, old, new)


GRID = TileGrid((1, 5, 9), (1, 3, 2))  # 2 x 5 tiles of 2 to 6 tokens
FULL = TileGrid((1, 8, 48), (1, 8, 16))  # 3 tiles of 128
WINDOWS = {"dense and window": (None, (1, 1, 3)), "lists of one": (None, (1, 1, 1)), "lists of six": ((1, 2, 3), None)}


def attention_checks() -> Iterator[tuple[str, Callable[[str], None]]]:
    """Name, and what raises AssertionError for a bad source."""
    for name in VARIANTS:
        for late in host.LATE:
            yield f"{name}, {late} late", partial(ragged, name=name, schedule=Schedule(1, late))
        yield f"{name}, full tiles, 13 bits", partial(full, name=name)
    for name in VARIANTS:
        for windows in list(WINDOWS)[1:]:  # one block for all: through every ring several times
            for late in host.LATE[1:]:
                schedule = Schedule(2, late)
                yield (
                    f"{name}, {windows}, {late} late",
                    partial(ragged, name=name, schedule=schedule, windows=windows, blocks=1),
                )
        yield f"{name}, scores far below zero", partial(ragged, name=name, schedule=Schedule(3), offset=2.0)


def ragged(
    source: str,
    name: str,
    schedule: Schedule,
    windows: str = "dense and window",
    blocks: int = 3,
    offset: float = 0.0,
) -> None:
    q, k, v = random_qkv(GRID, heads=2, batch=2)
    q, k = q + offset, k - offset
    plan = plan_for(name, GRID, WINDOWS[windows], heads=(0, 1), smooth_k=not offset)
    found = host.attention(q, k, v, plan, name, source=source, blocks=blocks, schedule=schedule)
    compare(found, (q, k, v), plan, name, None)


def full(source: str, name: str) -> None:
    q, k, v = random_qkv(FULL, heads=1)
    plan = plan_for(name, FULL)
    found = host.attention(q, k, v, plan, name, source=source, schedule=Schedule(3, accumulator_bits=13))
    compare(found, (q, k, v), plan, name, 13)


def compare(found: torch.Tensor, qkv: tuple, plan: AttentionPlan, name: str, bits: int | None) -> None:
    assert bool(found.isfinite().all()), "not finite"
    difference = error(found, emulate(*qkv, plan, VARIANTS[name], accumulator_bits=bits))
    assert difference < TOLERANCE, f"error {difference:.1g}"


def prologue_checks() -> Iterator[tuple[str, Callable[[str], None]]]:
    for name in ("C", "A"):
        yield f"images, {name}", partial(images, name=name)


def images(source: str, name: str) -> None:
    (q, k, v), transform = inputs(GRID)
    plan = AttentionPlan(GRID, qk=VARIANTS[name].qk, pv="fp8")
    found = host.prologue(q, k, v, transform, plan, name, source=source)
    expected = host.images(*prepared(q, k, transform), v, plan, name)
    tokens = np.arange(host.SLOTS) < GRID.valid.numpy()[:, None]
    for key in ("q", "k", "v"):
        assert (found[key] != expected[key]).mean() < 1e-3, f"image of {key}"
    trailers = (host.trailers(x["trailers"])["scale"] for x in (found, expected))
    for key, ours, theirs in (
        ("q's scales", found["q_scale"][:, tokens], expected["q_scale"][:, tokens]),
        ("k's scales", *trailers),
        ("v's scales", found["v_scale"].ravel(), expected["v_scale"].ravel()),
    ):
        assert np.allclose(ours, theirs, rtol=1e-5), key
    check_pooled(found, q, k, transform)


def check_pooled(found: dict[str, np.ndarray], q: torch.Tensor, k: torch.Tensor, transform: QKTransform) -> None:
    for key, x in zip(("q_pooled", "k_pooled"), prepared(q, k, transform), strict=True):
        rows = x.transpose(1, 2).flatten(0, 1).tensor_split(GRID.offsets[1:-1], 1)
        means = torch.stack([own.mean(1) for own in rows], 1)
        assert np.allclose(found[key], means, rtol=1e-4, atol=1e-5), f"means of {key[0]}"


def first_to_notice(source: str, file: str) -> tuple[str, str] | None:
    """The first check that notices, and what it says; None where none does."""
    for name, check in attention_checks() if file == ATTENTION else prologue_checks():
        try:
            check(source)
        except AssertionError as noticed:
            return name, str(noticed).splitlines()[0]
        except subprocess.CalledProcessError:
            raise SystemExit("the edited source does not compile") from None
        except Exception as damage:  # memory that was written beyond its end
            return name, type(damage).__name__
    return None


def judged(source: str, file: str) -> tuple[str, str] | None:
    """`first_to_notice` in a process of its own, which the fault may end, or never let end."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.Process(target=lambda: theirs.send(first_to_notice(source, file)))
    child.start()
    theirs.close()
    if not ours.poll(_LONGEST):
        child.kill()
        return "any", f"does not end within {_LONGEST} s"
    try:
        return ours.recv()
    except EOFError:
        child.join()
        if child.exitcode and child.exitcode > 0:
            raise SystemExit("a check did not work") from None
        return "any", f"ended by {signal.Signals(-(child.exitcode or 0)).name}"
    finally:
        child.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    args = parser.parse_args()
    multiprocessing.set_start_method("fork")  # a child begins with everything imported
    torch.set_num_threads(1)  # and cannot use its parent's threads
    for file in (ATTENTION, PROLOGUE):
        found = judged((host.SOURCES / file).read_text(), file)
        assert found is None, f"{file} as it is fails: {found}"
    lines = [
        "# Faults in the kernels, and the check that noticed",
        "",
        "Made by `python -m tests.kernels.mutations`: each fault edited in alone; its first check to fail.",
        "",
        "| source | fault | check | what it said |",
        "| --- | --- | --- | --- |",
    ]
    missed = []
    for fault in (*attention_faults(), *prologue_faults()):
        if args.only not in fault.name:
            continue
        found = judged(fault.source(), fault.file)
        told = " | ".join(found) if found else "**none** | "
        lines.append(f"| {fault.file} | {fault.name} | {told} |")
        print(lines[-1], flush=True)
        missed += [] if found else [fault.name]
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    if missed:
        raise SystemExit(f"{len(missed)} unnoticed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
