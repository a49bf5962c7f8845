"""The CUDA sources of `benchmarks.card`, without a card: compiled for it, counted, and run on the CPU machine."""

from __future__ import annotations

import ctypes
import functools
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import slots
from benchmarks.card import cubins, pipes, sums
from benchmarks.card.ablations import ABLATIONS, LAUNCHES, Ablation, Measure, jobs
from benchmarks.card.rules import equal_shares
from fpsgen.attention.tiles import TileGrid
from fpsgen.bench.attention.contenders import Inputs
from fpsgen.bench.attention.shapes import Shape
from fpsgen.kernels import cache, disassembly, hazards
from fpsgen.kernels import pipes as model
from fpsgen.kernels.disassembly import Code, Instruction
from fpsgen.kernels.loops import loops
from fpsgen.kernels.sm90_attention import PARAMETERS, VARIANTS
from tests.kernels import host
from tests.kernels.cases import line, plan_for, random_qkv

pytestmark = pytest.mark.usefixtures("compiled_once")


def listed(cubin: bytes) -> dict[str, Code]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        return disassembly.disassembled(path)


@functools.cache
def probes(by: str) -> dict[str, Code]:
    with slots.compiler(by):
        return listed(pipes.compiled())


def measured_loop(code: Code, pipe: pipes.Pipe) -> tuple[list[Instruction], int]:
    """The loop that has the most of a pipe's instruction: these, and how many others."""
    parts = set(pipe.name.split(".")) - {"SS", "RS"}
    counts = []
    for loop in loops(code):
        body = [code.instructions[index] for index in sorted(loop.body)]
        own = [each for each in body if each.parts >= parts and ("F16" in parts or each.name != "MUFU.EX2.F16")]
        counts.append((len(own), own, len(body) - len(own)))
    _, own, others = max(counts, key=lambda one: one[0])
    return own, others


@pytest.mark.parametrize("by", slots.COMPILERS)
@pytest.mark.parametrize("pipe", pipes.PIPES, ids=lambda pipe: pipe.name)
def test_a_probe_s_loop_has_what_it_divides_by(pipe: pipes.Pipe, by: str) -> None:
    """The instruction so often, and little else: what stands beside it would be measured, too."""
    for what, entry in pipe.entries.items():
        own, others = measured_loop(probes(by)[entry], pipe)
        assert len(own) == pipe.in_loop(what), entry
        assert others <= max(8, len(own) // 4), entry


@pytest.mark.parametrize("by", slots.COMPILERS)
def test_every_entry_is_measured_and_no_wgmma_is_disturbed(by: str) -> None:
    assert sorted(entry for pipe in pipes.PIPES for entry in pipe.entries.values()) == sorted(probes(by))
    assert not {name: found for name, code in probes(by).items() if (found := hazards.hazards(code))}


def test_the_model_reads_what_was_measured(tmp_path: Path) -> None:
    """Each number under the name by which the model looks for it."""
    clocks = {pipe.name: 1000.0 + number for number, pipe in enumerate(pipes.PIPES)}
    place = tmp_path / "pipes.json"
    place.write_text(json.dumps({"device": "none", "versions": {}, "intervals": clocks, "latencies": clocks}))
    table = model.measured(place)
    for pipe in pipes.PIPES:
        for entry in pipe.entries.values():
            for instruction in measured_loop(probes("newest")[entry], pipe)[0]:
                assert table.cost(instruction).interval == clocks[pipe.name]


@pytest.mark.parametrize("kind", sums.ACCUMULATORS)
@pytest.mark.parametrize("with_c", [False, True])
@pytest.mark.parametrize("bits", [13, None], ids=["measured", "exact"])
def test_the_dump_on_the_cpu_machine_obeys_its_rule(kind: str, with_c: bool, bits: int | None) -> None:
    """The likeliest, or exact sums to nearest; 1e-3: the machine rounds those to FP16 by way of float32."""
    entries = "\n".join(f"HOST_RUN(sums_{name}, Parameters, 1, THREADS, Shared)" for name in sums.ACCUMULATORS)
    library = host.build(sums.SOURCE.read_text(), entries, {})

    def run(entry: str, parameters: np.ndarray, blocks: int) -> None:
        host.run(library, entry, parameters, blocks, host.Schedule(accumulator_bits=bits))

    found = sums.dumped(kind, with_c, run, "cpu", blocks=4)
    shares = equal_shares(kind, found["a"], found["b"], found.get("c"), found["d"])
    wanted = next(iter(shares)) if bits else "exact sum to nearest"
    assert shares.pop(wanted) >= (1 if bits else 1 - 1e-3)
    assert max(share for name, share in shares.items() if with_c or "added last" not in name) < 0.95


def test_the_dump_compiles_for_the_card() -> None:
    assert cubins.compiled(sums.SOURCE)


@functools.cache
def as_it_is(variant: str, by: str) -> bytes:
    with slots.compiler(by):
        return cache.compile_checked(ABLATIONS[0].kernel(variant))[0]


def named(value: object) -> str:
    return value.name if isinstance(value, Ablation) else str(value)


@pytest.mark.parametrize("by", [slots.OLD, pytest.param("newest", marks=pytest.mark.slow)])  # GPU machines have the old
@pytest.mark.parametrize(
    ("ablation", "variant"),
    [
        pytest.param(ablation, variant, marks=[pytest.mark.slow] if variant != ablation.variants[0] else [])
        for ablation, variant in jobs()
    ],
    ids=named,
)
def test_ablations_compile_for_the_card(ablation: Ablation, variant: str, by: str) -> None:
    """Each edit applies once, nothing spills, wgmma stays asynchronous, and both roles keep to their registers."""
    with slots.compiler(by):
        cubin = ablation.compiled(variant)
        assert (cubin != as_it_is(variant, by)) == (ablation is not ABLATIONS[0])
    code = listed(cubin)["fps_attention"]
    assert not hazards.hazards(code)
    registers = {role.name: role.registers for role in hazards.roles(code)}
    assert registers["producer"] <= 24
    assert registers["consumer"] <= 240


@pytest.mark.parametrize("ablation", [one for one in ABLATIONS if "barrier" in str(one.edits)], ids=named)
def test_ablations_of_barriers_do_not_hang(ablation: Ablation) -> None:
    """The CPU machine finds out where nobody can go on; what is computed is wrong."""
    source = ablation.source((host.SOURCES / "sm90_attention.cu").read_text())
    tiles, window = line(9)
    q, k, v = random_qkv(tiles, heads=1)
    plan = plan_for("fp8-fp16", tiles, (window,))
    host.attention(q, k, v, plan, "fp8-fp16", source=source, blocks=2)


def test_ablations_are_launched_as_the_kernel_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their own shared memory, on operands that the prologue made; the CPU machine stands for the card."""
    launched = []
    monkeypatch.setattr(cubins, "loaded", lambda cubin: SimpleNamespace(get_function=lambda name: (cubin, name)))
    monkeypatch.setattr(cubins, "call", lambda *given: launched.append(given))
    inputs = Inputs(Shape("tiny", "2x5x9", TileGrid((2, 5, 9), (2, 3, 4)), 2), torch.device("cpu"))
    [fewer] = [one for one in ABLATIONS if one.name == "2 stages"]
    with host.on_this_machine(blocks=4):
        times = Measure(inputs)(fewer, "fp8-fp16", b"a cubin")
    assert len(times) == LAUNCHES
    for function, blocks, threads, parameters, shared_bytes in launched:
        assert (function, blocks, threads) == ((b"a cubin", "fps_attention"), 4, 384)
        assert parameters.dtype == PARAMETERS
        assert shared_bytes == replace(VARIANTS["fp8-fp16"], STAGES=2).shared_bytes


def test_a_cubin_is_there_when_cupy_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is at the first look for a function; and it takes another file at the same path for the first one."""

    class RawModule:
        def __init__(self, path: str) -> None:
            self.path = path

        def get_function(self, name: str) -> bytes:
            return Path(self.path).read_bytes()

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=RawModule))
    one, other = (cubins.loaded(content) for content in (b"one", b"other"))
    assert (one.get_function("f"), other.get_function("f")) == (b"one", b"other")
    assert one.path != other.path


def test_clocks_are_divided_by_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card on which the instructions of an entry take 7 clocks each, one after another in a sub-partition."""
    by_entry = {entry: (pipe, what) for pipe in pipes.PIPES for what, entry in pipe.entries.items()}

    def call(entry: str, _: int, threads: int, parameters: np.ndarray) -> None:
        pipe, what = by_entry[entry]
        warps = threads // 32
        each = pipes.ROUNDS * pipe.in_loop(what) * (warps // 4 if what == "intervals" and not pipe.tensor else 1)
        clocks = (ctypes.c_int64 * (2 * warps)).from_address(int(parameters["clocks"]))
        clocks[:] = [x for warp in range(warps) for x in (100 + warp, 100 + 7 * each - warps + 1 + warp)]

    monkeypatch.setattr(cubins, "loaded", lambda cubin: SimpleNamespace(get_function=str))
    monkeypatch.setattr(cubins, "call", call)
    found = pipes.measure("cpu")
    assert set(found["intervals"].values()) == {7}
    assert set(found["latencies"].values()) == {7}


def test_an_edit_that_does_not_apply_once_is_refused() -> None:
    for text in ("nothing", "if (a) if (a)"):
        with pytest.raises(ValueError, match="times 'if"):
            Ablation("a fault", (("if (a)", ""),)).source(text)
