"""Which registers an instruction of Hopper's reads and writes, from its text in a listing."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cache

from fpsgen.kernels.disassembly import Instruction

WGMMA = ("QGMMA", "IGMMA", "HGMMA")  # in FP8, INT8 and 16 bits

_REGISTER = re.compile(r"(?<![\w.])R(\d+)(\.64)?")
_PREDICATE = re.compile(r"!?U?P(?:\d|T)")
_NO_RESULT = {"BAR", "RET", "CALL", "R2P", "NANOSLEEP", "WARPSYNC", "FCHK"}  # their first register is an operand
_STORES = {"STG", "STS", "ST", "STL"}
_LOADS = {"LDG", "LDS", "LD", "LDL", "LDC"}


@dataclass(frozen=True)
class Wgmma:
    """One wgmma: D[64, columns] += A[64, 32 bytes] B[32 bytes, columns], of which a warp has 16 rows.

    accumulator, a: registers of each thread; `a` is empty where A comes from shared memory. commits: it ends a group.
    """

    columns: int
    accumulator: range
    a: range
    commits: bool

    @property
    def shared_bytes(self) -> int:
        """What the tensor cores of an SM read of shared memory for it."""
        return 32 * (self.columns + (0 if self.a else 64))


@cache
def wgmma(instruction: Instruction) -> Wgmma:
    """ValueError for what is none."""
    shape = re.search(r"\.64x(\d+)x\d+\.(\w+)", instruction.name)
    words = list(instruction.operands)
    result = _REGISTER.fullmatch(words[0]) if words else None
    if instruction.operation not in WGMMA or not shape or not result:
        raise ValueError(f"this is no wgmma: {instruction}")
    columns, first = int(shape[1]), int(result[1])
    registers = columns // (4 if shape[2] == "F16" else 2)
    a = _REGISTER.fullmatch(words[1])
    from_registers = range(int(a[1]), int(a[1]) + 4) if a else range(0)
    return Wgmma(
        columns, range(first, first + registers), from_registers, any(word.startswith("gsb") for word in words)
    )


def is_wgmma(instruction: Instruction) -> bool:
    return instruction.operation in WGMMA


@cache
def written(instruction: Instruction) -> frozenset[int]:
    """General registers of a thread; RZ is none."""
    if is_wgmma(instruction):
        return frozenset(wgmma(instruction).accumulator)
    operands = _operands(instruction)
    result = _REGISTER.fullmatch(operands[0].removesuffix(".reuse")) if operands else None
    if not result or _has_no_result(instruction):
        return frozenset()
    first, parts = int(result[1]), instruction.parts
    pair = "WIDE" in parts or (instruction.operation == "CS2R" and "32" not in parts)
    return frozenset(range(first, first + (2 if pair else _width(instruction, _LOADS))))


@cache
def read(instruction: Instruction) -> frozenset[int]:
    if is_wgmma(instruction):
        own = wgmma(instruction)
        return frozenset(own.a) | frozenset(own.accumulator)
    operands = _operands(instruction)
    if written(instruction):
        operands = operands[1:]
    found = set()
    for number, operand in enumerate(operands):
        for first, pair in _REGISTER.findall(operand):
            stored = number == len(operands) - 1 and "[" not in operand
            wide = "WIDE" in instruction.parts and number == 2  # the addend of a product in 64 bits
            count = 2 if pair or wide else _width(instruction, _STORES) if stored else 1
            found |= set(range(int(first), int(first) + count))
    return frozenset(found)


def results_and_sources(instruction: Instruction) -> tuple[set[str], set[str]]:
    """Names of what it writes and reads, of all kinds: R4, UR4, P0, UP0.

    Results stand first: up to two predicates (of a vote one), then a register.
    """
    if instruction.operation in ("BRA", "EXIT", "CALL", "RET"):
        return set(), set()
    most = 1 if instruction.operation.startswith("VOTE") else 2
    count = len(list(itertools.islice(itertools.takewhile(_PREDICATE.fullmatch, instruction.operands), most)))
    if not _has_no_result(instruction) and re.fullmatch(r"U?R[\dZ]+", "".join(instruction.operands[count : count + 1])):
        count += 1
    names = [
        set(re.findall(r"\bU?[RP]\d+", " ".join(part)))
        for part in (instruction.operands[:count], instruction.operands[count:])
    ]
    return names[0], names[1]


def _operands(instruction: Instruction) -> list[str]:
    """Without the predicates that stand before them."""
    skip = 0
    while skip < len(instruction.operands) and _PREDICATE.fullmatch(instruction.operands[skip]):
        skip += 1
    return list(instruction.operands[skip:])


def _has_no_result(instruction: Instruction) -> bool:
    return instruction.operation in _NO_RESULT or re.search(r"SETP2?$", instruction.operation) is not None


def _width(instruction: Instruction, which: set[str]) -> int:
    if instruction.operation not in which:
        return 1
    return next((count for word, count in (("64", 2), ("128", 4)) if word in instruction.parts), 1)
