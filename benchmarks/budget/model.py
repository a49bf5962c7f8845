"""A model of the time that a video takes on a card. No number here is a measurement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from benchmarks.budget import parts
from benchmarks.budget.parts import Part
from fpsgen.attention.tiles import TileGrid
from fpsgen.presets import BF16, Preset, cost
from fpsgen.settings import Settings
from fpsgen.wan.plan import Linears, StepPlan
from fpsgen.weights.models import Model


@dataclass(frozen=True)
class Card:
    """Peaks without sparsity: operations per second of tensor cores by format, and bytes per second of memory. name:
    what a driver calls it contains that."""

    name: str
    bf16: float
    fp8: float
    int8: float
    memory: float
    source: str

    def __str__(self) -> str:
        by_format = ", ".join(f"{getattr(self, one) / 1e12:g} in {one.upper()}" for one in ("bf16", "fp8", "int8"))
        return f"TFLOP/s {by_format}; {self.memory / 1e12:g} TB/s ({self.source})"


_HOPPER = 989.5e12, 1979e12, 1979e12
CARDS = {
    "h100": Card("H100", *_HOPPER, 3.35e12, "NVIDIA H100 datasheet, SXM: half of what it has with sparsity"),
    "h200": Card("H200", *_HOPPER, 4.8e12, "NVIDIA H200 datasheet, SXM: half of what it has with sparsity"),
    "b200": Card(
        "B200", 2250e12, 4500e12, 4500e12, 8e12, "NVIDIA DGX B200 datasheet: an eighth, half of that with sparsity"
    ),
    "4090": Card(
        "RTX 4090", 165.2e12, 330.3e12, 660.6e12, 1.008e12, "NVIDIA Ada white paper, appendix A: sums in FP32"
    ),
}
# Seconds for each kernel: those that the host takes to launch it, from Python (as is often said); and those between two
# kernels, launched one by one or in a CUDA graph (NVIDIA's blog "Getting Started with CUDA Graphs", 2019: on a V100,
# kernels of 2.9 microseconds take 3.8 and 3.4).
LAUNCH, BETWEEN, BETWEEN_IN_GRAPH = 10e-6, 0.9e-6, 0.5e-6
_MEMORY = 0.9  # of the datasheet's: an H100 copies at 3.0 TB/s, which `presets/cost.py` has, too


@dataclass(frozen=True)
class Rates:
    """What work is taken to reach, per second: operations of dense attention in BF16, of linear layers by precision, of
    convolutions in TF32; bytes."""

    attention: float
    linear: dict[str, float]
    convolution: float
    memory: float

    @classmethod
    def of(cls, card: Card) -> Rates:
        """An H100's published rates, by `presets/cost.py`, and the same shares of any card's peaks. The peak in TF32 is
        half of that in BF16 on all of them; convolutions are taken to reach the same share as linear layers."""
        base = CARDS["h100"]
        share = {"16bit": card.bf16 / base.bf16, "fp8": card.fp8 / base.fp8, "int8": card.int8 / base.int8}
        linear = {kind: 1e12 * tflops * share[kind] for kind, tflops in cost.LINEAR_TFLOPS.items()}
        attention = 1e12 * cost.TFLOPS["bf16"] * share["16bit"]
        return cls(attention, linear, linear["16bit"] / 2, _MEMORY * card.memory)


def floor(part: Part, card: Card, bits: int) -> float:
    """Seconds that no kernel can be faster than: tensor cores or memory at their peak. bits: of products that may have
    8; all others have 16."""
    if part.kind == "rounding" and bits == 16:
        return 0.0
    eight = bits == 8 and (part.kind == "self-attention" or part.of)
    return max(part.flops / (max(card.fp8, card.int8) if eight else card.bf16), part.least_bytes / card.memory)


def seconds(part: Part, rates: Rates, plan: StepPlan, fused: bool = False) -> float:
    """Of a part, in a forward pass with `plan`. fused: whether our elementwise kernels run."""
    passes = (part.fused_bytes if fused else part.moved_bytes) / rates.memory
    if part.kind == "self-attention":
        tokens = plan.tiles.tokens
        return part.flops / rates.attention * fmean(cost.of_plan(own, tokens) for own in plan.attention)
    if part.kind == "cross-attention":
        return max(part.flops / rates.attention, passes)
    if part.kind == "norm and RoPE":
        return passes * fmean(not own.is_8bit for own in plan.attention)
    precisions = [getattr(own, part.of) if part.of else "16bit" for _, own in plan.layers]
    if part.kind == "linear":
        return max(part.flops * fmean(1 / rates.linear[kind] for kind in precisions), passes)
    if part.kind == "rounding":
        return passes * fmean(kind != "16bit" for kind in precisions)
    return max(part.flops / rates.convolution, passes) if part.kind == "convolution" else passes


# What can be switched on, and what that is taken to be.
SWITCHES = {
    "preset": "the preset",
    "linear": "linear layers in FP8, rounded by PyTorch",
    "fused": "norms, residuals, GELU and rounding by our kernels",
    "reuse": "every second step not computed, its velocity continued",
    "guidance": "every second computed step without the unguided branch",
    "steps": "half of the steps",
}


@dataclass(frozen=True)
class Video:
    model: Model
    settings: Settings
    preset: Preset

    @property
    def tiles(self) -> TileGrid:
        return self.model.tiles(self.settings.latent_shape)

    @property
    def forward_pass(self) -> list[Part]:
        """Of one guidance branch."""
        return parts.forward_pass(self.model.config, self.tiles)

    @property
    def launches(self) -> dict[str, float]:
        """Of a step with dense attention in 16 bits, guidance branches one after the other: its kernels, and seconds
        that `expected` leaves out."""
        kernels = self.settings.branches * parts.launches(self.model.config)
        taken = {"host": LAUNCH, "between": BETWEEN, "between_in_graphs": BETWEEN_IN_GRAPH}
        return {"kernels": kernels, **{f"model_{name}_s": kernels * each for name, each in taken.items()}}

    @property
    def once(self) -> list[Part]:
        text = parts.text(self.model.config, self.settings.branches)
        return [*text, *parts.decode(self.settings.latent_shape)]

    def steps(self, on: Collection[str] = ()) -> Sequence[StepPlan]:
        """What each step computes, some of SWITCHES on."""
        settings = self.settings.override(steps=(self.settings.steps + 1) // 2) if "steps" in on else self.settings
        plans = (self.preset if "preset" in on else BF16).steps(self.model, settings)
        if "linear" in on:
            plans = [replace(plan, linear=(Linears("fp8", "fp8"),) * len(plan.attention)) for plan in plans]
        plans = _every_second(plans, compute="reuse") if "reuse" in on else plans
        return _every_second(plans, guidance="reuse") if "guidance" in on else plans

    def expected(self, rates: Rates, on: Collection[str] = ()) -> dict[str, float]:
        """Seconds by part, of all steps together; and of what is done once, which no switch changes."""
        plans, branches = self.steps(on), self.settings.branches
        passes: dict[StepPlan, float] = defaultdict(float)
        for plan in plans:
            passes[plan] += branches * plan.share(branches)
        found = {
            part.name: sum(many * seconds(part, rates, plan, "fused" in on) for plan, many in passes.items())
            for part in self.forward_pass
        }
        return found | {part.name: seconds(part, rates, plans[0]) for part in self.once}


def _every_second(plans: Sequence[StepPlan], **change: Any) -> list[StepPlan]:
    """Every second step that is computed is changed."""
    computed = [number for number, plan in enumerate(plans) if plan.compute == "full"]
    return [replace(plan, **change) if number in computed[1::2] else plan for number, plan in enumerate(plans)]
