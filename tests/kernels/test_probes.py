"""Each wrapper of the device headers on the host twin, against numpy, ml_dtypes and the PTX ISA; and as compiled.

The same probes run on a card in tests/gpu/test_wrappers.py, against the twin.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.kernels import host, probe_inputs, probes
from tests.kernels.host import Schedule
from tests.kernels.probe_inputs import Words
from tests.kernels.probes import PROBES, Probe
from tests.kernels.test_compile import disassembled
from tests.tools import fp8_sums

# Names of the device header that are its own affair: the host twin has no addresses to convert.
INTERNAL = {"shared_address"}

# ---- what the PTX ISA says -------------------------------------------------------------------------------------------


def floats(words: Words) -> np.ndarray:
    return words.view(np.float32)


def halves(words: Words) -> np.ndarray:
    """[…, 2]: the lower and the upper half of each word."""
    return words[..., None].view(np.float16)


def words_of(*parts: np.ndarray) -> Words:
    """Bytes or pairs of bytes, the lowest first, as words."""
    return np.ascontiguousarray(np.stack(parts, -1)).view(np.uint32)[..., 0]


def flushed(x: np.ndarray) -> np.ndarray:
    """.ftz: subnormal numbers become zero, and keep their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c in float64, its last bit so that a second rounding, to float32 or FP16, is the only one (to odd).

    Products of float32 are exact in float64. What a sum of two float64 lost is known exactly (Knuth's TwoSum).
    """
    with np.errstate(invalid="ignore"):
        product, c = a.astype(np.float64) * b, c.astype(np.float64)
        total = product + c
        part = total - product
        lost = (product - (total - part)) + (c - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    return np.where(even & (lost != 0) & np.isfinite(lost), odd, total)


def saturated(x: np.ndarray) -> np.ndarray:
    """.sat: cut to [0, 1], and NaN becomes zero."""
    return np.clip(np.nan_to_num(x, nan=0.0), 0, 1)


def to_half(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


def to_e4m3(x: np.ndarray) -> np.ndarray:
    """.satfinite: the largest number stands for what is larger."""
    with np.errstate(invalid="ignore"):
        return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def fma_saturate(words: Words) -> Words:
    x = saturated(fused(*flushed(floats(words)))).astype(np.float32)
    return flushed(x).view(np.uint32)


def pack_bf16(words: Words) -> Words:
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = floats(words).astype(ml_dtypes.bfloat16).view(np.uint16)
    return words_of(low, high)


def max_or_nan(words: Words) -> Words:
    """NaN where either operand is; of zeros the positive one."""
    a, b, _ = floats(words)
    with np.errstate(invalid="ignore"):
        return np.where(a == b, np.where(np.signbit(a), b, a), np.maximum(a, b)).view(np.uint32)


def half2_max(words: Words) -> Words:
    """The other operand where one is NaN; of zeros the positive one."""
    a, b = halves(words)
    with np.errstate(invalid="ignore"):
        larger = np.where((a > b) | np.isnan(b) | ((a == b) & np.signbit(b)), a, b)
    return words_of(larger[..., 0], larger[..., 1])


def half2_fma(words: Words) -> Words:
    return words_of(*to_half(fused(*halves(words))).T)


def half2_fma_saturate(words: Words) -> Words:
    return words_of(*to_half(saturated(fused(*halves(words)))).T)


def exp2_approx(words: Words) -> Words:
    with np.errstate(over="ignore", invalid="ignore"):
        return flushed(np.exp2(flushed(floats(words)[0]).astype(np.float64)).astype(np.float32)).view(np.uint32)


def barrier_arrive(words: Words) -> Words:
    """Each turn finds, from the other end, three times what the last one found, and its words."""
    found = [np.ones(128, np.uint32)]
    for row in words:
        found.append((3 * found[-1] + row)[::-1])
    return np.stack(found[:-1])


def cluster_sync(words: Words) -> Words:
    """What the other block of two left, from its other end, and which of them it is."""
    rank = np.arange(2, dtype=np.uint32)[:, None]
    return (words.reshape(-1, 2, 128) + rank)[:, ::-1, ::-1].reshape(-1, 128)


def bulk_load_cluster(words: Words) -> Words:
    """The same in both blocks but for the first words, which the other one chose."""
    found = words.repeat(2, 0)
    found[0::2, :4], found[1::2, :4] = words[:, 4:8], words[:, :4]
    found[:, 4:8] = words[:, :4].repeat(2, 0)
    return found


def registers(words: Words) -> Words:
    few, many = words[0, :128], words[0, 128:].reshape(200, 256)
    return np.concatenate([few + 1, (many + 3 * many[::-1]).reshape(-1)])


def swizzled_operand(words: Words) -> Words:
    """PTX ISA, "Matrix descriptor format": start address, leading and stride offset in units of 16 bytes; 128-byte
    swizzle is 1 in bits 62 and 63."""
    return np.stack([words[0] // 16, np.full(13, 1, np.uint32), np.full(13, 1024 // 16 | 1 << 30, np.uint32)], -1)


def products(kind: str, rows: int = 128) -> Callable[[Words], Words]:
    """Sums of 32 products added to an accumulator, which rounds; held as `fragments` says."""

    def of(words: Words) -> Words:
        a, b = probe_inputs.matrices(words, rows, "s8" if kind == "s32" else "e4m3")
        number = {"f32": np.float32, "f16": np.float16, "s32": np.int32}[kind]
        total = np.zeros((len(a), len(a[0]), rows), number)
        for k in range(0, 128, 32):
            total = (total + np.einsum("prk,pck->prc", a[..., k : k + 32], b[..., k : k + 32])).astype(number)
        return probe_inputs.fragments(total, 2 if kind == "f16" else 1).view(np.uint32)[..., 0]

    return of


def wgmma_groups(words: Words) -> Words:
    return np.concatenate([products("f16")(words).reshape(-1), products("f32")(words).reshape(-1)])


ORACLES: dict[str, Callable[[Words], Words]] = {
    "mbarrier": lambda words: words[:, ::-1],
    "mbarrier_arrive_warp": lambda words: words[:, ::-1],
    "bulk_load": lambda words: words,
    "cluster_sync": cluster_sync,
    "bulk_load_cluster": bulk_load_cluster,
    "barrier_sync": lambda words: words[:, ::-1],
    "barrier_arrive": barrier_arrive,
    "shuffle_xor": lambda words: np.stack([words[0, np.arange(128) ^ 1 << i] for i in range(5)]),
    "warp_sync": lambda words: words.reshape(4, 4, 32)[..., ::-1].reshape(4, 128),
    "warp_uniform": lambda words: np.repeat(words.reshape(4, 4, 32)[..., 0], 32, -1),
    "warp_any": lambda words: np.repeat(words.reshape(4, 4, 32).any(-1), 32, -1).astype(np.uint32),
    "warp_ballot": lambda words: np.repeat(np.packbits(words != 0, bitorder="little").view("u4"), 32).reshape(4, 128),
    "warp_sum": lambda words: np.repeat(words.reshape(4, 4, 32).sum(-1, dtype=np.uint32), 32, -1),
    "atomic_max": lambda words: words.reshape(-1, 8).max(0),
    "registers": registers,
    "swizzled_operand": swizzled_operand,
    "wgmma_groups": wgmma_groups,
    "wgmma_n120_f32_e4m3_ss": products("f32", 120),
    "wgmma_n120_f16_e4m3_ss": products("f16", 120),
    "wgmma_n128_f32_e4m3_ss": products("f32"),
    "wgmma_n128_f16_e4m3_ss": products("f16"),
    "wgmma_n128_s32_s8_ss": products("s32"),
    "wgmma_n128_f32_e4m3_rs": products("f32"),
    "wgmma_n136_f32_e4m3_rs": products("f32", 136),
    "exp2_approx": exp2_approx,
    "max_or_nan": max_or_nan,
    "fma_saturate": fma_saturate,
    "pack_e4m3": lambda words: words_of(*to_e4m3(floats(words))),
    "pack_e4m3_pair": lambda words: words_of(*to_e4m3(np.pad(floats(words)[:2], ((0, 2), (0, 0))))),
    "pack_bf16": pack_bf16,
    "half2": lambda words: words_of(*[to_half(floats(words)[0])] * 2),
    "half2_low": lambda words: halves(words)[0, :, 0].astype(np.float32).view(np.uint32),
    "half2_high": lambda words: halves(words)[0, :, 1].astype(np.float32).view(np.uint32),
    "half2_max": half2_max,
    "half2_fma": half2_fma,
    "half2_fma_saturate": half2_fma_saturate,
}


ORDERED = (
    *("mbarrier", "mbarrier_arrive_warp", "bulk_load", "cluster_sync", "bulk_load_cluster"),
    *("barrier_sync", "barrier_arrive"),
)


@pytest.mark.parametrize("probe", PROBES.values(), ids=str)
def test_the_host_twin(probe: Probe) -> None:
    # The twin can round exponentials and sums to the nearest, as numpy does: a card's tolerance is not for them.
    strict = probe if "exp2" in probe.name else replace(probe, allowed=None)
    found = probes.on_host(probe, Schedule(accumulator_bits=None))
    probes.assert_agree(strict, found, ORACLES[probe.name](probes.inputs(probe)))


@pytest.mark.parametrize("name", ORDERED)
@pytest.mark.parametrize("schedule", [Schedule(1), Schedule(2), Schedule(3, "copies"), Schedule(4, "wgmmas")], ids=str)
def test_results_do_not_depend_on_who_is_first(name: str, schedule: Schedule) -> None:
    probe = PROBES[name]
    probes.assert_agree(probe, probes.on_host(probe, schedule), ORACLES[name](probes.inputs(probe)))


@pytest.mark.parametrize("name", [name for name in PROBES if "e4m3_" in name and "wgmma" in name])
def test_fp8_sums_are_hopper_s(name: str) -> None:
    """Bit for bit, against a second implementation of the rule."""
    kind, rows = name.split("_")[2], int(name.split("_")[1][1:])
    a, b = probe_inputs.codes(probes.inputs(PROBES[name]), rows)
    expected = fp8_sums.product(a, b, half=kind == "f16")
    held = expected.astype(np.float16 if kind == "f16" else np.float32)
    words = probe_inputs.fragments(held, 2 if kind == "f16" else 1).view(np.uint32)[..., 0]
    probes.assert_agree(replace(PROBES[name], allowed=None), probes.on_host(PROBES[name]), words)


@pytest.mark.parametrize("name", [name for name in PROBES if "e4m3_" in name and "wgmma" in name])
def test_short_sums_are_within_what_is_allowed(name: str) -> None:
    """Sums as the hardware's: off, and not by too much; exact where the inputs say so."""
    probe = PROBES[name]
    short = probes.on_host(probe)
    expected = ORACLES[name](probes.inputs(probe))
    probes.assert_agree(probe, short, expected)
    off = probes.differing(replace(probe, allowed=None), short, expected)
    assert not off[: probe_inputs.EXACT].any()
    assert off[probe_inputs.EXACT :].any()


# ---- as compiled -----------------------------------------------------------------------------------------------------

_MBARRIER = [r"SYNCS\.EXCH", r"SYNCS\.ARRIVE", r"SYNCS\.PHASECHK.*TRYWAIT"]
# Where ptxas sees that a warp is together, a NOP is left of a meeting. What it means is the order in each of four
# rounds: a word written, met, another's read, met again.
_MEET, _BETWEEN = r"(?:WARPSYNC|NOP)", r"(?s:(?!\b(?:STS|LDS)\b).)*?"
# What ptxas makes of each wrapper. Products come once for each of four steps, counted below.
INSTRUCTIONS: dict[str, list[str]] = {
    "mbarrier": _MBARRIER,
    "mbarrier_arrive_warp": _MBARRIER,
    "bulk_load": [*_MBARRIER, r"UBLKCP\.S\.G"],
    "cluster_sync": [r"UCGABAR_ARV", r"UCGABAR_WAIT"],
    "bulk_load_cluster": [r"UBLKCP\.S\.G\.MULTICAST", r"SYNCS\.ARRIVE\.TRANS64\.RED\.A1T0", r"UCGABAR_WAIT"],
    "barrier_sync": [r"BAR\.SYNC"],
    "barrier_arrive": [r"BAR\.SYNC", r"BAR\.ARV"],
    "shuffle_xor": [rf"SHFL\.BFLY PT, .*, 0x{1 << i:x}, 0x1f" for i in range(5)],
    "warp_sync": [rf"(?:\bSTS\b{_BETWEEN}\b{_MEET}\b{_BETWEEN}\bLDS\b{_BETWEEN}\b{_MEET}\b{_BETWEEN}){{4}}\bEXIT\b"],
    "warp_uniform": [r"SHFL\.IDX"],
    "warp_any": [r"VOTE\.ANY"],
    "warp_ballot": [r"VOTE\.ANY R\d+, PT"],
    "warp_sum": [r"REDUX\.SUM"],
    "atomic_max": [r"(REDG|ATOMG)\S*\.MAX"],
    "registers": [r"USETMAXREG\.TRY_ALLOC\.CTAPOOL \w+, 0xf0", r"USETMAXREG\.DEALLOC\.CTAPOOL 0x18"],
    "swizzled_operand": [],
    "wgmma_groups": [r"WARPGROUP\.ARRIVE", r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1", r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0"],
    "exp2_approx": [r"MUFU\.EX2"],
    "max_or_nan": [r"FMNMX\.NAN"],
    "fma_saturate": [r"FFMA\.FTZ\.SAT"],
    "pack_e4m3": [r"F2FP\.SATFINITE\.E4M3\.F32"],
    "pack_e4m3_pair": [r"F2FP\.SATFINITE\.E4M3\.F32"],
    "pack_bf16": [r"F2FP\.BF16\.F32\.PACK_AB"],
    "half2": [r"F2FP\.F16\.F32\.PACK_AB"],
    "half2_low": [r"HADD2\.F32"],
    "half2_high": [r"HADD2\.F32"],
    "half2_max": ["HMNMX2 "],
    "half2_fma": [r"HFMA2(\.MMA)? "],
    "half2_fma_saturate": [r"HFMA2(\.MMA)?\.SAT"],
}
PRODUCTS = {
    "wgmma_n120_f32_e4m3_ss": (r"QGMMA\.64x120x32\.F32\.E4M3\.E4M3 R\d+, gdesc",),
    "wgmma_n120_f16_e4m3_ss": (r"QGMMA\.64x120x32\.F16\.E4M3\.E4M3 R\d+, gdesc",),
    "wgmma_n128_f32_e4m3_ss": (r"QGMMA\.64x128x32\.F32\.E4M3\.E4M3 R\d+, gdesc",),
    "wgmma_n128_f16_e4m3_ss": (r"QGMMA\.64x128x32\.F16\.E4M3\.E4M3 R\d+, gdesc",),
    "wgmma_n128_s32_s8_ss": (r"IGMMA\.64x128x32\.S8\.S8 R\d+, gdesc",),
    "wgmma_n128_f32_e4m3_rs": (r"QGMMA\.64x128x32\.F32\.E4M3\.E4M3 R\d+, R\d+, gdesc",),
    "wgmma_n136_f32_e4m3_rs": (r"QGMMA\.64x136x32\.F32\.E4M3\.E4M3 R\d+, R\d+, gdesc",),
}
PRODUCTS["wgmma_groups"] = PRODUCTS["wgmma_n128_f16_e4m3_ss"] + PRODUCTS["wgmma_n128_f32_e4m3_ss"]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SASS by entry; compiled without spills and serialised products, or `compiled` would have refused."""
    cubin, functions = probes.compiled()
    assert set(functions) == {probe.entry for probe in PROBES.values()}
    path = tmp_path_factory.mktemp("probes") / "probes.cubin"
    path.write_bytes(cubin)
    parts = re.split(r"\.text\.(probe_\w+):", disassembled(path))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("probe", PROBES.values(), ids=str)
def test_the_instructions(probe: Probe, code: dict[str, str]) -> None:
    text = code[probe.entry]
    for pattern in [] if probe.name in PRODUCTS and probe.name != "wgmma_groups" else INSTRUCTIONS[probe.name]:
        assert re.search(pattern, text), pattern
    if probe.name == "bulk_load_cluster":  # at its two meetings, but not in its rounds, a fence of the whole GPU
        assert text.count("MEMBAR.ALL.GPU") == text.count("UCGABAR_ARV") == 2
    expected = PRODUCTS.get(probe.name, ())
    assert [len(re.findall(pattern, text)) for pattern in expected] == [4] * len(expected)
    assert len(re.findall(r"\b[QIH]GMMA\b", text)) == 4 * len(expected)
    if probe.name == "registers":  # more than a thread starts with, or nothing would have grown
        assert max(map(int, re.findall(r"\bR(\d+)\b", text))) >= 168


# ---- nothing is left out ---------------------------------------------------------------------------------------------


def test_every_wrapper_has_a_probe() -> None:
    device = host.SOURCES / "device"
    headers = (device / "hopper.cuh").read_text() + (device / "wgmma.cuh").read_text()
    names = set(re.findall(r"^DEVICE [\w ]+?\b(\w+)\(", headers, re.MULTILINE))
    assert names >= INTERNAL
    source = re.sub(r"//.*", "", probes.SOURCE.read_text())
    made_by_macros = re.findall(r"^PROBE_\w+\((\w+),", source, re.MULTILINE)
    assert names - INTERNAL - {*re.findall(r"\b(\w+)(?:<\w+>)?\(", source), *made_by_macros} == set()
    assert set(re.findall(r"#include <(.*)>", source)) == {"hopper.cuh", "tile.cuh"}
    assert "asm" not in source


def test_every_probe_has_an_oracle() -> None:
    assert set(ORACLES) == set(PROBES)
    assert set(INSTRUCTIONS) | set(PRODUCTS) == set(PROBES)


def test_what_differs_is_noticed() -> None:
    probe = PROBES["half2_max"]
    found = probes.on_host(probe)
    broken = found.copy()
    broken[7] ^= 1 << 16
    with pytest.raises(AssertionError, match=r"half2_max: 1 of \d+ words differ: \[7\]"):
        probes.assert_agree(probe, broken, found)


# ---- what a card would be given --------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", PROBES.values(), ids=str)
def test_launch_bounds_are_the_probes_blocks(probe: Probe) -> None:
    bound = {"GROUP": 128, "2 * GROUP": 256, "3 * GROUP": 384}
    found = re.search(rf"KERNEL\((?:(\d), )?((?:\d \* )?GROUP), 1\) {probe.entry}\(", probes.SOURCE.read_text())
    cluster, group = found.groups() if found else (None, "GROUP")  # those that a macro makes have one group
    assert (bound[group], int(cluster or 1)) == (probe.threads, probe.cluster)


@pytest.fixture
def twin_as_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CuPy that loads any cubin, and runs the twin instead."""

    def load(path: str) -> SimpleNamespace:
        assert Path(path).read_bytes().startswith(b"\x7fELF")
        return SimpleNamespace(get_function=entry)

    def entry(name: str) -> Callable[..., None]:
        def launch(blocks: tuple, threads: tuple, arguments: tuple, stream: SimpleNamespace) -> None:
            assert threads == (PROBES[name.removeprefix("probe_")].threads,)
            assert stream.ptr == 7
            host.run(probes.library(), name, *arguments, *blocks, probes.PLAIN)

        return launch

    device = SimpleNamespace(Device=lambda _: nullcontext())
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=load, cuda=device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7))
    probes.module.cache_clear()
    yield
    probes.module.cache_clear()


@pytest.mark.usefixtures("twin_as_cupy")
def test_a_card_is_given_what_the_twin_is() -> None:
    for probe in PROBES.values():
        assert np.array_equal(probes.on_card(probe, torch.device("cpu")), probes.on_host(probe)), probe
