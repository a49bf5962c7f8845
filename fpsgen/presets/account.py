"""What a preset does at each step of a video, and what it saves. No weights are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from fpsgen.attention.plan import AttentionPlan, KeyTiles, PVPrecision, QKPrecision
from fpsgen.attention.tiles import TileGrid
from fpsgen.presets import Preset, cost, file, rival
from fpsgen.settings import Settings
from fpsgen.wan.config import WAN_14B, WanConfig
from fpsgen.wan.plan import Compute, Guidance, Linears, StepPlan
from fpsgen.weights.models import Model


@dataclass(frozen=True, kw_only=True)
class Savings:
    """density, cost: means over layers, steps and guidance branches; what a step does not compute counts as nothing.
    FLOPs of attention, a mean over the branches: all of them if attention is dense, and those that are saved."""

    density: float
    cost: float
    dense_flops: float
    saved_flops: float


@dataclass(frozen=True, kw_only=True)
class SeenHeads(KeyTiles):
    """The heads that see the same key tiles, as a preset's `at` writes numbers."""

    heads: str
    density: float


@dataclass(frozen=True, kw_only=True)
class LayersAccount(Savings):
    """Layers that compute alike: which, and how many."""

    at: str
    layers: int
    windows: list[SeenHeads]
    qk: QKPrecision
    pv: PVPrecision
    smooth_k: bool
    linear: Linears


@dataclass(frozen=True, kw_only=True)
class RunAccount(Savings):
    """The steps of one phase, first and last, counted from 1, and the noise levels before these two. guidance, compute:
    as `StepPlan` has them."""

    steps: tuple[int, int]
    sigma: tuple[float, float]
    guidance: Guidance
    compute: Compute
    layers: list[LayersAccount]


@dataclass(frozen=True, kw_only=True)
class DenseSteps:
    """How many steps of dense attention, in the precision of the preset's rival, cost as much as the preset with all
    its steps. attention: of attention alone; video: with linear layers."""

    qk: QKPrecision
    pv: PVPrecision
    attention: float
    video: float


@dataclass(frozen=True)
class Account:
    """What a preset does in a video of a model, step by step. linear_cost: of linear layers, in that of 16-bit ones."""

    model: str
    settings: Settings
    tiles: TileGrid
    runs: list[RunAccount]
    total: Savings
    linear_cost: float
    dense_steps: DenseSteps

    @property
    def video(self) -> dict[str, Any]:
        """What the account is for, as JSON has it."""
        keys = ("solver", "width", "height", "frames", "steps", "shift")
        settings = {"grid": self.settings.sigmas, **{key: getattr(self.settings, key) for key in keys}}
        tiles = {"tokens": self.tiles.tokens, "tile": self.tiles.tile, "tiles": self.tiles.counts}
        return {"model": self.model, **settings, **tiles}


def account(preset: Preset, model: Model, settings: Settings) -> Account:
    """UsageError if the preset is for another model or another video's size."""
    plans, branches = preset.steps(model, settings), settings.branches
    runs, last = [], 0
    levels = zip(settings.noise_levels, plans, strict=True)
    for (_, step), group in groupby(levels, key=lambda each: (preset.at(each[0]), each[1])):
        sigmas, first = [sigma for sigma, _ in group], last
        last += len(sigmas)
        share = step.share(branches)
        layers = [_layers(alike, step.layers, share, len(sigmas), model) for alike in dict.fromkeys(step.layers)]
        savings = _savings([*step.attention] * len(sigmas), [share] * len(step.layers) * len(sigmas), model)
        runs.append(
            RunAccount(
                steps=(first + 1, last), sigma=(sigmas[0], sigmas[-1]), guidance=step.guidance, compute=step.compute,
                layers=layers, **savings,
            )
        )  # fmt: skip
    every = [(*layer, step.share(branches)) for step in plans for layer in step.layers]
    total = Savings(**_savings([plan for plan, *_ in every], [share for *_, share in every], model))
    config, tokens = stand_in(model, plans[0].tiles)
    exact = cost.of_linear(config, tokens)
    linear = fmean(share * cost.of_linear(config, tokens, precision) / exact for _, precision, share in every)
    dense_steps = _dense_steps(plans, total.cost, linear, exact, tokens)
    return Account(model.family, settings, plans[0].tiles, runs, total, linear, dense_steps)


def _dense_steps(plans: Sequence[StepPlan], own: float, linear: float, exact: float, tokens: int) -> DenseSteps:
    """own: the cost of attention, a mean over all steps; linear: that of linear layers, in `exact`, that of 16-bit
    ones."""
    like = rival.of(plans).at(1.0)
    once = cost.of_plan(AttentionPlan(plans[0].tiles, qk=like.qk, pv=like.pv), tokens)
    video = (own + linear * exact) / (once + exact)
    return DenseSteps(qk=like.qk, pv=like.pv, attention=len(plans) * own / once, video=len(plans) * video)


def stand_in(model: Model, tiles: TileGrid) -> tuple[WanConfig, int]:
    """The shapes and the number of tokens by which a model's costs are counted: its own, but for a pocket model."""
    return (WAN_14B, cost.STAND_IN_TOKENS) if model.pocket else (model.config, tiles.tokens)


def denoising_cost(steps: Sequence[StepPlan], model: Model, branches: int) -> float:
    """The cost of a video's attention and linear layers. The unit is as many steps in BF16, with dense attention and so
    many guidance branches."""
    config, tokens = stand_in(model, steps[0].tiles)
    exact = cost.of_linear(config, tokens)
    return fmean(
        step.share(branches) * (cost.of_plan(plan, tokens) + cost.of_linear(config, tokens, linear)) / (1 + exact)
        for step in steps
        for plan, linear in step.layers
    )


Layer = tuple[AttentionPlan, Linears]


def _layers(alike: Layer, step: Sequence[Layer], share: float, steps: int, model: Model) -> LayersAccount:
    """The layers of a step that compute `alike`, over so many steps, of which a share is computed."""
    (plan, linear), numbers = alike, [number for number, other in enumerate(step) if other == alike]
    every, windows = plan.heads or (0,) * model.config.num_heads, []
    for index, seen in enumerate(plan.key_tiles):
        heads = file.ranges([head for head, own in enumerate(every) if own == index])
        windows.append(SeenHeads(**asdict(seen), heads=heads, density=plan.density_of(seen)))
    return LayersAccount(
        at=file.ranges(numbers), layers=len(numbers), windows=windows,
        qk=plan.qk, pv=plan.pv, smooth_k=plan.smooth_k, linear=linear,
        **_savings([plan] * len(numbers) * steps, [share] * len(numbers) * steps, model),
    )  # fmt: skip


def _savings(plans: Sequence[AttentionPlan], shares: Sequence[float], model: Model) -> dict[str, Any]:
    """The fields of `Savings`, of layers with these plans, of which these shares are computed."""
    tiles, config = plans[0].tiles, model.config
    density = fmean(share * plan.density for plan, share in zip(plans, shares, strict=True))
    dense = len(plans) * AttentionPlan(tiles).flops(config.num_heads, config.head_dim)
    mean_cost = fmean(
        share * cost.of_plan(plan, stand_in(model, tiles)[1]) for plan, share in zip(plans, shares, strict=True)
    )
    return {"density": density, "cost": mean_cost, "dense_flops": dense, "saved_flops": dense * (1 - density)}
