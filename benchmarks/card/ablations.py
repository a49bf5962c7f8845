"""How much time each part of the attention kernel takes: the kernel without it, timed. Results are then wrong.

    python -m benchmarks.card.ablations --out ablations.json

At 14B, 720p, density 1/6, without the prologue: ten launches each, after two that warm up. Every edit must apply to
the source exactly once, and leave the order of arrivals and waits as it is, so that nothing hangs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from benchmarks.card import cubins
from fpsgen import files
from fpsgen.attention import hopper
from fpsgen.attention.plan import AttentionPlan
from fpsgen.bench.attention.contenders import Inputs
from fpsgen.bench.attention.shapes import Shape, chosen_windows, plan_8bit, shape
from fpsgen.bench.stopwatch import Stopwatch
from fpsgen.kernels import cache, nvrtc
from fpsgen.kernels.sm90_attention import VARIANTS, AttentionKernel

LAUNCHES, WARM = 10, 2
MODEL, RES, DENSITY = "14b", "720p", "1/6"


@dataclass(frozen=True)
class Ablation:
    """Pairs of text in the source and what takes its place; changes of the kernel's compile-time parameters; the
    variants that have the part."""

    name: str
    edits: tuple[tuple[str, str], ...] = ()
    changes: tuple[tuple[str, Any], ...] = ()
    variants: tuple[str, ...] = ("fp8-fp16", "int8-int32")

    def source(self, text: str) -> str:
        """ValueError where an edit does not apply exactly once."""
        for old, new in self.edits:
            if text.count(old) != 1:
                raise ValueError(f"{self.name}: the source has {text.count(old)} times {old!r}")
            text = text.replace(old, new)
        return text

    def kernel(self, variant: str) -> AttentionKernel:
        _, kernel = hopper.kernels(plan(shape(MODEL, RES), variant), variant)
        return replace(kernel, **dict(self.changes))

    def compiled(self, variant: str) -> bytes:
        """The cubin; CompileError where it spills, or wgmma is serialised."""
        text, headers = cache.sources(AttentionKernel.SOURCE)
        kernel = self.kernel(variant)
        source, options = self.source(text), cache.options_of(kernel)
        return cache.checked(self.name, kernel.architecture, source, headers, options)[0]


_NO_MAXIMUM = ("bool rose = reference.raise(top);", "bool rose = false;")
_NO_EXPONENTIALS = (  # scores stay in use, or Q K went, too
    "scores.exponentials(pairs, sum, factor, reference.m);",
    "for (int i = 0; i < 30; i++) pairs[i] = static_cast<u32>(scores.s[i]);",
)
_COPIES = "mbarrier_arrive_expect(&sm.{0}_full[kv.at], "
ABLATIONS = (
    Ablation("as it is", variants=tuple(VARIANTS)),
    Ablation("no turns", (
        ("{ barrier_sync(TURN + group, 2 * GROUP); }", '{ asm volatile("" ::"r"(TURN + group) : "memory"); }'),
        ("{ barrier_arrive(TURN + 1 - group, 2 * GROUP); }", '{ asm volatile("" ::"r"(group) : "memory"); }'),
    )),
    Ablation("each block alone", changes=(("CLUSTER", 1),)),
    Ablation("3 stages", changes=(("STAGES", 3),)),
    Ablation("2 stages", changes=(("STAGES", 2),)),
    Ablation("128 columns of scores", changes=(("KEYS", 128),), variants=("fp8-fp32", "fp8-fp16")),
    Ablation("each buffer is copied once", (
        ("  u32 meetings = 0;", "  int passed = 0;\n  u32 meetings = 0;"),
        (_COPIES.format("k"), "if (passed >= STAGES) mbarrier_arrive(&sm.k_full[kv.at]);\n      else "
         + _COPIES.format("k")),
        ("      load(sm.k[kv.at]", "      if (passed < STAGES) load(sm.k[kv.at]"),
        ("      bulk_load(&sm.trailer[kv.at]", "      if (passed < STAGES) bulk_load(&sm.trailer[kv.at]"),
        (_COPIES.format("v"), "if (passed >= STAGES) mbarrier_arrive(&sm.v_full[kv.at]);\n      else "
         + _COPIES.format("v")),
        ("      load(sm.v[kv.at]", "      if (passed++ < STAGES) load(sm.v[kv.at]"),
        ("meetings ^= is_shared;", "meetings ^= is_shared & passed <= STAGES;"),
    )),
    Ablation("no maximum", (_NO_MAXIMUM,)),
    Ablation("no exponentials", (_NO_EXPONENTIALS,)),
    Ablation("no softmax", (_NO_MAXIMUM, _NO_EXPONENTIALS)),
    Ablation("a quarter of Q K", (("constexpr int K_STEPS = HEAD_DIM / 32;", "constexpr int K_STEPS = 1;"),)),
    Ablation("no P V in the loop", (  # P stays in use, or its exponentials went, too
        ("sums.issue(p, sm.v[v.at], (j - 1) % PROMOTE != 0);\n      wgmma_commit();",
         "for (int i = 0; i < 16; i++) sums.total[i] += __int_as_float(static_cast<int>(p[i]));"),
        ("wgmma_wait<1>();", "wgmma_wait<0>();"),
    )),
    Ablation("no promotion", (("if (j % PROMOTE == 0) sums.promote();", ""),)),
    Ablation("nothing is stored", (("< work.valid)", "< work.valid - SLOTS)"),)),
)  # fmt: skip


def plan(given: Shape, variant: str) -> AttentionPlan:
    return plan_8bit(given.tiles, chosen_windows(given.tiles, [DENSITY])[DENSITY], variant)


def jobs() -> Iterator[tuple[Ablation, str]]:
    for ablation in ABLATIONS:
        for variant in ablation.variants:
            yield ablation, variant


def compiled_or_why_not(job: tuple[Ablation, str]) -> bytes | str:
    ablation, variant = job
    try:
        return ablation.compiled(variant)
    except (nvrtc.CompileError, ValueError) as fault:  # one that the source outgrew, say: the others are measured
        return str(fault)[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out, every = parser.parse_args().out, list(jobs())
    with ThreadPool(os.cpu_count()) as pool:  # the compiler does not hold Python's lock
        made = pool.map(compiled_or_why_not, every, chunksize=1)
    measure = Measure(Inputs(shape(MODEL, RES), torch.device("cuda", torch.cuda.current_device())))
    rows: list[dict[str, Any]] = []
    for (ablation, variant), cubin in zip(every, made, strict=True):
        times = measure(ablation, variant, cubin) if isinstance(cubin, bytes) else []
        fault = None if isinstance(cubin, bytes) else cubin
        took = median(times) if times else None
        rows.append({"name": ablation.name, "variant": variant, "fault": fault, "median_ms": took, "samples_ms": times})
        files.write_json(out, {"shape": [MODEL, RES], "density": DENSITY, "rows": rows})
        print(f"{variant:12} {ablation.name:42}", fault or f"{took:.3f} ms", flush=True)


class Measure:
    """Milliseconds of a cubin's launches, by ablation and variant; inputs and operands are made once."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.watch = inputs, Stopwatch(inputs.q.device)
        self.operands: dict[str, Any] = {}

    def __call__(self, ablation: Ablation, variant: str, cubin: bytes) -> list[float]:
        given, chosen = self.inputs, plan(self.inputs.shape, variant)
        if variant not in self.operands:
            self.operands[variant] = hopper.prologue(given.q, given.k, given.v, given.transform, chosen, variant)
        entry, kernel = cubins.loaded(cubin).get_function("fps_attention"), ablation.kernel(variant)

        def launch(_: object, __: str, blocks: int, parameters: Any, ___: object) -> None:
            cubins.call(entry, blocks, kernel.THREADS, parameters, kernel.shared_bytes)

        with mock.patch.object(hopper, "launch", launch):
            run = partial(hopper.attention_over, self.operands[variant], chosen, variant, 1)
            return [round(one, 4) for one in self.watch.time([run] * (WARM + LAUNCHES))[WARM:]]


if __name__ == "__main__":
    main()
