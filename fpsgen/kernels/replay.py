"""Two warps of one sub-partition of an SM, one of each consumer, replayed by their control codes.

In order, one instruction for each clock. A warp waits for its own stall counts, for scoreboards, for pipes, for its
turn (a named barrier that the other consumer passes on), for a place in the tensor cores' queue, and for groups of
wgmmas; wgmmas run one after another, in the order of their issue. Tiles of k and v are always there: L2 is another
roof (`speed`).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from fpsgen.kernels.disassembly import Instruction
from fpsgen.kernels.loops import UnknownLoopError, Way
from fpsgen.kernels.pipes import TENSOR_CORES, Cost, Pipes
from fpsgen.kernels.registers import is_wgmma, wgmma

_STALLS = "its own stalls"
_PASSES = 48  # iterations of the main loop at least, of which the later half counts


@dataclass(frozen=True)
class Replay:
    """cycles: for a pair of 128 x 128 tiles. tensor_cores: the share of them in which they work. waits: of a warp, by
    what it waits for, in clocks of the same pair."""

    cycles: float
    tensor_cores: float
    waits: dict[str, float]


def replay(way: Way, pipes: Pipes) -> Replay:
    """The main loop in its steady state."""
    passes = -(-_PASSES // (2 * way.period)) * 2 * way.period
    machine = _Machine(pipes)
    machine.run([[way.iteration(number) for number in range(passes)] for _ in range(2)])
    half = passes // 2
    cycles = sum(warp.ends[-1] - warp.ends[half - 1] for warp in machine.warps) / 2 / half / way.tiles
    busy = machine.busy / (passes * way.tiles) / cycles
    waits: dict[str, float] = defaultdict(float)
    for warp in machine.warps:
        for name, clocks in warp.waits.items():
            waits[name] += clocks / 2 / passes / way.tiles
    return Replay(cycles, busy, dict(sorted(waits.items(), key=lambda one: -one[1])))


def query_tile(way: Way, pipes: Pipes, iterations: int = 12, tiles: int = 6) -> float:
    """Cycles that a query tile takes beside its pairs: the first scores, the last P V, its list, its store."""
    machine = _Machine(pipes)
    machine.run([[way.of_query_tile(iterations)] * tiles for _ in range(2)])
    half = tiles // 2
    whole = sum(warp.ends[-1] - warp.ends[half - 1] for warp in machine.warps) / 2 / (tiles - half)
    return whole - (iterations * way.tiles + 1) * replay(way, pipes).cycles


class _Warp:
    def __init__(self, turns: Sequence[float]) -> None:
        self.at = self.ready = 0.0
        self.program: list[Instruction] = []
        self.stops: deque[int] = deque()
        self.scoreboards = [0.0] * 6
        self.open_end = 0.0  # of the wgmmas issued
        self.groups: deque[float] = deque()
        self.turns = deque(turns)
        self.next = 0
        self.ends: list[float] = []
        self.waits: dict[str, float] = defaultdict(float)


class _Machine:
    def __init__(self, pipes: Pipes) -> None:
        self.pipes, self.cost = pipes, cache(pipes.cost)
        self.free: dict[str, float] = {}
        self.tensor_free = self.busy = 0.0
        self.starts: deque[float] = deque()  # of wgmmas, in order
        self.warps = (_Warp([-math.inf]), _Warp([]))  # the first turn is the first consumer's

    def run(self, programs: Sequence[Sequence[Sequence[Instruction]]]) -> None:
        """Each warp's pieces one after another; `ends` then says when it issued the last of each."""
        for warp, pieces in zip(self.warps, programs, strict=True):
            warp.program = [each for piece in pieces for each in piece]
            count = 0
            for piece in pieces:
                count += len(piece)
                warp.stops.append(count)
        now, last = 0.0, 0
        while True:
            ways = [(number, self.when(warp, now)) for number, warp in enumerate(self.warps) if warp.stops]
            if not ways:
                return
            # Of two that can, the one that issued last goes on.
            last, held = min(ways, key=lambda one: (one[1][-1][0], one[0] != last))
            when = held[-1][0]
            if when == math.inf:
                raise UnknownLoopError("no consumer would ever get its turn")
            for (begin, _), (end, why) in itertools.pairwise(held):
                self.warps[last].waits[why] += end - begin
            self.issue(self.warps[last], when)
            now = when + 1

    def when(self, warp: _Warp, now: float) -> list[tuple[float, str]]:
        """What holds up its next instruction, in turn, and until when; the last is the clock at which it can issue."""
        each, cost = warp.program[warp.next], self.cost(warp.program[warp.next])
        found = [(warp.ready, _STALLS)]

        def until(clock: float, why: str) -> None:
            if clock > found[-1][0]:
                found.append((clock, why))

        for one in each.waits:
            until(warp.scoreboards[one], "results")
        if each.name == "WARPGROUP.DEPBAR.LE" and (done := len(warp.groups) - int(each.operands[1], 16)) > 0:
            until(warp.groups[done - 1], TENSOR_CORES)
        elif each.name.startswith("BAR.SYNC"):
            until(warp.turns[0] + self.pipes.turn if warp.turns else math.inf, "its turn")
        if is_wgmma(each):
            begun = [start for start in self.starts if start > found[-1][0]]
            if len(begun) >= self.pipes.queue:
                until(begun[-self.pipes.queue], "the queue of wgmmas")
        else:
            until(self.free.get(cost.pipe, 0), f"the pipe: {cost.pipe}")
        until(now, "the other warp's issue")
        return found

    def issue(self, warp: _Warp, when: float) -> None:
        each = warp.program[warp.next]
        cost = self.cost(each)
        if is_wgmma(each):
            self.multiply(warp, each, cost, when)
        else:
            self.free[cost.pipe] = when + cost.interval
        if each.name == "WARPGROUP.DEPBAR.LE":
            while len(warp.groups) > int(each.operands[1], 16):
                warp.groups.popleft()
        elif each.name.startswith("BAR.SYNC"):
            warp.turns.popleft()
        elif each.name.startswith("BAR.ARV"):
            other = self.warps[warp is self.warps[0]]
            other.turns.append(when)
        for board, clocks in (
            (each.writes_barrier, cost.latency + cost.interval),
            (each.reads_barrier, self.pipes.operands),
        ):
            if board is not None:
                warp.scoreboards[board] = max(warp.scoreboards[board], when + clocks)
        warp.ready = when + each.stall
        warp.waits[_STALLS] += each.stall
        warp.next += 1
        if warp.next == warp.stops[0]:
            warp.stops.popleft()
            warp.ends.append(when)

    def multiply(self, warp: _Warp, each: Instruction, cost: Cost, when: float) -> None:
        start = max(when, self.tensor_free)
        self.tensor_free = start + cost.interval
        self.busy += cost.interval
        self.starts.append(start)
        while self.starts[0] <= when and len(self.starts) > 1:
            self.starts.popleft()
        warp.open_end = self.tensor_free + cost.latency
        if wgmma(each).commits:
            warp.groups.append(warp.open_end)
