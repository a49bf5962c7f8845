"""A model of how fast the Hopper kernels are, from their listings. No number here is a measurement.

One sub-partition of an SM has a quarter of each consumer's warps: for a pair of 128 x 128 tiles, two warps issue one
iteration of the main loop each. `replay` gives the clocks that this takes; what L2 and shared memory let through are
roofs beside it. What the model does not know: bank conflicts of registers, the instruction cache, the clock under load,
and what L2 gives, for which there are two values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fpsgen.errors import FpsgenError
from fpsgen.kernels import sm90_prologue, traffic
from fpsgen.kernels.disassembly import Code
from fpsgen.kernels.loops import Way
from fpsgen.kernels.pipes import TENSOR_CORES, Pipes
from fpsgen.kernels.registers import is_wgmma, wgmma
from fpsgen.kernels.replay import Replay, query_tile, replay
from fpsgen.kernels.sm90_attention import HEAD_DIM, AttentionKernel
from fpsgen.kernels.sm90_prologue import PrologueKernel

SMS = 132
CLOCK = 1.65e9  # Hz; what cards run at under such load is between CLOCKS
CLOCKS = (1.55e9, 1.755e9)
L2 = (5.6e12, 7.0e12)  # bytes/s to all SMs: measured on a PCIe card, and hoped for
SHARED = 128  # bytes of shared memory for each clock and SM
DRAM = 4.3e12  # bytes/s: nine tenths of the H200's 4.8
BF16_TFLOPS = 690  # of the fastest dense attention in 16 bits, published for the H100
TILE_TOKENS = 120  # of 128 slots, at Wan's default sizes

UNCERTAINTY = 0.15
# fp8-fp32 on full tiles, compiled like FlashAttention-3's FP8 kernel (sums of P V in one level), at 1.755 GHz without the
# roof of L2: TFLOP/s by this model, and as published for that kernel at 32k and 16k tokens.
CALIBRATION, PUBLISHED = 1040, (892, 1008)


@dataclass(frozen=True)
class Counts:
    """Of a pair of tiles, on one sub-partition: issue slots; clocks of each pipe; stall counts of one of both warps;
    bytes of shared memory that the SM reads and writes."""

    slots: float
    pipes: dict[str, float]
    stalls: float
    shared_bytes: float


@dataclass(frozen=True)
class Speed:
    """The model of one attention kernel. slow_cycles: with pessimistic latencies. query_tile_cycles: what a query tile
    takes beside its pairs. l2_bytes: of a pair, for each SM. binds: what the cycles are made of, in words."""

    counts: Counts
    replay: Replay
    slow_cycles: float
    query_tile_cycles: float
    l2_bytes: int
    binds: str

    @property
    def cycles(self) -> float:
        """Of a pair of tiles, without what L2 lets through."""
        return max(self.replay.cycles, self.counts.shared_bytes / SHARED)

    def pair_seconds(self, clock: float, l2: float) -> float:
        """Of a pair of tiles on an SM, all SMs working."""
        return max(self.cycles / clock, self.l2_bytes * SMS / l2)

    def tflops(self, clock: float = CLOCK, l2: float = L2[0], tokens: int = TILE_TOKENS) -> float:
        """TFLOP/s of pairs of tiles alone; only tokens count, of the 128 slots on both sides."""
        return 4 * tokens**2 * HEAD_DIM * SMS / self.pair_seconds(clock, l2) / 1e12


@dataclass(frozen=True)
class Workload:
    """The self-attention of one layer."""

    name: str
    heads: int
    tokens: int
    tiles: int


WAN_14B_720P = Workload("14b 720p", heads=40, tokens=75_600, tiles=630)


def speed(code: Code, kernel: AttentionKernel, pipes: Pipes) -> Speed:
    """UnknownLoopError where the listing is not one that the model can read."""
    way = Way(code, kernel.PROMOTE)
    return speed_of(way, kernel.key_tile_bytes, pipes)


def speed_of(way: Way, l2_bytes: int, pipes: Pipes) -> Speed:
    """l2_bytes: of a key tile."""
    counted, played = counts(way, l2_bytes, pipes), replay(way, pipes)
    slow = replay(way, pipes.pessimistic()).cycles
    found = Speed(counted, played, slow, query_tile(way, pipes), l2_bytes, "")
    return Speed(counted, played, slow, found.query_tile_cycles, l2_bytes, binding(found))


def counts(way: Way, l2_bytes: int, pipes: Pipes) -> Counts:
    """By iterations of one period of promotions."""
    taken = Counter[str]()
    slots = stalls = shared = 0.0
    for each in (each for number in range(way.promote) for each in way.iteration(number)):
        cost = pipes.cost(each)
        taken[cost.pipe] += cost.interval
        slots, stalls = slots + 1, stalls + each.stall
        shared += wgmma(each).shared_bytes if is_wgmma(each) else 0
    pairs = way.promote * way.tiles
    by_pipe = {pipe: 2 * clocks / pairs for pipe, clocks in taken.most_common()}
    return Counts(2 * slots / pairs, by_pipe, stalls / pairs, 2 * shared / pairs + l2_bytes)


def binding(found: Speed) -> str:
    """What is busy for nine tenths of the cycles; otherwise the chain of one warp's own work."""
    busy = {**found.counts.pipes, "issue slots": found.counts.slots, "shared memory": found.counts.shared_bytes / SHARED}
    busy[TENSOR_CORES] = found.replay.tensor_cores * found.replay.cycles
    name = max(busy, key=lambda one: busy[one])
    if busy[name] >= 0.9 * found.cycles:
        return name
    return f"stalls and latencies of one warp (then {name})"


def prologue_bytes(functions: Mapping[str, Code], kernel: PrologueKernel, work: Workload) -> dict[str, int]:
    """What each entry function moves through DRAM: all that it reads or writes, once."""
    sizes = kernel.tensor_bytes(1, work.heads, work.tiles, work.tokens)
    found = {}
    for name, code in functions.items():
        touched = traffic.tensors(code, sm90_prologue.PARAMETERS)
        if unknown := [one for one in touched if one not in sizes]:
            raise FpsgenError(f"{name} uses {', '.join(unknown)}, of which PrologueKernel.tensor_bytes knows no size")
        found[name] = sum(sizes[one] for one in touched)
    return found


@dataclass(frozen=True)
class Attention:
    """One layer's attention by the model, in seconds. ratio: to dense attention in BF16 at BF16_TFLOPS."""

    kernel: float
    prologue: float
    ratio: float


def attention(
    found: Speed, prologue: int, density: float, work: Workload = WAN_14B_720P, *, clock: float = CLOCK, l2: float = L2[0]
) -> Attention:
    """prologue: bytes of its DRAM. density: the share of pairs of tiles that are computed."""
    query_tiles = work.heads * work.tiles
    pairs = query_tiles * work.tiles * density
    kernel = (pairs * found.pair_seconds(clock, l2) + query_tiles * found.query_tile_cycles / clock) / SMS
    before = prologue / DRAM
    dense = 4 * work.tokens**2 * work.heads * HEAD_DIM / (BF16_TFLOPS * 1e12)
    return Attention(kernel, before, dense / (kernel + before))


def caveat() -> str:
    """What stands beside every predicted figure."""
    low, high = PUBLISHED
    return (
        f"a model, not a measurement, ±{UNCERTAINTY:.0%}: fp8-fp32 compiled like FlashAttention-3's FP8 kernel gives "
        f"{CALIBRATION} TFLOP/s by it, and {low} to {high} are published for that kernel"
    )
