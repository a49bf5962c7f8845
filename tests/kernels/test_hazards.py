"""The check of wgmmas in flight and of the producer's registers notices what the compiler could do wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from benchmarks import slots
from fpsgen.kernels import cache, hazards, nvrtc, sm90_attention
from fpsgen.kernels.disassembly import Code, Instruction
from fpsgen.kernels.listing import KERNELS
from fpsgen.kernels.registers import is_wgmma, read, wgmma, written
from tests.kernels.cases import mostly

pytestmark = pytest.mark.usefixtures("compiled_once")

ATTENTION = [name for name in KERNELS if name.startswith("attention")]
NOTHING = Instruction(0, None, "NOP", (), 1, None, None, ())


def code_of(name: str, by: str = "newest") -> Code:
    return slots.compiled_by(by, name)[0]["fps_attention"]


def edited(code: Code, change: Callable[[int, Instruction], Instruction]) -> Code:
    return Code(code.name, [change(index, each) for index, each in enumerate(code.instructions)], code.labels)


def places(code: Code, fits: Callable[[Instruction], bool]) -> list[int]:
    return [index for index, each in enumerate(code.instructions) if fits(each)]


def waits(code: Code) -> list[int]:
    return places(code, lambda each: each.name == "WARPGROUP.DEPBAR.LE")


def without(code: Code, *gone: int) -> Code:
    return edited(code, lambda index, each: NOTHING if index in gone else each)


@pytest.mark.parametrize("by", slots.COMPILERS)
@pytest.mark.parametrize("name", ATTENTION)
def test_a_removed_wait_is_noticed(name: str, by: str) -> None:
    """Each of them: after the first scores, after scores and after P V in both loops, and after the last P V."""
    code = code_of(name, by)
    assert hazards.hazards(code) == []
    assert len(waits(code)) == 6
    for wait in waits(code):
        assert hazards.in_flight(without(code, wait))


@pytest.mark.parametrize("name", mostly(ATTENTION, "attention-fp8-fp16"))
def test_a_kernel_that_never_waits_is_noticed(name: str) -> None:
    """Groups in flight are then as many as the loops have turns, and the check still ends."""
    code = code_of(name)
    assert hazards.in_flight(without(code, *waits(code)))


@pytest.mark.parametrize("name", ATTENTION)
def test_a_wait_for_too_few_is_noticed(name: str) -> None:
    code = code_of(name)

    def weaker(index: int, each: Instruction) -> Instruction:
        left = int(each.operands[1], 16) + 1 if index in waits(code) else 0
        return replace(each, operands=(each.operands[0], hex(left))) if left else each

    for wait in waits(code):
        assert hazards.in_flight(
            edited(code, lambda index, each, at=wait: weaker(index, each) if index == at else each)
        )


@pytest.mark.parametrize("name", ATTENTION)
def test_a_read_before_its_wait_is_noticed(name: str) -> None:
    """As if ptxas had moved one instruction up, over the wait for the scores."""
    code = code_of(name)
    wait = next(index for index in waits(code) if int(code.instructions[index].operands[1], 16) == 1)
    scores = set(
        next(wgmma(each).accumulator for each in code.instructions[wait::-1] if is_wgmma(each) and not wgmma(each).a)
    )
    reader = next(index for index in range(wait, len(code.instructions)) if read(code.instructions[index]) & scores)
    moved = {wait: code.instructions[reader], reader: code.instructions[wait]}
    assert hazards.in_flight(edited(code, lambda index, each: moved.get(index, each)))


def test_writing_an_operand_in_flight_is_noticed() -> None:
    code = code_of("attention-fp8-fp16")
    products = places(code, lambda each: is_wgmma(each) and bool(wgmma(each).a))
    operand = wgmma(code.instructions[products[0]]).a[0]
    free = next(index for index in range(products[3] + 1, len(code.instructions)) if not code.instructions[index].label)
    write = replace(NOTHING, name="MOV", operands=(f"R{operand}", "RZ"))
    found = hazards.in_flight(edited(code, lambda index, each: write if index == free else each))
    assert len(found) == 1
    assert "MOV" in found[0]


@pytest.mark.parametrize("by", slots.COMPILERS)
def test_a_wait_that_the_source_lacks_is_refused(by: str) -> None:
    """ptxas then waits after each wgmma, says so (C75), and the kernel is several times slower."""
    kernel = sm90_attention.VARIANTS["fp8-fp16"]
    source, headers = cache.sources(kernel.SOURCE)
    assert source.count("wgmma_wait<1>();") == 1
    with slots.compiler(by):
        options = cache.options_of(kernel)
        with pytest.raises(nvrtc.CompileError, match="serialised"):
            cache.checked("edited", "sm_90a", source.replace("wgmma_wait<1>();", ""), headers, options)


@pytest.mark.parametrize("by", slots.COMPILERS)
def test_a_fat_producer_is_refused(by: str) -> None:
    """What needs more than setmaxnreg leaves it, ptxas spills: it keeps to 24 registers by itself."""
    kernel = sm90_attention.VARIANTS["fp8-fp16"]
    source, headers = cache.sources(kernel.SOURCE)
    begin = "DEVICE void produce(const Parameters& P, Shared& sm) {\n"
    assert source.count(begin) == 1
    head, rest = source.split(begin)
    body, tail = rest.split("\n}\n", 1)
    loop = "\n#pragma unroll\n  for (int i = 0; i < 100; i++) "
    volatile = "static_cast<const volatile int*>(P.offsets)[threadIdx.x + i]"  # it cannot read them again later
    many, kept = f"  int held[100];{loop}held[i] = {volatile};\n", f"{loop}P.out[i] = held[i] * held[99 - i];\n"
    fat = f"{head}{begin}{many}{body}\n{kept}}}\n{tail}"
    with slots.compiler(by), pytest.raises(nvrtc.CompileError, match="spills"):
        cache.checked("fat", "sm_90a", fat, headers, cache.options_of(kernel))


@pytest.mark.parametrize("by", slots.COMPILERS)
def test_a_producer_above_its_registers_is_noticed(by: str) -> None:
    """Its own code alone counts: consumers have more. In the listing, since ptxas does not do it."""
    code = code_of("attention-fp8-fp16", by)
    consumer, producer = hazards.roles(code)
    assert producer.registers <= producer.given == 24 < consumer.registers <= consumer.given == 240
    shrink = next(iter(places(code, lambda each: "DEALLOC" in each.parts)))
    write = replace(NOTHING, name="MOV", operands=("R24", "RZ"))
    free = next(index for index in range(shrink + 1, len(code.instructions)) if not code.instructions[index].label)
    fat = edited(code, lambda index, each: write if index == free else each)
    assert hazards.roles(fat)[1].registers == 25
    assert ["producer" in told for told in hazards.too_many_registers(fat)] == [True]


def test_consumers_with_too_many_registers_are_noticed() -> None:
    code = code_of("attention-fp8-fp32")

    def fewer(_: int, each: Instruction) -> Instruction:
        grows = each.operation == "USETMAXREG" and "TRY_ALLOC" in each.parts
        return replace(each, operands=(each.operands[0], "0xe0")) if grows else each

    assert len(hazards.too_many_registers(edited(code, fewer))) == 1


def operands() -> Iterator[tuple[str, str, set[int], set[int]]]:
    yield "IMAD.WIDE", "R2, R5, 0x4, R6", {2, 3}, {5, 6, 7}
    yield "STG.E.128", "desc[UR4][R8.64+0x10], R12", set(), {8, 9, 12, 13, 14, 15}
    yield "LDG.E.64", "R2, desc[UR24][R96.64]", {2, 3}, {96, 97}
    yield "SHFL.BFLY", "PT, R12, R9, 0x1, 0x1f", {12}, {9}
    yield "ISETP.NE.AND", "P0, PT, R0, RZ, PT", set(), {0}
    yield "CS2R", "R202, SRZ", {202, 203}, set()
    yield "BAR.SYNC.DEFER_BLOCKING", "R2, 0x100", set(), {2}
    yield "FADD", "R9, -R210.reuse, |R8|", {9}, {8, 210}
    yield "LDS.128", "R12, [R8+UR4+0x29000]", {12, 13, 14, 15}, {8}
    yield "QGMMA.64x16x32.F16.E4M3.E4M3", "R92, gdesc[UR8], RZ, !UPT", {92, 93, 94, 95}, {92, 93, 94, 95}
    yield (
        "QGMMA.64x8x32.F32.E4M3.E4M3",
        "R24, R124, gdesc[UR12], R24, gsb0",
        {*range(24, 28)},
        {*range(24, 28), *range(124, 128)},
    )


@pytest.mark.parametrize(("name", "text", "result", "sources"), list(operands()))
def test_registers_of_an_instruction(name: str, text: str, result: set[int], sources: set[int]) -> None:
    each = replace(NOTHING, name=name, operands=tuple(text.split(", ")))
    assert written(each) == result
    assert read(each) == sources
