"""What nvdisasm lists of a cubin, as values: instructions with their control codes, and where each may go next.

Bits 105 to 125 of an instruction's 128 are for the unit that issues it, which checks nothing by itself: for how many
clocks the warp's next instruction waits, which of six scoreboards this one sets, and which it waits for.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from fpsgen.errors import UsageError, reason

_WHEEL = "nvidia-cuda-nvdisasm"
_FIRST = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(\S+)\s+)?(\S+)\s*(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
_SECOND = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"(\S+):\s*")
_NO_SCOREBOARD = 7


class NoDisassemblerError(UsageError):
    """nvdisasm is not installed."""


@dataclass(frozen=True)
class Instruction:
    """name: with suffixes, as MUFU.EX2. guard: the predicate without which it does nothing, as !P0.

    stall: clocks until the warp's next instruction. writes_barrier, reads_barrier: the scoreboard that it holds until
    its result is there, or until its operands are read. waits: scoreboards that must be free before it.
    """

    address: int
    guard: str | None
    name: str
    operands: tuple[str, ...]
    stall: int
    writes_barrier: int | None
    reads_barrier: int | None
    waits: tuple[int, ...]

    @cached_property
    def operation(self) -> str:
        return self.name.split(".")[0]

    @cached_property
    def parts(self) -> frozenset[str]:
        return frozenset(self.name.split("."))

    @cached_property
    def label(self) -> str | None:
        """Where a branch or a call goes."""
        found = re.search(r"`\((\S+)\)", " ".join(self.operands))
        return found[1] if found else None

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{self.address:04x} {guard}{self.name} {', '.join(self.operands)}".rstrip()


class Code:
    """One entry function: its instructions in order, and from each of them, by index, to the next."""

    def __init__(self, name: str, instructions: list[Instruction], labels: dict[str, int]) -> None:
        self.name, self.instructions, self.labels = name, instructions, labels

    @cached_property
    def successors(self) -> list[tuple[int, ...]]:
        """By index: the next instruction first, then the target of a branch. A call goes both ways.

        ValueError for a jump whose target the listing does not say.
        """
        return [self._after(index, each) for index, each in enumerate(self.instructions)]

    def _after(self, index: int, each: Instruction) -> tuple[int, ...]:
        following = (index + 1,) if index + 1 < len(self.instructions) else ()
        if each.operation in ("EXIT", "RET"):
            return following if each.guard else ()
        if each.operation in ("BRX", "BRXU", "JMP", "JMX", "JMXU"):
            raise ValueError(f"{self.name} jumps to where its listing does not say: {each}")
        if each.operation not in ("BRA", "CALL"):
            return following
        target = (self.labels[each.label],) if each.label in self.labels else ()
        always = each.name == "BRA" and each.guard is None and len(each.operands) == 1
        return target if always else following + target

    @cached_property
    def predecessors(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in self.instructions]
        for index, after in enumerate(self.successors):
            for one in after:
                found[one].append(index)
        return found

    def reachable(self, start: int, without: int | None = None, within: frozenset[int] | None = None) -> frozenset[int]:
        """What can run after `start`, itself included, on ways that avoid `without` and stay `within`."""
        found, todo = set(), [start]
        while todo:
            one = todo.pop()
            if one not in found and one != without and (within is None or one in within):
                found.add(one)
                todo += self.successors[one]
        return frozenset(found)


def tool() -> Path:
    """Where nvdisasm is, in its wheel or on the PATH; NoDisassemblerError without."""
    try:
        found = next((str(file.locate()) for file in files(_WHEEL) or [] if file.stem == "nvdisasm"), None)
    except PackageNotFoundError:
        found = None
    if place := found or shutil.which("nvdisasm"):
        return Path(place)
    raise NoDisassemblerError(
        "nvdisasm, which lists a kernel's instructions, is not installed", f"pip install {_WHEEL}"
    )


def disassembled(cubin: Path) -> dict[str, Code]:
    """By entry function; NoDisassemblerError without nvdisasm, ValueError where that fails."""
    program = tool()
    try:
        made = subprocess.run([program, "-c", "-hex", cubin], capture_output=True, text=True, errors="replace")
    except OSError as fault:
        raise ValueError(f"{program} cannot be run: {reason(fault)}") from None
    if made.returncode:
        raise ValueError(f"nvdisasm cannot read {cubin}: {made.stderr.strip()}")
    return parsed(made.stdout)


def parsed(listing: str) -> dict[str, Code]:
    """What `nvdisasm -c -hex` prints, by entry function."""
    found: dict[str, Code] = {}
    code: Code | None = None
    lines = iter(listing.splitlines())
    for line in lines:
        if label := _LABEL.fullmatch(line):
            if label[1].startswith(".text."):
                name = label[1].removeprefix(".text.")
                code = found[name] = Code(name, [], {})
            elif code:
                code.labels[label[1]] = len(code.instructions)
        elif (first := _FIRST.search(line)) and code:
            second = _SECOND.match(next(lines, ""))
            if not second:
                raise ValueError(f"this is no listing by nvdisasm -c -hex: {line.strip()}")
            code.instructions.append(_instruction(first, int(second[1], 16) >> 41))
    return found


def _instruction(text: re.Match[str], control: int) -> Instruction:
    """control: stall 4 bits, yield 1, the scoreboards written and read 3 each, those waited for 6."""
    operands = tuple(operand.strip() for operand in text[4].split(",")) if text[4] else ()
    written, read = control >> 5 & 7, control >> 8 & 7
    return Instruction(
        int(text[1], 16),
        text[2],
        text[3],
        operands,
        max(1, control & 15),
        None if written == _NO_SCOREBOARD else written,
        None if read == _NO_SCOREBOARD else read,
        tuple(one for one in range(6) if control >> 11 + one & 1),
    )
