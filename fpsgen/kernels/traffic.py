"""What a kernel's entry functions move through global memory, by their listing."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from fpsgen.kernels.disassembly import Code, Instruction

_FIRST_PARAMETER = 0x210  # in constant bank 0, on Hopper
_CONSTANT = re.compile(r"c\[0x0\]\[(?:(R\d+)\+)?0x([0-9a-f]+)\]")
_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}


def widths(code: Code) -> dict[str, dict[int, int]]:
    """How many loads and stores of global memory there are, by bits for each thread: {"LDG": {32: 8, 128: 22}}."""
    found = {
        operation: Counter(bits(each) for each in code.instructions if each.operation == operation)
        for operation in ("LDG", "STG")
    }
    return {operation: dict(sorted(counted.items())) for operation, counted in found.items()}


def bits(instruction: Instruction) -> int:
    return next((count for word, count in _BITS.items() if word in instruction.parts), 32)


def tensors(code: Code, layout: np.dtype) -> list[str]:
    """Which pointers of its parameters an entry function uses, in the order of `layout`, the parameters' struct.

    ValueError where it chooses a parameter in a way that the listing does not say.
    """
    used = set()
    for index, each in enumerate(code.instructions):
        for register, place in _CONSTANT.findall(" ".join(each.operands)):
            for more in chosen(code, index, register) if register else (0,):
                begin = int(place, 16) + more - _FIRST_PARAMETER
                used |= set(range(begin, begin + bits(each) // 8))
    fields = (layout.fields or {}).items()
    return [name for name, (kind, begin, *_) in fields if kind == np.uint64 and used & set(range(begin, begin + 8))]


def chosen(code: Code, index: int, register: str) -> list[int]:
    """The constants that a register may hold at an instruction: `(a ? P.k : P.q)` is a load at a chosen offset."""
    found, guards = [], set()
    for each in reversed(code.instructions[:index]):
        if register not in each.operands[:1]:
            continue
        source = each.operands[-1]
        if not re.fullmatch(r"RZ|0x[0-9a-f]+", source) or not each.name.startswith(("MOV", "IMAD.MOV")):
            break
        found.append(0 if source == "RZ" else int(source, 16))
        guards.add(each.guard)
        if None in guards or any(f"!{guard}" in guards for guard in guards):  # whatever the predicates are
            return found
    raise ValueError(
        f"{code.name} chooses a parameter in a way that its listing does not say: {code.instructions[index]}"
    )
