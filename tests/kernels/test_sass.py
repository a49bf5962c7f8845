"""Tensor-core instructions read from a cubin's bytes, held to nvdisasm's listing of every kernel."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from fpsgen.kernels import cache, listing, sass
from tests.kernels.cases import mostly
from tests.kernels.test_compile import disassembled

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each kernel compiled once for this file."""
    return tmp_path_factory.mktemp("kernels")


def listed(cubin: Path) -> dict[str, dict[str, int]]:
    """By entry function, from nvdisasm's listing."""
    parts = re.split(r"\.section\s+\.text\.(\w+)", disassembled(cubin))
    return {
        name: dict(sorted(Counter(re.findall(r"\b(HGMMA|IGMMA|QGMMA)\b", code)).items()))
        for name, code in zip(parts[1::2], parts[2::2], strict=True)
    }


# Of the prologues one: the others differ in what has no tensor-core instruction.
@pytest.mark.parametrize(
    "name",
    mostly(listing.KERNELS, *(one for one in listing.KERNELS if "prologue" not in one), "prologue-fp8-fp16-summary"),
)
def test_counts_are_nvdisasm_s(folder: Path, name: str) -> None:
    built = cache.build(listing.KERNELS[name].kernel, folder)
    found = sass.tensor_core_instructions(built.cubin.read_bytes())
    assert found == listed(built.cubin)
    assert found.keys() == built.functions.keys()
    assert any(found.values()) == name.startswith("attention")


@pytest.mark.parametrize(
    "name", ["attention-fp8-fp32", "attention-fp8-fp16", "attention-int8-int32", "prologue-fp8-fp16"]
)
def test_redistributed_registers_are_in_the_listing(folder: Path, name: str) -> None:
    kernel = listing.KERNELS[name].kernel
    listed = disassembled(cache.build(kernel, folder).cubin)
    found = {
        role: [int(count, 16) for count in re.findall(rf"USETMAXREG\.{action}\S* (?:UP\d, )?(0x[0-9a-f]+)", listed)]
        for role, action in (("consumer", "TRY_ALLOC"), ("producer", "DEALLOC"))
    }
    expected = listing.redistributed(kernel)
    assert found == ({role: [count] for role, count in expected.items()} if expected else {role: [] for role in found})
    assert bool(expected) == name.startswith("attention")


def test_static_shared_memory_is_what_ptxas_says(folder: Path) -> None:
    static, dynamic = (
        cache.build(listing.KERNELS[name].kernel, folder).functions.values()
        for name in ("prologue-fp8-fp16", "attention-fp8-fp16")
    )
    assert all(0 < own.shared_bytes < 48 * 1024 for own in static)  # more would have to be dynamic
    assert all(own.shared_bytes == 0 for own in dynamic)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "no names"])
def test_what_is_no_cubin_is_said(folder: Path, damage: str) -> None:
    whole = cache.build(listing.KERNELS["attention-fp8-fp32"].kernel, folder).cubin.read_bytes()
    names_beyond_the_table = whole[:0x3E] + b"\xff\xff" + whole[0x40:]
    given = {"empty": b"", "text": b"no cubin" * 100, "cut": whole[:1000], "no names": names_beyond_the_table}[damage]
    with pytest.raises(ValueError, match="this is not a cubin"):
        sass.tensor_core_instructions(given)
