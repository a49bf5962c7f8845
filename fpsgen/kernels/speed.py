"""A model of how fast the Hopper kernels are, from their listings. No number here is a measurement.

One sub-partition of an SM has a quarter of each consumer's warps: for a pair of 128 x 128 tiles, two warps issue one
iteration of the main loop each. `replay` gives the clocks that this takes; what L2 and shared memory let through are
roofs beside it. What the model does not know: bank conflicts of registers, the instruction cache, the clock under load,
what L2 gives, for which there are two values, and a prologue's instructions: it counts the bytes of that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from fpsgen.kernels import sm90_elementwise, sm90_prologue, sm90_select, traffic
from fpsgen.kernels.cache import Kernel
from fpsgen.kernels.disassembly import Code
from fpsgen.kernels.loops import TILE_TOKENS, Loop, UnknownLoopError, Way, loops
from fpsgen.kernels.pipes import Pipes
from fpsgen.kernels.registers import is_wgmma, wgmma
from fpsgen.kernels.replay import Replay, query_tile, replay
from fpsgen.kernels.sm90_attention import HEAD_DIM, SLOTS, AttentionKernel
from fpsgen.kernels.sm90_elementwise import ElementwiseKernel
from fpsgen.kernels.sm90_prologue import PrologueKernel
from fpsgen.kernels.sm90_select import SelectKernel

SMS = 132
CLOCK = 1.65e9  # Hz; what cards run at under such load is between CLOCKS
CLOCKS = (1.55e9, 1.755e9)
L2 = (5.6e12, 7.0e12)  # bytes/s to all SMs: measured on a PCIe card, and hoped for
SHARED = 128  # bytes of shared memory for each clock and SM
DRAM = 4.3e12  # bytes/s: nine tenths of the H200's 4.8
BF16_TFLOPS = 690  # of the fastest dense attention in 16 bits, published for the H100

SEARCHED = 16  # bits, until a threshold lets through just as many: 15.5 on average, of 630 normal scores the best 105

UNCERTAINTY = 0.15
# At 1.755 GHz, full tiles, without the roof of L2. By this model: fp8-fp32 at ea4fd07, compiled like FlashAttention-3's
# FP8 kernel, without a mask and with sums of P V in one level. Published for that kernel: at 32k and at 16k tokens.
CALIBRATION, PUBLISHED = 1037, (892, 1008)


@dataclass(frozen=True)
class Counts:
    """Of a pair of tiles, on one sub-partition: issue slots; clocks of each pipe; stall counts of one of both warps;
    bytes of shared memory that the SM reads and writes."""

    slots: float
    pipes: dict[str, float]
    stalls: float
    shared_bytes: float


@dataclass(frozen=True)
class Roofs:
    """cycles: of a pair of tiles, whatever L2 lets through. query_tile_cycles: what a query tile takes beside its
    pairs. l2_bytes: of a pair, for each SM. shared: the share of query tiles that get their key tiles together with a
    neighbour, so that L2 delivers one for two SMs."""

    cycles: float
    query_tile_cycles: float
    l2_bytes: int

    def pair_seconds(self, clock: float, l2: float, shared: float) -> float:
        """Of a pair of tiles on an SM, all SMs working."""
        return max(self.cycles / clock, self.l2_bytes * (1 - shared / 2) * SMS / l2)

    def tflops(
        self, clock: float = CLOCK, l2: float = L2[0], tokens: int = TILE_TOKENS, *, shared: float = 0.0
    ) -> float:
        """TFLOP/s of pairs of tiles alone; only tokens count, of the 128 slots on both sides."""
        return 4 * tokens**2 * HEAD_DIM * SMS / self.pair_seconds(clock, l2, shared) / 1e12


@dataclass(frozen=True)
class Speed(Roofs):
    """The model of one attention kernel. slow_cycles: with pessimistic latencies. binds: what takes the cycles.
    summary_cycles: of a query tile and one tile of a summary."""

    slow_cycles: float
    binds: str
    counts: Counts
    replay: Replay
    summary_cycles: float = 0.0


@dataclass(frozen=True)
class Workload:
    """One layer."""

    name: str
    heads: int
    tokens: int
    tiles: int
    ffn_dim: int


WAN_14B_720P = Workload("14b 720p", heads=40, tokens=75_600, tiles=630, ffn_dim=13_824)


def speed(code: Code, kernel: AttentionKernel, pipes: Pipes) -> Speed:
    """UnknownLoopError where the listing is not one that the model can read."""
    summary = Way(code, kernel.PROMOTE, of_summary=True)
    found = speed_of(Way(code, kernel.PROMOTE), kernel.key_tile_bytes, pipes)
    return replace(found, summary_cycles=replay(summary, pipes).cycles)


def speed_of(way: Way, l2_bytes: int, pipes: Pipes) -> Speed:
    """l2_bytes: of a key tile."""
    counted, played = counts(way, l2_bytes, pipes), replay(way, pipes)
    cycles = max(played.cycles, counted.shared_bytes / SHARED)
    slow = replay(way, pipes.pessimistic()).cycles
    return Speed(cycles, query_tile(way, pipes), l2_bytes, slow, binding(counted, played, cycles), counted, played)


def counts(way: Way, l2_bytes: int, pipes: Pipes) -> Counts:
    """By iterations of one period of promotions."""
    taken: dict[str, float] = defaultdict(float)
    slots = stalls = 0
    shared = 0.0
    for each in (each for number in range(way.period) for each in way.iteration(number)):
        cost = pipes.cost(each)
        taken[cost.pipe] += cost.interval
        slots, stalls = slots + 1, stalls + each.stall
        shared += wgmma(each).shared_bytes if is_wgmma(each) else 0
    pairs = way.period * way.tiles
    by_pipe = {pipe: 2 * clocks / pairs for pipe, clocks in sorted(taken.items(), key=lambda one: -one[1])}
    return Counts(2 * slots / pairs, by_pipe, stalls / pairs, 2 * shared / pairs + l2_bytes)


def binding(counted: Counts, played: Replay, cycles: float) -> str:
    """What is busy for nine tenths of the cycles; otherwise the chain of one warp's own work."""
    busy = {**counted.pipes, "issue slots": counted.slots, "shared memory": counted.shared_bytes / SHARED}
    name = max(busy, key=lambda one: busy[one])
    return name if busy[name] >= 0.9 * cycles else f"latency of one warp, then {name}"


def bytes_moved(kernel: PrologueKernel | ElementwiseKernel, work: Workload) -> dict[str, int]:
    """What each entry function reads from the GPU's memory and writes to it."""
    if isinstance(kernel, ElementwiseKernel):
        moved = sm90_elementwise.traffic(kernel, work.tokens, work.heads * HEAD_DIM, work.ffn_dim)
    else:
        moved = sm90_prologue.traffic(kernel, work.tokens, work.heads, work.tiles)
    return {entry: own.read + own.written for entry, own in moved.items()}


@dataclass(frozen=True)
class Selection:
    """What choosing tiles takes for one layer, every head choosing `density` of them and having a summary.

    flops: of the scores. dram_bytes, l2_bytes: read and written. slots, pipes, shared_clocks: clocks of CLOCK that the
    SMs need at least, to issue its instructions, by pipe, and for what its warps read of shared memory.
    """

    flops: int
    dram_bytes: int
    l2_bytes: int
    slots: float
    pipes: dict[str, float]
    shared_clocks: float

    @property
    def seconds(self) -> float:
        """Of the busiest part, as if all others were hidden behind it."""
        clocks = max(self.slots, self.shared_clocks, *self.pipes.values())
        return max(clocks / CLOCK, self.dram_bytes / DRAM, self.l2_bytes / L2[0])


def selection(
    code: Code, kernel: SelectKernel, pipes: Pipes, work: Workload = WAN_14B_720P, density: float = 1 / 6
) -> Selection:
    """UnknownLoopError where the listing has not the two pairs of loops that `fps_select` has.

    The threshold of a list is searched through SEARCHED of 32 bits; all else in the outer loops counts as if it ran
    once in each turn. A block has a warp on each sub-partition.
    """
    (dot, piece), (bit, query) = nested(code, "FFMA", "LDS"), nested(code, "REDUX")
    tiles, each = work.tiles, kernel.QUERIES * 32 // kernel.THREADS
    summaries, steps = ceil(tiles / SLOTS), 2 * ceil(tiles / kernel.KEYS)
    quads = HEAD_DIM // 8  # of the half of the channels that is there at once; one is so many products of a lane:
    at_once = sum(code.instructions[one].operation == "FFMA" for one in dot.body) / (4 * each * kernel.KEYS // 32)
    of_loops = (
        (query, each),
        (piece, steps),
        (dot, steps * quads / at_once),
        (bit, SEARCHED * each),
    )  # the outer ones first
    times = {one: float(many) for loop, many in of_loops for one in loop.body}
    warps = work.heads * ceil(tiles / kernel.QUERIES) / SMS  # of a sub-partition
    taken: dict[str, float] = defaultdict(float)
    for one, many in times.items():
        cost = pipes.cost(code.instructions[one])
        taken[cost.pipe] += warps * many * cost.interval
    wavefronts = kernel.KEYS // 8 + each  # a quad of each key tile, 16 bytes; one of each query tile, for all lanes
    moved = sm90_select.traffic(work.heads, tiles, ceil(density * tiles), summaries)
    own = work.heads * ceil(tiles / kernel.QUERIES) * (tiles + kernel.QUERIES) * 4 * HEAD_DIM
    return Selection(
        2 * work.heads * tiles**2 * HEAD_DIM,
        sum(moved),
        own + moved.written,
        warps * sum(times.values()),
        dict(sorted(taken.items(), key=lambda one: -one[1])),
        4 * warps * steps * quads * wavefronts,
    )


def nested(code: Code, *operations: str) -> tuple[Loop, Loop]:
    """The smallest loop that has all of some instructions, and the smallest one around it."""
    found = loops(code)
    for inner in found:
        has_all = {code.instructions[one].operation for one in inner.body}.issuperset(operations)
        if has_all and (around := [loop for loop in found if inner.body < loop.body]):
            return inner, around[0]
    raise UnknownLoopError(f"{code.name} has no loop with {' and '.join(operations)} in another one")


@dataclass(frozen=True)
class LayerTime:
    """One layer's attention by the model, in seconds. ratio: to dense attention in BF16 at BF16_TFLOPS."""

    kernel: float
    prologue: float
    ratio: float


def attention(
    found: Roofs,
    prologue: int,
    density: float,
    work: Workload = WAN_14B_720P,
    *,
    clock: float = CLOCK,
    l2: float = L2[0],
    dram: float = DRAM,
    shared: float = 0.0,
) -> LayerTime:
    """prologue: bytes of its DRAM, moved at `dram` bytes/s. density: the share of pairs of tiles that are computed.
    shared: as `Roofs` has it."""
    query_tiles = work.heads * work.tiles
    pairs = query_tiles * work.tiles * density
    kernel = (pairs * found.pair_seconds(clock, l2, shared) + query_tiles * found.query_tile_cycles / clock) / SMS
    before = prologue / dram
    dense = 4 * work.tokens**2 * work.heads * HEAD_DIM / (BF16_TFLOPS * 1e12)
    return LayerTime(kernel, before, dense / (kernel + before))


def described(kernel: Kernel, functions: Mapping[str, Code], pipes: Pipes) -> dict[str, Any]:
    """All of this of a kernel, as values: of attention `speed`, of a prologue, and of what is between products, what it
    moves at 14b 720p.

    ValueError where the listing is not one that the model can read.
    """
    if isinstance(kernel, PrologueKernel | ElementwiseKernel):
        moved = bytes_moved(kernel, WAN_14B_720P)
        widths = {entry: traffic.widths(code) for entry, code in functions.items()}
        parts = {entry: {"dram_bytes": moved[entry], "accesses_by_bits": widths[entry]} for entry in functions}
        return {"workload": WAN_14B_720P.name, "functions": parts, "dram_bytes": sum(moved.values())}
    if isinstance(kernel, SelectKernel):
        chosen = selection(functions["fps_select"], kernel, pipes)
        accesses = traffic.widths(functions["fps_select"])
        return {
            "workload": WAN_14B_720P.name,
            "functions": {"fps_select": {"dram_bytes": chosen.dram_bytes, "accesses_by_bits": accesses}},
            "dram_bytes": chosen.dram_bytes,
            "l2_bytes": chosen.l2_bytes,
            "flops": chosen.flops,
            "clocks": rounded(
                {"issue slots": chosen.slots, "shared memory reads": chosen.shared_clocks, **chosen.pipes}
            ),
            "milliseconds": round(1e3 * chosen.seconds, 3),
        }
    if not isinstance(kernel, AttentionKernel):
        raise ValueError(f"there is no model of {kernel.SOURCE}")
    found = speed(functions["fps_attention"], kernel, pipes)
    return {
        "slots": found.counts.slots,
        "pipes": rounded(found.counts.pipes),
        "stalls": found.counts.stalls,
        "shared_bytes": found.counts.shared_bytes,
        "l2_bytes": found.l2_bytes,
        "cluster": kernel.CLUSTER,
        "clock_ghz": CLOCK / 1e9,
        "roofs": rounded(roofs(found)),
        "cycles": round(found.cycles, 1),
        "slow_cycles": round(found.slow_cycles, 1),
        "query_tile_cycles": round(found.query_tile_cycles, 1),
        "summary_cycles": round(found.summary_cycles, 1),
        "tensor_cores_busy": round(found.replay.tensor_cores, 3),
        "waits": rounded(found.replay.waits),
        "binds": found.binds,
        "tflops": {f"{clock / 1e9:g}": by_l2(found, clock) for clock in (CLOCKS[0], CLOCK, CLOCKS[1])},
    }


def roofs(found: Speed) -> dict[str, float]:
    """Clocks of CLOCK that a pair needs at least, for its bytes of shared memory and of L2."""
    from_l2 = {f"L2 at {l2 / 1e12:g} TB/s": found.l2_bytes * SMS / l2 * CLOCK for l2 in L2}
    return {"shared memory": found.counts.shared_bytes / SHARED, **from_l2}


def by_l2(found: Speed, clock: float) -> dict[str, int]:
    """TFLOP/s by TB/s from L2."""
    return {f"{l2 / 1e12:g}": round(found.tflops(clock, l2)) for l2 in L2}


def rounded(clocks: Mapping[str, float]) -> dict[str, float]:
    return {name: round(number, 1) for name, number in clocks.items()}


def caveat() -> str:
    """What stands beside every predicted figure."""
    low, high = PUBLISHED
    return (
        f"a model, not a measurement, ±{100 * UNCERTAINTY:.0f} %: a kernel like FlashAttention-3's FP8 one has "
        f"{CALIBRATION} TFLOP/s by it, and {low} to {high} are published for that one"
    )
