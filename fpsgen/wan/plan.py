"""What the transformer computes at one denoising step: a value without tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid

LinearPrecision = Literal["16bit", "fp8", "int8"]  # 16bit: the weights' own
# Of the two guidance branches: both are computed; or the conditional one, and what both differed by in the latest step
# that computed both is used again; or the conditional one, without guidance.
Guidance = Literal["full", "reuse", "off"]
Compute = Literal["full", "reuse"]  # the velocity is computed; or continued from the latest two that were
MOST_REUSED = 3  # steps in succession that are continued: a line goes no further


@dataclass(frozen=True)
class Linears:
    """The precision of a layer's linear products. attention: of self-attention's q, k, v and o; ffn: of both products
    of the FFN. Whatever else is linear has the weights' own."""

    attention: LinearPrecision = "16bit"
    ffn: LinearPrecision = "16bit"

    def __str__(self) -> str:
        return self.ffn if self.attention == self.ffn else f"{self.ffn} in the FFN, {self.attention} in attention"


UNROUNDED = Linears()


@dataclass(frozen=True)
class StepPlan:
    """attention: one plan for each layer, all over one `TileGrid`. linear: the precision of each layer's linear
    products; empty where all have the weights' own. guidance: how the guided velocity is had. compute: whether the
    step is computed at all. "reuse" stands only where an earlier step has left something (`Preset.schedule`)."""

    attention: tuple[AttentionPlan, ...]
    linear: tuple[Linears, ...] = ()
    guidance: Guidance = "full"
    compute: Compute = "full"

    def __post_init__(self) -> None:
        if set(self.linear) == {UNROUNDED}:
            object.__setattr__(self, "linear", ())

    @property
    def tiles(self) -> TileGrid:
        return self.attention[0].tiles

    @property
    def layers(self) -> tuple[tuple[AttentionPlan, Linears], ...]:
        """What each layer computes."""
        return tuple(zip(self.attention, self.linear or (UNROUNDED,) * len(self.attention), strict=True))

    @property
    def density(self) -> float:
        """The share of token pairs that are computed, mean over the layers."""
        return fmean(plan.density for plan in self.attention)

    def share(self, branches: int) -> float:
        """The share of its forward passes that are computed, where a video has so many guidance branches."""
        if self.compute == "reuse":
            return 0.0
        return 1.0 if self.guidance == "full" else 1 / branches


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


def mean_density(steps: Sequence[StepPlan], branches: int) -> float:
    """The share of token pairs that are computed, over steps, guidance branches, layers and heads."""
    return fmean(step.share(branches) * step.density for step in steps)


def startable(steps: Sequence[StepPlan]) -> list[StepPlan]:
    """The same steps, but for those that would use again what no step before them has left, or too often: they compute
    it."""
    found: list[StepPlan] = []
    for step in steps:
        latest = found[-MOST_REUSED:]
        if not latest or (len(latest) == MOST_REUSED and all(old.compute == "reuse" for old in latest)):
            step = replace(step, compute="full")
        if step.guidance == "reuse" and all(old.guidance != "full" or old.compute == "reuse" for old in found):
            step = replace(step, guidance="full")
        found.append(step)
    return found


def distinct(steps: Sequence[StepPlan]) -> list[AttentionPlan]:
    """The attention plans of all steps and layers, each once, in order."""
    return list(dict.fromkeys(plan for step in steps for plan in step.attention))
