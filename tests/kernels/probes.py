"""The kernels of probes.cu, one for each wrapper of the device headers: their inputs, and how results may differ.

`on_host` runs one by g++ over the host twin, `on_card` by NVRTC and CuPy on torch's current CUDA device. PTX ISA, 9.7,
decides what a result is; where it leaves a choice (a NaN's bits, the last bits of an approximation), `allowed` does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fpsgen.kernels import cache as kernel_cache
from fpsgen.kernels.launch import packed
from tests.kernels import host
from tests.kernels import probe_inputs as given
from tests.kernels.host import Schedule
from tests.kernels.probe_inputs import Words

SOURCE = Path(__file__).with_name("probes.cu")
OPTIONS = ("-arch=sm_90a", "-std=c++17", "--ptxas-options=-v")
# `Parameters` of the source.
PARAMETERS = np.dtype([("in", np.uint64), ("out", np.uint64), ("count", np.int32)], align=True)
GROUP, ROUNDS = 128, 4
PLAIN = Schedule()

# From expected results, as numbers, and inputs: how far a result may be off.
Allowed = Callable[[np.ndarray, Words], np.ndarray]


@dataclass(frozen=True)
class Probe:
    """One kernel of probes.cu: `probe_` and its name.

    inputs: from a generator to 32-bit words [rows, columns]. cluster: blocks of one. out: shape of the result in words;
    where it is not given, a word for each column. numbers: what results are, for `allowed` and for NaN, whose bits
    nobody reads; None for words that must be equal. signed_zeros: whether -0 and 0 differ.
    """

    name: str
    inputs: Callable[[np.random.Generator], Words]
    threads: int = GROUP
    blocks: int = 1
    cluster: int = 1
    out: tuple[int, ...] | None = None
    numbers: str | None = None
    allowed: Allowed | None = None
    signed_zeros: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def entry(self) -> str:
        return f"probe_{self.name}"


def ulps_of_exp2(expected: np.ndarray, _: Words) -> np.ndarray:
    """ex2.approx.ftz.f32: 2 ulp, by the manual, and one is exp2f's on the CPU. A little below the least normal number
    would be zero."""
    least = np.finfo(np.float32).tiny
    with np.errstate(invalid="ignore"):
        spacing = np.spacing(np.abs(expected).astype(np.float32))
    return np.where(np.isfinite(expected) & (expected != 0), 3.0 * spacing, 0) + least * (expected == least)


def error_of_fp8_sums(result_bits: int, rows: int, expected: np.ndarray, words: Words) -> np.ndarray:
    """Each step cuts its 32 products and the sum so far (36 addends, for a sum that is taken in parts) 13 bits behind
    the leading one of the largest, then rounds to an accumulator of `result_bits`. The first patterns need none."""
    a, b = given.matrices(words, rows, "e4m3")
    error, total = np.zeros((len(a), given.A_ROWS, rows)), np.zeros((len(a), given.A_ROWS, rows))
    for step in range(0, given.K, 32):
        part = slice(step, step + 32)
        largest = np.abs(total)
        for k in range(step, step + 32):
            np.maximum(largest, np.abs(a[:, :, k, None] * b[:, None, :, k]), out=largest)
        total += np.einsum("prk,pck->prc", a[:, :, part], b[:, :, part])
        np.maximum(largest, np.abs(total), out=largest)
        error += 36 * 2.0**-13 * largest + 2.0**-result_bits * np.abs(total)
    error[: given.EXACT] = 0
    return given.fragments(error, 2 if result_bits == 10 else 1).reshape(expected.shape)


def product(kind: str, operands: str, place: str, rows: int = 128) -> Probe:
    """The probe of a wgmma: blocks are patterns of operands."""
    integers = partial(given.int8_operands, rows=rows)
    make = integers if operands == "s8" else partial(given.e4m3_operands, rows=rows, wide=kind == "f32")
    patterns, bits = {"f32": (6, 23), "f16": (5, 10), "s32": (4, 0)}[kind]
    return Probe(
        f"wgmma_n{rows}_{kind}_{operands}_{place}",
        make,
        blocks=patterns,
        out=(patterns, GROUP, rows // (4 if kind == "f16" else 2)),
        numbers={"f32": "float32", "f16": "float16"}.get(kind),
        allowed=partial(error_of_fp8_sums, bits, rows) if bits else None,
        signed_zeros=False,  # of a sum of zeros; the manual says nothing
    )


WGMMAS = (
    product("f32", "e4m3", "ss", 120),
    product("f16", "e4m3", "ss", 120),
    product("f32", "e4m3", "ss"),
    product("f16", "e4m3", "ss"),
    product("s32", "s8", "ss"),
    product("f32", "e4m3", "rs"),
    product("f32", "e4m3", "rs", 136),
)
NUMBERS = (
    Probe("exp2_approx", given.exponents, numbers="float32", allowed=ulps_of_exp2),
    Probe("max_or_nan", given.float_triples, numbers="float32"),  # the third is not read
    Probe("fma_saturate", given.float_triples, numbers="float32", signed_zeros=False),  # -0 cut to [0, 1] is either
    Probe("pack_e4m3", given.for_e4m3, numbers="e4m3"),
    Probe("pack_e4m3_pair", given.for_e4m3, numbers="e4m3"),
    Probe("pack_bf16", given.for_bf16, numbers="bfloat16"),
    Probe("half2", given.for_half, numbers="float16"),
    Probe("half2_low", given.all_halves, numbers="float32"),
    Probe("half2_high", given.all_halves, numbers="float32"),
    Probe("half2_max", given.half_pairs, numbers="float16"),
    Probe("half2_fma", given.half_triples, numbers="float16"),
    Probe("half2_fma_saturate", given.half_triples, numbers="float16", signed_zeros=False),  # as above
)
THREADS = (
    Probe("mbarrier", given.words(ROUNDS, GROUP // 2), out=(ROUNDS, GROUP // 2)),
    Probe("mbarrier_arrive_warp", given.words(ROUNDS, GROUP // 2), out=(ROUNDS, GROUP // 2)),
    Probe("bulk_load", given.words(ROUNDS, 1024), out=(ROUNDS, 1024)),
    Probe("cluster_sync", given.words(4 * ROUNDS, GROUP), blocks=4, cluster=2, out=(4 * ROUNDS, GROUP)),
    Probe("bulk_load_cluster", given.words(2 * ROUNDS, 1024), blocks=4, cluster=2, out=(4 * ROUNDS, 1024)),
    Probe("barrier_sync", given.words(2 * ROUNDS, GROUP), 2 * GROUP, out=(2 * ROUNDS, GROUP)),
    Probe("barrier_arrive", given.words(2 * ROUNDS, GROUP), 2 * GROUP, out=(2 * ROUNDS, GROUP)),
    Probe("shuffle_xor", given.words(1, GROUP), out=(5, GROUP)),
    Probe("warp_sync", given.words(ROUNDS, GROUP), out=(ROUNDS, GROUP)),
    Probe("warp_uniform", given.words(ROUNDS, GROUP), out=(ROUNDS, GROUP)),
    Probe("warp_any", given.conditions, out=(ROUNDS, GROUP)),
    Probe("warp_ballot", given.conditions, out=(ROUNDS, GROUP)),
    Probe("warp_sum", given.words(ROUNDS, GROUP), out=(ROUNDS, GROUP)),
    Probe("atomic_max", given.words(ROUNDS, GROUP), out=(8,)),
    Probe("registers", given.words(1, GROUP + 200 * 2 * GROUP), 3 * GROUP),
    Probe("swizzled_operand", given.offsets, out=(13, 3)),
    # Integers, of which sums are exact in FP16 and FP32 alike; the words of both accumulators follow each other.
    Probe("wgmma_groups", given.integer_operands, out=(GROUP * (32 + 64),)),
)
PROBES = {probe.name: probe for probe in (*THREADS, *WGMMAS, *NUMBERS)}


@cache
def inputs(probe: Probe) -> Words:
    """What a probe reads, the same each time."""
    made = np.ascontiguousarray(probe.inputs(np.random.default_rng(list(probe.name.encode()))), np.uint32)
    made.setflags(write=False)
    return made


def shape(probe: Probe) -> tuple[int, ...]:
    return probe.out or inputs(probe).shape[1:]


def on_host(probe: Probe, schedule: Schedule = PLAIN) -> Words:
    """A probe's result by the host twin."""
    words, out = inputs(probe), np.full(shape(probe), 0xFFFFFFFF, np.uint32)
    parameters = np.zeros((), PARAMETERS)
    parameters["in"], parameters["out"], parameters["count"] = words.ctypes.data, out.ctypes.data, words.shape[1]
    host.run(library(), probe.entry, parameters, probe.blocks, schedule)
    return out


@cache
def library() -> ctypes.CDLL:
    lines = [f"HOST_RUN({one.entry}, Parameters, {one.cluster}, {one.threads}, Shared)" for one in PROBES.values()]
    return host.build(SOURCE.read_text(), "\n".join(lines), {})


def compiled() -> tuple[bytes, dict[str, Any]]:
    """The probes' cubin and what each entry takes; CompileError where one spills, or wgmma is serialised."""
    _, headers = kernel_cache.sources("sm90_attention")
    return kernel_cache.checked("probes", "sm_90a", SOURCE.read_text(), headers, OPTIONS)


def on_card(probe: Probe, device: torch.device | None = None) -> Words:
    """A probe's result on a CUDA device, torch's current one where it is not given."""
    import cupy

    device = device or torch.device("cuda", torch.cuda.current_device())
    words = torch.from_numpy(inputs(probe).view(np.int32).copy()).to(device)
    out = torch.full(shape(probe), -1, dtype=torch.int32, device=device)
    parameters = packed(PARAMETERS, {"in": words, "out": out, "count": words.shape[1]})
    with cupy.cuda.Device(device.index):
        stream = SimpleNamespace(ptr=torch.cuda.current_stream(device).cuda_stream)
        entry = module(device.index).get_function(probe.entry)
        entry((probe.blocks,), (probe.threads,), (parameters,), stream=stream)
    return out.cpu().numpy().view(np.uint32)


@cache
def module(_: int) -> Any:
    """The probes as CuPy has them on the current device, by its index."""
    import cupy

    path = host.build_folder() / "probes.cubin"
    path.write_bytes(compiled()[0])
    return cupy.RawModule(path=str(path))


def decoded(words: Words, numbers: str) -> np.ndarray:
    """Words as the numbers in them, [..., numbers per word]; exact in float64."""
    words = np.ascontiguousarray(words)[..., None]
    if numbers == "e4m3":
        return torch.from_numpy(words.view(np.uint8).copy()).view(torch.float8_e4m3fn).double().numpy()
    if numbers == "bfloat16":
        return (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return words.view(numbers).astype(np.float64)


def differing(probe: Probe, found: Words, expected: Words) -> np.ndarray:
    """Which words are neither equal nor as near as the probe allows."""
    same = found == expected
    if not probe.numbers:
        return ~same
    ours, theirs = decoded(found, probe.numbers), decoded(expected, probe.numbers)
    with np.errstate(invalid="ignore"):
        off = np.abs(ours - theirs)
    near = (ours == theirs) & ((np.signbit(ours) == np.signbit(theirs)) | (not probe.signed_zeros))
    if probe.allowed:
        near |= off <= probe.allowed(theirs, inputs(probe))
    return ~(same | (near | (np.isnan(ours) & np.isnan(theirs))).all(-1))


def assert_agree(probe: Probe, found: Words, expected: Words) -> None:
    """AssertionError with the first words that differ, and where."""
    wrong = np.argwhere(differing(probe, found, expected))
    told = [f"{at.tolist()}: {found[tuple(at)]:08x}, not {expected[tuple(at)]:08x}" for at in wrong[:8]]
    assert not told, f"{probe}: {len(wrong)} of {found.size} words differ: " + "; ".join(told)
