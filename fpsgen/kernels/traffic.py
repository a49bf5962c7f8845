"""How a kernel's entry functions get at global memory, by their listing."""

from __future__ import annotations

from collections import Counter

from fpsgen.kernels.disassembly import Code, Instruction

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
