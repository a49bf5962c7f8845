"""What the transformer computes at one denoising step: a value without tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid

# Each has one value yet: what is to come is one more value here, one candidate of calibration, one row of the bench.
LinearPrecision = Literal["16bit"]  # the weights' own
Guidance = Literal["full"]  # both branches are computed
Compute = Literal["full"]  # all layers are computed


@dataclass(frozen=True)
class StepPlan:
    """attention: one plan for each layer, all over one `TileGrid`. linear: the precision of each layer's linear
    products; empty where all have the weights' own. guidance: how the guided velocity is had. compute: whether the
    step is computed at all."""

    attention: tuple[AttentionPlan, ...]
    linear: tuple[LinearPrecision, ...] = ()
    guidance: Guidance = "full"
    compute: Compute = "full"

    @property
    def tiles(self) -> TileGrid:
        return self.attention[0].tiles

    @property
    def density(self) -> float:
        """The share of token pairs that are computed, mean over the layers."""
        return fmean(plan.density for plan in self.attention)


@dataclass(frozen=True)
class StepSpan:
    """Steps that compute alike, counted from 0, and the noise levels between which they are."""

    first: int
    last: int
    sigma: tuple[float, float]

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


def dense(tiles: TileGrid, layers: int) -> StepPlan:
    """Dense attention, not rounded, in all of `layers` layers."""
    return StepPlan((AttentionPlan(tiles),) * layers)


def mean_density(steps: Sequence[StepPlan]) -> float:
    """The share of token pairs that are computed, over steps, layers and heads."""
    return fmean(step.density for step in steps)


def distinct(steps: Sequence[StepPlan]) -> list[AttentionPlan]:
    """The attention plans of all steps and layers, each once, in order."""
    return list(dict.fromkeys(plan for step in steps for plan in step.attention))
