"""The main loop of the attention kernel in its listing, and the way of a warp through it.

Everything is recognised by structure. Loops over key tiles are the innermost with wgmmas of both kinds: scores, whose A
comes from shared memory, and P V, whose A is in registers. The main loop is the first of them, that over the list; one
over a summary's tiles may follow. How often code behind a branch runs depends on what decides it:

- an exit from the loop, a wait that is not over yet, a call, and what a vote of the warp lets run (sums are rescaled
  where a maximum rose) are rare: they count nothing;
- code that adds the accumulators of P V to the sums in float32 runs once in PROMOTE tiles;
- the loop over key tiles that is not asked about does not run;
- the mask of empty slots, which selects scores one by one, runs where a tile has fewer tokens than scores have columns;
- other code that a branch can skip counts as if it always ran.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from fpsgen.kernels.disassembly import Code, Instruction
from fpsgen.kernels.registers import is_wgmma, read, results_and_sources, wgmma, written

Choice = Literal["fall through", "jump", "promote", "promote by a jump", "leave by a jump", "leave by falling through"]

# What carries a vote's answer, or a wait's, from one predicate to another.
_CARRIERS = {
    "PLOP3", "ISETP", "UISETP", "UPLOP3", "SEL", "USEL", "P2R", "R2P", "MOV", "UMOV", "LOP3", "ULOP3", "PRMT", "R2UR",
}  # fmt: skip
_LONGEST_PERIOD = 16
_LEAST_MASK = 16  # selections
TILE_TOKENS = 120  # of 128 slots, at Wan's default sizes
_STEPS_OF_TILE = 4  # wgmmas for 128 channels of scores, and for 128 keys of P V: each takes 32


class UnknownLoopError(ValueError):
    """The listing is not one that the model can read; the message says where it stops."""


@dataclass(frozen=True)
class Loop:
    """A natural loop: instructions from which its header can be reached without leaving it. By index in `code`."""

    code: Code
    header: int
    body: frozenset[int]

    @cached_property
    def wgmmas(self) -> list[Instruction]:
        return [self.code.instructions[one] for one in sorted(self.body) if is_wgmma(self.code.instructions[one])]

    @property
    def is_main(self) -> bool:
        return {bool(wgmma(each).a) for each in self.wgmmas} == {False, True}


def loops(code: Code) -> list[Loop]:
    """All natural loops, the smallest first; those with one header are one."""
    found: dict[int, set[int]] = {}
    for index, after in enumerate(code.successors):
        for header in after:
            if header <= index:
                found.setdefault(header, {header}).update(_back_to(code, header, index))
    entered = {header: body for header, body in found.items() if header == 0 or 0 not in body}
    return sorted(
        (Loop(code, header, frozenset(body)) for header, body in entered.items()), key=lambda one: len(one.body)
    )


def _back_to(code: Code, header: int, latch: int) -> set[int]:
    body, todo = {header}, [latch]
    while todo:
        one = todo.pop()
        if one not in body:
            body.add(one)
            todo += code.predecessors[one]
    return body


def _over_queries(code: Code) -> tuple[Loop, list[Loop]]:
    """The loop over query tiles, and those over key tiles in it, in the order in which they are come to."""
    found = [loop for loop in loops(code) if loop.is_main]
    inner = [one for one in found if not any(other.body < one.body for other in found)]
    around = next((loop for loop in found if all(one.body < loop.body for one in inner)), None)
    if not around:
        raise UnknownLoopError(f"{code.name} has no loop over query tiles with one over key tiles in it")
    within = around.body - {around.header}
    return around, sorted(inner, key=lambda one: -len(code.reachable(one.header, within=within)))


class Way:
    """The way of a consumer's warp: through the main loop, and through all that a query tile takes.

    promote: tiles from one float32 sum to the next. tokens: of each tile, 120 at Wan's default sizes. of_summary: take
    the loop over a summary's tiles in the main loop's place. tiles: key tiles of an iteration. UnknownLoopError where
    the code is not an attention kernel, or has a branch of which nothing says how often it is taken.
    """

    def __init__(self, code: Code, promote: int, tokens: int = TILE_TOKENS, *, of_summary: bool = False) -> None:
        self.code, self.promote, self.tokens = code, promote, tokens
        self.item, over_keys = _over_queries(code)
        if len(over_keys) <= of_summary:
            raise UnknownLoopError(f"{code.name} has no loop over a summary's tiles")
        self.main = over_keys.pop(int(of_summary))
        self.aside = frozenset[int]().union(*(loop.body for loop in over_keys))
        self.choices = _Choices(self).found
        kinds = [bool(wgmma(each).a) for each in self.iteration(0) if is_wgmma(each)]
        scores, products = kinds.count(False), kinds.count(True)
        if scores != products or scores % _STEPS_OF_TILE or not scores:
            told = f"{code.name}: an iteration of its main loop has {scores} wgmmas of scores and {products} of P V"
            raise UnknownLoopError(f"{told}, and not {_STEPS_OF_TILE} of each for a tile")
        self.tiles = scores // _STEPS_OF_TILE

    @property
    def period(self) -> int:
        """Iterations after which the way is the same again; a sum that is promoted less often than this never is."""
        return self.promote if self.promote <= _LONGEST_PERIOD else 1

    def iteration(self, number: int) -> list[Instruction]:
        """What a warp issues from the main loop's header back to it."""
        return list(self._walk(self.main.header, self.main.header, lambda: True, itertools.count(number).__next__))

    def of_query_tile(self, iterations: int) -> list[Instruction]:
        """What a warp issues for one query tile whose list keeps it in the main loop for so many iterations."""
        entered, header = itertools.count(), self.main.header
        left = iter([True] * (iterations - 1) + [False])
        return list(self._walk(self.item.header, self.item.header, left.__next__, entered.__next__, header))

    def _walk(
        self, start: int, stop: int, stays: Callable[[], bool], numbers: Callable[[], int], counted: int | None = None
    ) -> Iterator[Instruction]:
        """From `start` back to `stop`. numbers: of the iterations, asked for at `counted`, by default at the start."""
        index, number, steps = start, numbers(), 0
        while True:
            yield self.code.instructions[index]
            after = self.code.successors[index]
            index = after[0] if len(after) == 1 else self._next(index, after, number, stays)
            steps += 1
            if index == stop:
                return
            if index == counted:
                number = numbers()
            if steps > 1_000_000:
                raise UnknownLoopError(f"{self.code.name}: the way through its loop does not end")

    def _next(self, index: int, after: tuple[int, ...], number: int, stays: Callable[[], bool]) -> int:
        choice = self.choices[index]
        if choice.startswith("leave"):
            leaves = choice == "leave by a jump"
            return after[leaves != stays()]
        if choice.startswith("promote"):
            promotes = number % self.promote == self.promote - 1
            return after[promotes == (choice == "promote by a jump")]
        return after[choice == "jump"]


def carries(each: Instruction) -> bool:
    """Whether an answer may go from a source of it to a result."""
    return each.operation in _CARRIERS or each.name.startswith("IMAD.MOV")


class _Choices:
    """What a warp does at each branch of a way; the branches on it, in the order in which it comes to them.

    A vote or a wait may decide a branch by way of other predicates, and in the iteration after it: two laps see that.
    """

    def __init__(self, way: Way) -> None:
        self.way, self.code = way, way.code
        self.marks: dict[str, str] = {}
        self.found: dict[int, Choice] = {}
        sums = {one for each in way.main.wgmmas if wgmma(each).a for one in wgmma(each).accumulator}
        self.promotions = {
            index
            for index in way.main.body
            if (each := self.code.instructions[index]).operation == "FADD"
            and read(each) & sums
            and not written(each) <= sums
        }
        self.enough = len(sums) // 2
        self.columns = max(wgmma(each).columns for each in way.main.wgmmas if not wgmma(each).a)
        for _ in range(2):
            self.lap(way.item)

    def lap(self, loop: Loop) -> None:
        """Along the way that nothing holds up, once through both loops."""
        index, seen = loop.header, set()
        while index not in seen:
            seen.add(index)
            after = self.code.successors[index]
            if len(after) == 2:
                self.found[index] = self.choice(index, *after)
                chosen = self.found[index]
                # Into what is promoted, and past a loop that has been gone through once.
                index = after[chosen in ("jump", "promote by a jump", "leave by a jump")]
            elif after:
                self.mark(self.code.instructions[index])
                [index] = after
            else:
                return

    def mark(self, each: Instruction) -> None:
        """Note which predicates and registers hold a vote's answer, or a wait's."""
        results, sources = results_and_sources(each)
        if each.name.startswith("VOTE."):
            mark = "vote"
        elif "PHASECHK" in each.parts:
            mark = "wait"
        else:
            carried = {self.marks[one] for one in sources if one in self.marks}
            mark = max(carried) if carried and carries(each) else ""
        for one in results:
            if mark:
                self.marks[one] = mark
            elif each.guard is None:
                self.marks.pop(one, None)

    def flag(self, each: Instruction, mark: str) -> None:
        """A constant that rare code leaves behind is tested later: it says that the rare code ran."""
        results, sources = results_and_sources(each)
        if carries(each) and not sources:
            self.marks |= dict.fromkeys(results, mark)

    def choice(self, index: int, falls: int, jumps: int) -> Choice:
        each, main, item = self.code.instructions[index], self.way.main, self.way.item
        if each.operation == "CALL":
            return "fall through"
        loop = main if index in main.body else item
        inside = falls in loop.body, jumps in loop.body
        if inside != (True, True):
            if loop is main and (falls if inside[1] else jumps) in item.body:
                return "leave by a jump" if inside[0] else "leave by falling through"
            return "fall through" if inside[0] else "jump"
        arms = self.arm(falls, jumps, loop), self.arm(jumps, falls, loop)
        mark = self.marks.get((each.guard or each.operands[0]).removeprefix("!"))
        calls = [any(self.code.instructions[one].operation == "CALL" for one in arm) for arm in arms]
        adds = [len(arm & self.promotions) >= self.enough for arm in arms]
        aside = [bool(arm & self.way.aside) for arm in arms]
        if sum(aside) == 1:
            return "jump" if aside[0] else "fall through"
        if sum(calls) == 1:
            return "jump" if calls[0] else "fall through"
        if mark and not all(arms):
            for one in arms[0] | arms[1]:
                self.flag(self.code.instructions[one], mark)
            return "jump" if arms[0] else "fall through"
        if any(adds) and loop is main:
            return "promote by a jump" if adds[1] else "promote"
        if not all(arms):
            runs = not self.is_mask(arms[0] | arms[1]) or self.columns > self.way.tokens
            return "fall through" if bool(arms[0]) is runs else "jump"
        if main.header in arms[0] | arms[1]:
            return "fall through" if main.header in arms[0] else "jump"
        raise UnknownLoopError(f"{self.code.name}: nothing says how often either side of this branch runs: {each}")

    def is_mask(self, arm: frozenset[int]) -> bool:
        selects = [self.code.instructions[one].operation in ("FSEL", "SEL") for one in arm]
        return selects.count(True) >= _LEAST_MASK and self.way.main.header not in arm

    def arm(self, start: int, other: int, loop: Loop) -> frozenset[int]:
        """What runs only on one side of a branch, before the sides meet again or the loop begins anew."""
        within = loop.body - {loop.header}
        return self.code.reachable(start, within=within) - self.code.reachable(other, within=within)
