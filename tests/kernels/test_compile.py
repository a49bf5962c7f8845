"""Every kernel compiles for sm_90a as it must: on the tensor cores, without spills, asynchronously. Without a GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.metadata import files
from pathlib import Path

import pytest

from benchmarks import slots
from fpsgen.attention import emulator
from fpsgen.kernels import cache, nvrtc, sm90_attention, sm90_elementwise, sm90_prologue, sm90_select
from fpsgen.wan.plan import LinearPrecision
from tests.kernels import host

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path))
    return tmp_path / "kernels"


def disassembled(cubin: Path) -> str:
    tool = next(str(file.locate()) for file in files("nvidia-cuda-nvdisasm") or [] if file.name == "nvdisasm")
    return subprocess.run([tool, cubin], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("name", "keys"),
    [("fp8-fp32", 128), ("fp8-fp32", 120), ("fp8-fp16", 128), ("fp8-fp16", 120), ("int8-int32", 128)],
)
def test_attention_on_the_tensor_cores(name: str, keys: int) -> None:
    built = cache.build(replace(sm90_attention.VARIANTS[name], KEYS=keys))
    assert built.functions["fps_attention"].spilled_bytes == 0  # and no C75 line, or it would have been refused
    code = disassembled(built.cubin)
    # Four steps each: the first Q K; in two loops Q K and P V, over the list and over a summary's tiles, which have 128
    # keys; at a query tile's end the last P V and the next Q K.
    scores = "IGMMA" if name == "int8-int32" else "QGMMA"
    counts = Counter(re.findall(r"\b([QI]GMMA)\.64x(\d+)x", code))
    columns = "128" if name == "fp8-fp32" else "136"
    of_scores = Counter({(scores, str(keys)): 12}) + Counter({(scores, "128"): 4})
    assert counts == of_scores + Counter({("QGMMA", columns): 12})
    assert not re.search(r"\b(LDL|STL)\b", code)  # nothing in local memory
    # All exponentials are computed in all three places, or none but the fades of two rows.
    assert code.count("MUFU.EX2") == (2 * (keys // 2) + 64 if name == "fp8-fp32" else 0) + 6
    assert max(map(int, re.findall(r"\bR(\d+)\b", code))) + 1 <= 240  # what setmaxnreg gives the consumers


@pytest.mark.parametrize("name", sm90_attention.VARIANTS)
def test_the_parameters_are_the_emulator_s(name: str) -> None:
    variant, kernel, before = emulator.VARIANTS[name], sm90_attention.VARIANTS[name], sm90_prologue.VARIANTS[name]
    ours = [kernel.SCORES.lower(), kernel.SCORES != "FP32", kernel.PROMOTE, before.QK_INT8, before.QK_LARGEST]
    theirs = [variant.scores, variant.synthesise, variant.promote, variant.qk == "int8", variant.largest]
    assert ours == theirs
    assert bool(before.V_ONES) == variant.sum_codes == variant.synthesise


@pytest.mark.parametrize("name", sm90_prologue.VARIANTS)
@pytest.mark.parametrize("smooth_k", [True, False])
@pytest.mark.parametrize("summary", [True, False])
def test_prologue(name: str, smooth_k: bool, summary: bool) -> None:
    built = cache.build(kernel := replace(sm90_prologue.VARIANTS[name], SMOOTH_K=smooth_k, SUMMARY=summary))
    assert set(built.functions) == set(host.entries(kernel))
    assert all(used.spilled_bytes == 0 for used in built.functions.values())
    loads = Counter(re.findall(r"\bLDG\S*", disassembled(built.cubin)))
    wide = sum(count for name, count in loads.items() if ".128" in name)
    assert loads.total() - wide <= 40 <= wide  # rows of numbers by 16 bytes, and little else: offsets, rows' factors


@pytest.mark.parametrize("tiles", sm90_select.VARIANTS)
def test_select(tiles: int) -> None:
    """Two products of four channels for each 16 bytes that are read of shared memory; scores wait in registers."""
    built = cache.build(sm90_select.VARIANTS[tiles])
    used = built.functions["fps_select"]
    assert used.spilled_bytes == used.stack_bytes == 0
    code = disassembled(built.cubin)
    assert len(re.findall(r"\bFFMA\b", code)) >= 128
    assert len(re.findall(r"\bLDG\.E\.128\b", code)) >= 16
    assert "REDUX.SUM" in code


@pytest.mark.parametrize("by", slots.COMPILERS)
@pytest.mark.parametrize("precision", sm90_elementwise.VARIANTS)
def test_elementwise(precision: LinearPrecision, by: str) -> None:
    """Wide accesses, no spills; and products and sums of the residual stream are not merged: as many of each."""
    with slots.compiler(by):
        built = cache.build(kernel := sm90_elementwise.VARIANTS[precision])
        assert set(built.functions) == set(host.entries(kernel))
        assert all(used.spilled_bytes == used.stack_bytes == 0 for used in built.functions.values())
        parts = re.split(r"\.section\s+\.text\.(\w+)", disassembled(built.cubin))
    code = dict(zip(parts[1::2], parts[2::2], strict=True))
    accesses = Counter(re.findall(r"\b(?:LDG|STG)\S*", code["fps_norm"]))
    narrow = [name for name in accesses if not re.search(r"\.(64|128)", name)]
    assert set(narrow) <= ({"STG.E"} if kernel.FORMAT else set())  # four codes, and a scale
    if precision == "16bit":
        counts = Counter(re.findall(r"\b(?:FADD|FMUL|FFMA)\b", code["fps_residual"]))
        assert counts["FADD"] == counts["FMUL"] > counts["FFMA"] == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"SCORES": "FP8"}, "FP32, FP16 or INT32"),
        ({"SCORES": "INT32", "KEYS": 120}, "do not multiply 120"),
        ({"KEYS": 64}, "KEYS = 128"),
        ({"PROMOTE": 1}, "another PROMOTE"),
        ({"PROMOTE": 0}, "another PROMOTE"),
        ({"SCORES": "FP32"}, "another PROMOTE"),
        ({"STAGES": 5}, "shared memory"),
        ({"STAGES": 1}, "overlap"),
        ({"CLUSTER": 4}, "1 block, or 2"),
    ],
)
def test_other_combinations_are_refused(change: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(sm90_attention.VARIANTS["fp8-fp16"], **change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"QK_INT8": True}, "INT8 ends at 127"),
        ({"QK_LARGEST": 127}, "FP16 scores hold 16"),
        ({"V_ONES": 0}, "V_ONES is 8"),
        ({"QK_LARGEST": 448}, "and 0 with"),
    ],
)
def test_other_prologues_are_refused(change: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(sm90_prologue.VARIANTS["fp8-fp16"], **change)


def test_wgmma_wrappers_are_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_wgmma", host.SOURCES / "device" / "make_wgmma.py")
    assert spec
    assert spec.loader
    script = sys.modules["make_wgmma"] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    spec.loader.exec_module(script)
    assert (host.SOURCES / "device" / "wgmma.cuh").read_text() == script.text()


def test_an_error_shows_the_compiler_s_log() -> None:
    with pytest.raises(nvrtc.CompileError, match=r"kernel.cu\(1\): error"):
        nvrtc.compile_cubin("int x = y;", {}, ["-arch=sm_90a"])


def test_spills_and_serialised_wgmma_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    log = "Compiling entry function 'f' for 'sm_90a'\n8 bytes stack frame, 4 bytes spill stores\nUsed 3 registers"
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda *_: (b"", log))
    with pytest.raises(nvrtc.CompileError, match="f spills registers"):
        cache.build(sm90_attention.VARIANTS["fp8-fp32"])
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda *_: (b"", "ptxas info : (C7511) Potential Performance Loss"))
    with pytest.raises(nvrtc.CompileError, match="C7511"):
        cache.build(sm90_attention.VARIANTS["fp8-fp32"])
