"""What the compiler must not have done to wgmmas, and registers that a warp does not have, by reading the listing.

wgmmas run on while their warp goes on. Until it has waited for a group, nothing else may read or write the group's
accumulators, or write the registers of its A. In the source a wait names no registers: that reads of a result stay
behind it is the compiler's work, and wrong results would be the only sign that it was not done.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpsgen.kernels.disassembly import Code, Instruction
from fpsgen.kernels.registers import Wgmma, is_wgmma, read, wgmma, written

Group = frozenset[Wgmma]
_MOST = 8  # groups in flight that are told apart


@dataclass(frozen=True)
class _State:
    """groups: committed and not waited for, oldest first; open: wgmmas after the last of them."""

    groups: tuple[Group, ...] = ()
    open: Group = frozenset()


def in_flight(code: Code) -> list[str]:
    """A sentence for each instruction, on any path, that touches registers of a wgmma in flight."""
    found: dict[int, str] = {}
    seen: set[tuple[int, _State]] = set()
    todo = [(0, _State())] if code.instructions else []
    while todo:
        index, state = todo.pop()
        if (index, state) in seen:
            continue
        seen.add((index, state))
        each = code.instructions[index]
        if fault := _fault(each, state):
            found.setdefault(index, f"{each}: {fault}")
        after = _after(each, state)
        todo += [(one, after) for one in code.successors[index]]
    return [found[index] for index in sorted(found)]


def _fault(each: Instruction, state: _State) -> str | None:
    own = wgmma(each) if is_wgmma(each) else None
    for other in frozenset().union(*state.groups, state.open):
        accumulator = set(other.accumulator)
        if own is None:
            if accumulator & (read(each) | written(each)):
                return "it touches the accumulator of a wgmma in flight"
            if set(other.a) & written(each):
                return "it writes A of a wgmma in flight"
        elif accumulator & set(own.a):
            return "its A is the accumulator of a wgmma in flight"
        elif set(own.accumulator) & set(other.a):
            return "it writes A of a wgmma in flight"
        elif accumulator & set(own.accumulator) and own.accumulator != other.accumulator:
            return "its accumulator is part of another's in flight"
    return None


def _after(each: Instruction, state: _State) -> _State:
    if is_wgmma(each):
        own = wgmma(each)
        opened = state.open | {own}
        if not own.commits:
            return _State(state.groups, opened)
        oldest, *others = (*state.groups, opened)
        if len(others) >= _MOST:  # nothing waits: as if the two oldest ended together, which hides no fault
            oldest, others = oldest | others[0], others[1:]
        return _State((oldest, *others))
    if each.name == "WARPGROUP.DEPBAR.LE":
        left = int(each.operands[1], 16)
        return _State(state.groups[max(0, len(state.groups) - left) :], state.open)
    return state


@dataclass(frozen=True)
class Role:
    """Part of a kernel's warps after setmaxnreg. registers: that it uses; given: that it then has."""

    name: str
    registers: int
    given: int


def roles(code: Code) -> list[Role]:
    """Consumers, which grow, and the producer, which shrinks; none where the kernel leaves registers as they are."""
    found = []
    for name, action in (("consumer", "TRY_ALLOC"), ("producer", "DEALLOC")):
        starts = [
            (index, int(each.operands[-1], 16))
            for index, each in enumerate(code.instructions)
            if each.operation == "USETMAXREG" and action in each.parts
        ]
        if starts:
            own = frozenset[int]().union(*(code.reachable(index) for index, _ in starts))
            used = {one for index in own for one in read(code.instructions[index]) | written(code.instructions[index])}
            found.append(Role(name, max(used, default=-1) + 1, min(given for _, given in starts)))
    return found


def too_many_registers(code: Code) -> list[str]:
    """A sentence for each role that uses a register which setmaxnreg does not leave it."""
    return [
        f"the {role.name} uses {role.registers} registers, and setmaxnreg leaves it {role.given}"
        for role in roles(code)
        if role.registers > role.given
    ]


def hazards(code: Code) -> list[str]:
    return in_flight(code) + too_many_registers(code)
