"""What a head of a layer may do: the windows and precisions that a calibration chooses from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Literal

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Shape3, TileGrid, outlives_inference
from fpsgen.presets import cost

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["bf16", "int8", "fp8"]

# Precisions of q and k; with 8 bits P and v are E4M3. The kernel's sparse attention is 8-bit: bf16 is dense alone.
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "fp8")
_MOST_LENGTHS = 4  # of windows along an axis


@dataclass(frozen=True)
class Candidates:
    """All windows of a few lengths along each axis, in every precision.

    tokens: how many the video counts as having, for the cost of the prologue.
    """

    tiles: TileGrid
    tokens: int

    @cached_property
    def lengths(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Along T, H and W, ascending, the last spanning the axis: all odd ones, or four spread evenly."""
        t, h, w = (_spread(lengths) for lengths in self.tiles.lengths)
        return t, h, w

    @cached_property
    def windows(self) -> tuple[Shape3, ...]:
        """The last is all tiles: dense."""
        return tuple(product(*self.lengths))

    @cached_property
    @outlives_inference
    def costs(self) -> Tensor:
        """float64 [precisions, windows]; infinite for what cannot be had."""
        import torch

        every = [[self._cost(precision, window) for window in range(len(self.windows))] for precision in PRECISIONS]
        return torch.tensor(every, dtype=torch.float64)

    def _cost(self, precision: Precision, window: int) -> float:
        if precision == "bf16" and self.windows[window] != self.tiles.counts:
            return math.inf
        return cost.of_pairs(self.densities[window], precision, self.tokens)

    @cached_property
    def densities(self) -> tuple[float, ...]:
        return tuple(self.tiles.density(self.tiles.fit(window)) for window in self.windows)

    @property
    def probe(self) -> tuple[int, int]:
        """The precision and window that sensitivities are measured with: INT8, density nearest to a half."""
        return 1, min(range(len(self.densities)), key=lambda j: abs(self.densities[j] - 0.5))

    def probe_plan(self, heads: int) -> AttentionPlan:
        """The plan of a layer that has the probe in all its heads."""
        precision, window = self.probe
        return self.plan(precision, [window] * heads)

    def plan(self, precision: int, windows: list[int]) -> AttentionPlan:
        """The plan of a layer; windows: by number, one for each head."""
        each = [self.tiles.fit(self.windows[window]) for window in windows]
        distinct = tuple(dict.fromkeys(each))
        heads = tuple(distinct.index(window) for window in each) if len(distinct) > 1 else ()
        qk = PRECISIONS[precision]
        return AttentionPlan(self.tiles, distinct, heads, qk, "bf16" if qk == "bf16" else "fp8")


def _spread(lengths: tuple[int, ...]) -> tuple[int, ...]:
    if len(lengths) <= _MOST_LENGTHS:
        return lengths
    step = (len(lengths) - 1) / (_MOST_LENGTHS - 1)
    return tuple(lengths[round(i * step)] for i in range(_MOST_LENGTHS))
