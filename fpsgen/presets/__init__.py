"""Presets: how sparse and how precise attention is, by noise level, layer and head; how precise linear layers are.

A preset is a TOML file (`file`); some ship with fpsgen (`shipped`). Phases are keyed by noise level and not by step, so
that a preset means the same at any step count and flow shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fpsgen.attention.plan import AttentionPlan, KeyTiles, PVPrecision, QKPrecision, Rest, Seen, fit
from fpsgen.attention.tiles import Shape3, TileGrid
from fpsgen.errors import UsageError, option
from fpsgen.settings import Settings
from fpsgen.solvers import FEW_STEPS
from fpsgen.wan.plan import UNROUNDED, Compute, Guidance, Linears, StepPlan, startable

if TYPE_CHECKING:
    from fpsgen.weights.models import Model

DENSE_HEAD = "-"  # in `heads`, where letters stand for key tiles
_ROUNDING = 1e-6
# What a measured quality holds for, besides the weights: fields of Measured and of Settings, in words.
_WHERE = {"size": "{}", "frames": "{} frames", "steps": "{} steps", "shift": "shift {:g}", "guidance": "guidance {:g}"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What some layers do at some noise levels: their attention is dense, unless one of window, density, top and heads
    is given.

    window: in tiles. density: the window that comes nearest to it, see `TileGrid.window_of`. top, rest: as `KeyTiles`
    has them; rest is "drop" beside heads. heads: for each head a letter of the preset's windows, or `DENSE_HEAD`.
    linear: the precision of linear layers. line: of the file, where it says what is seen.
    """

    window: Shape3 | None = None
    density: float | None = None
    top: float | None = None
    rest: Rest = "drop"
    heads: str = ""
    qk: QKPrecision = "bf16"
    pv: PVPrecision = "bf16"
    smooth_k: bool = True
    linear: Linears = UNROUNDED
    line: int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Layers(Setting):
    """What the layers `at`, counted from 0, do instead of what their phase says. at_line: where the file names them."""

    at: tuple[int, ...]
    at_line: int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Phase(Setting):
    """What layers do from noise level sigma[0] down to just above sigma[1]. guidance, compute: as `StepPlan` has
    them."""

    sigma: tuple[float, float]
    guidance: Guidance = "full"
    compute: Compute = "full"
    layers: tuple[Layers, ...] = ()

    def of_layer(self, number: int) -> Setting:
        return next((own for own in self.layers if number in own.at), self)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a preset was measured to cost in quality, against BF16 from the same noise, and where.

    weights: the transformer's `fingerprint`. clips: how many were compared. error: 1 - cosine of the final latents;
    psnr: of the frames, in dB. Both are means over the clips; error_ci95 and psnr_ci95 are half of the 95 %
    intervals, None for a single clip, which has no interval. cost: of attention, in dense BF16 attention's
    (`fpsgen/presets/cost.py`); denoising: of attention and linear layers, in dense BF16's, None in older files.
    solver: None for unipc. guidance_low: of the low-noise one of two experts, None where it is `guidance`.
    """

    weights: str
    size: str
    frames: int
    steps: int
    shift: float
    guidance: float
    clips: int
    density: float
    cost: float
    denoising: float | None = None
    error: float
    error_ci95: float | None = None
    psnr: float
    psnr_ci95: float | None = None
    psnr_worst: float
    device: str
    fpsgen: str
    torch: str
    solver: str | None = None
    guidance_low: float | None = None

    @classmethod
    def rounded(cls, **values: Any) -> Measured:
        """From exact values, in as many digits as a file has."""
        digits = {"density": ".4f", "cost": ".4f", "denoising": ".4f", "error": ".4g", "error_ci95": ".3g"}
        digits |= dict.fromkeys(("psnr", "psnr_ci95", "psnr_worst"), ".2f")
        short = {key: float(format(values[key], form)) for key, form in digits.items() if values.get(key) is not None}
        return cls(**values | short)

    @property
    def psnr_told(self) -> str:
        """PSNR, with its interval where there is one."""
        return f"{self.psnr:.1f}" + ("" if self.psnr_ci95 is None else f" ± {self.psnr_ci95:.1f}")

    def as_dict(self) -> dict[str, Any]:
        """What is known, by the names that a file has for it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def label(name: str, dtype: str) -> str:
    """What tables and pages call the contender `name`. "bf16" is dense attention in whatever precision the model runs
    (dtype, as torch calls it); where that is another one, the label says so."""
    return f"{name} ({dtype})" if name.split()[-1:] == [BF16.name] and dtype != "bfloat16" else name


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Phases from sigma 1 down to 0, without a gap.

    model: the family it is for, None for any. tile: None for the model's own. windows: what heads see, by letter.
    about: a sentence of its author's. lines: of the file, by key.
    """

    name: str
    phases: tuple[Phase, ...]
    tile: Shape3 | None = None
    model: str | None = None
    about: str = ""
    windows: Mapping[str, Shape3 | KeyTiles] = field(default_factory=dict)
    measured: Measured | None = None
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def at(self, sigma: float) -> Phase:
        """The phase of a noise level. Where one phase ends the next begins; solvers' levels are rounded to float32."""
        return next((phase for phase in self.phases if sigma > phase.sigma[1] + _ROUNDING), self.phases[-1])

    @cached_property
    def is_exact(self) -> bool:
        """Whether it is dense and unrounded everywhere, and every step is computed with both guidance branches."""
        return all((phase.guidance, phase.compute) == ("full", "full") for phase in self.phases) and all(
            own.linear == UNROUNDED
            and (own.window, own.density, own.top, own.heads, own.qk, own.pv) == (None, None, None, "", "bf16", "bf16")
            for phase in self.phases
            for own in (phase, *phase.layers)
        )

    def fault(self, told: str, line: int | None, hint: str | None = None) -> UsageError:
        """An error about this preset that names the line."""
        return UsageError(f"preset {self.name}{f', line {line}' if line else ''}: {told}", hint)

    def differences(self, weights: str, settings: Settings) -> list[str]:
        """What was otherwise when it was measured than it is in a video on `weights` (the transformer's fingerprint),
        in words; where there is nothing, the measured quality is the video's."""
        if self.measured is None:
            return []
        others = [] if self.measured.weights == weights else ["other weights"]
        for key, words in _WHERE.items():
            then, here = (words.format(getattr(values, key)) for values in (self.measured, settings))
            others += [then] if then != here else []
        low, low_here = (
            own.guidance if own.guidance_low is None else own.guidance_low for own in (self.measured, settings)
        )
        if settings.boundary is not None and low != low_here:
            others.append(f"guidance {low:g} of the low-noise expert")
        solver = self.measured.solver or "unipc"
        others += [] if settings.solver == solver else [f"the solver {solver}"]
        return others + ([] if settings.sigmas == "original" else ["the original sigmas"])

    def surprise(self, weights: str, settings: Settings, loras: str = "") -> str | None:
        """What a user should know before trusting it with a video, in one sentence. loras: those that are merged with
        the weights, in words."""
        if self.is_exact or self is DENSE_INT8:  # nobody calibrates it, and only benches run it
            return None
        if self.measured is None:
            return f"preset {self.name} is not calibrated: nobody has measured how close its videos are to bf16's"
        if others := self.differences(weights, settings):
            if loras and others[0] == "other weights":
                others[0] += f" (here with the LoRA {loras})"
            told = f"preset {self.name} was measured with {', '.join(others)}"
            return f"{told}: how close its videos are to bf16's here is not known"
        return None

    def stranger(self, weights: str, trained_for: Sequence[str]) -> str | None:
        """What a user should know of weights that were trained for other presets, in one sentence."""
        own, *others = (name.removesuffix(".toml") for name in (self.name, *trained_for))
        if not others or own in others or (self.measured is not None and self.measured.weights == weights):
            return None
        which = f"the preset{'s' if len(others) > 1 else ''} {' and '.join(others)}"
        return f"these weights were trained for {which}: with {own} they may do worse"

    def check_family(self, family: str) -> None:
        """UsageError where the preset is for other models than those of `family`."""
        if self.model not in (None, family):
            told = f"it is for {self.model}, and this model belongs to the family {family}"
            raise self.fault(
                told, self.lines.get("model"), hint=f"see `fpsgen presets`, or use {option('preset', 'bf16')}"
            )

    def plans(self, tiles: TileGrid, layers: int, heads: int) -> dict[Phase, StepPlan]:
        """What a step of each phase does in `layers` layers of `heads` heads; equal attention plans are shared.

        UsageError, with the line, where a window, a layer or a head does not fit, used or not.
        """
        made: dict[Setting, AttentionPlan] = {}
        for letter, seen in self.windows.items():
            self._fit(seen, tiles, self.lines.get(f"windows.{letter}"))
        for phase in self.phases:
            for own in (phase, *phase.layers):
                if own not in made:
                    made[own] = self._plan(own, tiles, heads)
            for own in phase.layers:
                if own.at[-1] >= layers:
                    told = f"there is no layer {own.at[-1]}: this model's are 0 to {layers - 1}"
                    raise self.fault(told, own.at_line, hint="layers are counted from 0")
        same: dict[AttentionPlan, AttentionPlan] = {}
        shared = {own: same.setdefault(plan, plan) for own, plan in made.items()}
        plans = {}
        for phase in self.phases:
            each = [phase.of_layer(number) for number in range(layers)]
            linear = tuple(own.linear for own in each)
            plans[phase] = StepPlan(tuple(shared[own] for own in each), linear, phase.guidance, phase.compute)
        return plans

    def schedule(
        self, sigmas: Sequence[float], tiles: TileGrid, layers: int, heads: int, high: int | None = None
    ) -> list[StepPlan]:
        """What each layer does at each step, given the noise level before it; errors as `plans`. high: how many of the
        first steps the high-noise one of two experts computes. The other one uses nothing again that this one left: a
        line through velocities of two networks would go on with what is but their difference, and the step from which
        a difference of guidance branches is had could not be computed again."""
        plans = self.plans(tiles, layers, heads)
        steps = [plans[self.at(sigma)] for sigma in sigmas]
        return startable(steps[:high]) + (startable(steps[high:]) if high is not None else [])

    def steps(self, model: Model, settings: Settings) -> tuple[StepPlan, ...]:
        """What each step of a model's video computes. UsageError where the preset is for another model, another
        video's size or another solver."""
        self.check_family(model.family)
        tiles, config = model.tiles(settings.latent_shape, self.tile), model.config
        of_model = (tiles, config.num_layers, config.num_heads)
        found = tuple(self.schedule(settings.noise_levels, *of_model, settings.high_steps))
        if settings.branches > 1:  # an expert without guidance has but one
            found = tuple(
                replace(step, guidance="off") if settings.guidance_at(number) == 1 else step
                for number, step in enumerate(found)
            )
        few = FEW_STEPS.get(settings.solver)
        if few and few.renoises and any(step.compute == "reuse" for step in found):
            told = f"it continues velocities, which the fresh noise of the solver {settings.solver} makes wrong"
            raise self.fault(told, None, hint=f"use another {option('preset')}, or another {option('solver')}")
        return found

    def _fit(self, seen: Seen, tiles: TileGrid, line: int | None) -> Seen:
        try:
            return fit(seen, tiles)
        except ValueError as fault:
            counts = " x ".join(map(str, tiles.counts))
            hint = f"this video has {counts} tiles; use odd lengths, or all of them"
            raise self.fault(str(fault), line, hint) from None

    def _plan(self, own: Setting, tiles: TileGrid, heads: int) -> AttentionPlan:
        if own.heads and len(own.heads) != heads:
            told = f"heads has {len(own.heads)} letters, and this model {heads} heads"
            raise self.fault(told, own.line, hint=f"one letter of [windows] for each head, {DENSE_HEAD} for dense")
        if own.heads:
            each = [self._fit(None if c == DENSE_HEAD else self.windows[c], tiles, own.line) for c in own.heads]
        else:
            window = own.window if own.density is None else tiles.window_of(own.density)
            each = [self._fit(KeyTiles(window, own.top, own.rest), tiles, own.line)]
        seen = tuple(dict.fromkeys(each))
        index = tuple(map(seen.index, each)) if len(seen) > 1 else ()
        return AttentionPlan(tiles, seen, index, own.qk, own.pv, own.smooth_k)


# Dense, as exact as the tensors are: what everything is measured against.
BF16 = Preset(name="bf16", phases=(Phase(sigma=(1.0, 0.0)),), about="dense attention, not rounded")
# Dense, and as fast as dense attention is in 8 bits: what presets are compared with, with fewer steps (`rival`).
DENSE_INT8 = Preset(
    name="dense-int8",
    phases=(Phase(sigma=(1.0, 0.0), qk="int8", pv="fp8"),),
    about="dense attention, q and k in INT8, P and v in FP8",
)
