"""What `fpsgen bench attention` records, as values; docs/bench.md describes each field as its JSON has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any, ClassVar, Literal

from fpsgen.attention.plan import KeyTiles, Rest
from fpsgen.attention.tiles import Shape3
from fpsgen.bench import roofline
from fpsgen.bench.record import BenchRecord, MeasuredCard, State

Kind = Literal["sdpa", "package", "prepare", "flex", "reference", "prologue", "choice", "kernel", "together"]
DENSE = ("sdpa", "package")
LEAST_ROUNDS = 3  # of samples


@dataclass(frozen=True, kw_only=True)
class Line:
    """One contender: what it runs, what its check found, how long it took, and what follows from that."""

    kind: Kind
    name: str
    bits: int
    stages: Sequence[Sequence[float]]  # each a `roofline.Amounts`
    window: Shape3 | None = None
    top: float | None = None
    rest: Rest | None = None
    variant: str | None = None
    wanted: str | None = None
    density: float | None = None
    why_not: str | None = None
    fault: str | None = None
    error_to_exact: float | None = None
    error_to_emulator: dict[str, float] | None = None
    samples_ms: Sequence[float] | None = None
    median_ms: float | None = None
    min_ms: float | None = None
    roofline_ms: float | None = None
    bound: str | None = None
    share: float | None = None
    intensity: float | None = None
    tflops: float | None = None
    datasheet_share: float | None = None
    speedup: dict[str, dict[str, float | None]] | None = None

    @property
    def trouble(self) -> str | None:
        """Why it has no times."""
        return self.why_not or self.fault

    @property
    def seen(self) -> KeyTiles:
        return KeyTiles(self.window, self.top, self.rest or "drop")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model at one size."""

    model: str
    res: str
    grid: Sequence[int]
    tile: Sequence[int]
    tokens: int
    tiles: int
    heads: int
    head_dim: int
    lines: tuple[Line, ...] = ()
    before: State | None = None
    after: State | None = None
    rounds: int = 0
    cut: str | None = None
    fault: str | None = None
    doing: str | None = None

    @property
    def failed(self) -> bool:
        """Whether a contender failed, gave a wrong result, or could not be timed."""
        unfinished = self.cut is not None and self.rounds < LEAST_ROUNDS
        return unfinished or bool(self.fault) or any(line.fault for line in self.lines)

    def beside(self, line: Line, kind: Kind) -> Line | None:
        """The prologue, or both together, of the same variant and key tiles as our kernel's `line`."""
        alike = (one for one in self.lines if one.kind == kind and one.variant == line.variant)
        return next((one for one in alike if kind == "prologue" or one.seen == line.seen), None)


@dataclass(frozen=True, kw_only=True)
class AttentionRecord(BenchRecord):
    kind: str = "attention"
    seed: int
    repeats: int
    seconds: float
    cases: tuple[Case, ...] = ()
    cut: str | None = None
    BRIEF: ClassVar[frozenset[str]] = frozenset(
        own.name
        for value in (Line, Case)
        for own in fields(value)
        if own.default is None and own.name not in ("before", "after", "cut", "window")  # no window: all tiles
    )


def derive(lines: Sequence[Line], card: MeasuredCard | None) -> tuple[Line, ...]:
    """The lines, and on each that was timed what follows from its samples, from the other lines' and from the card."""
    dense = {line.name: median(line.samples_ms) for line in lines if line.kind in DENSE and line.samples_ms}
    prepare = next((median(line.samples_ms) for line in lines if line.kind == "prepare" and line.samples_ms), None)

    def with_figures(line: Line) -> Line:
        if not line.samples_ms:
            return line
        took = median(line.samples_ms)
        found: dict[str, Any] = {"median_ms": took, "min_ms": min(line.samples_ms)}
        if card:
            least = roofline.bound(line.stages, roofline.rates(card, line.bits))
            found |= {"bound": least.by, "roofline_ms": 1e3 * least.seconds, "share": 1e3 * least.seconds / took}
        flops, _, moved = (sum(amounts) for amounts in zip(*line.stages, strict=True))
        if flops:
            found |= {"intensity": flops / moved, "tflops": flops / took / 1e9}
            if card and roofline.has_datasheet(card):
                found["datasheet_share"] = flops / took * 1e3 / roofline.DATASHEET[line.bits]
        if line.kind in ("kernel", "together", "flex", "reference"):
            found["speedup"] = {
                name: {"alone": other / took, "prepared": prepare and (other + prepare) / took}
                for name, other in dense.items()
            }
        return replace(line, **found)

    return tuple(map(with_figures, lines))
