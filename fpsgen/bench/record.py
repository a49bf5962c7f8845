"""What `fpsgen bench` and `fpsgen bench quality` find, field by field as JSON has it: docs/bench.md tells each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor

from fpsgen import machine
from fpsgen.bench import stopwatch
from fpsgen.bench.contenders import Outline
from fpsgen.bench.fidelity import Fidelity, MadeClip
from fpsgen.bench.lineup import Contender
from fpsgen.presets import label
from fpsgen.request import Request
from fpsgen.target import Target
from fpsgen.timing import STAGES
from fpsgen.weights.models import Model

WHOLE = (*STAGES, "total")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every bench that runs a model says."""

    kind: str
    format: int = 1
    date: str
    commit: str | None
    command: list[str]
    machine: dict[str, Any]
    card: dict[str, Any] | None
    model: str
    device: str
    dtype: str
    text_dtype: str
    video: dict[str, Any]
    reference: str
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class CompareRecord(Record):
    tokens: int
    random_weights: bool
    extrapolated: bool
    pairs: int
    order: list[str]
    tried: list[dict[str, Any]]
    states: list[dict[str, Any] | None] | None
    contenders: list[CompareContender]


@dataclass(frozen=True, kw_only=True)
class QualityRecord(Record):
    prompts: tuple[str, ...]
    seeds: int
    seed: int
    contenders: list[QualityContender]


@dataclass(frozen=True, kw_only=True)
class ContenderRecord:
    """What both say of a contender."""

    name: str
    label: str
    told: str
    preset: dict[str, Any] | None
    density: float | None
    backends: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CompareContender(ContenderRecord):
    together: bool | None
    cold: dict[str, Any] | None
    warm: list[dict[str, Any]]
    median: dict[str, float | None]
    spread: dict[str, list[float | None]]
    phases: list[PhaseTimes]
    speedup: dict[str, SpeedUp] | None
    fidelity: Fidelity | None
    nonfinite: int | None = None


@dataclass(frozen=True, kw_only=True)
class QualityContender(ContenderRecord):
    fidelity: dict[str, dict[str, float] | None] | None
    identical: int | None
    nonfinite: int | None
    clips: list[ClipRecord]
    adherence: dict[str, list[int]] | None
    vbench: dict[str, float | None] | None = None


@dataclass(frozen=True)
class PhaseTimes:
    """Steps of one plan, counted from 1; step: the median over them and all runs, in seconds."""

    first: int
    last: int
    sigma: tuple[float, float]
    density: float | None
    step: float
    split: Any


@dataclass(frozen=True)
class SpeedUp:
    """The reference's time divided by the contender's, in each pass."""

    median: float
    each: list[float]


@dataclass(frozen=True)
class ClipRecord:
    prompt: str
    seed: int
    fidelity: Fidelity | None
    shown: dict[str, str] | None
    video: str | None


def head(kind: str, command: list[str], model: Model, target: Target) -> dict[str, Any]:
    """How a record begins; to be asked before the work, while the tree is that of the code that runs."""
    on_card = target.device.type == "cuda"
    about = {"card": stopwatch.card(target.device) if on_card else None, "model": model.told}
    return {"kind": kind, **machine.provenance(command), **about, **target.as_dict()}


def who(name: str, outline: Outline, target: Target) -> dict[str, Any]:
    """The fields of `ContenderRecord`."""
    told = {key: value for key, value in vars(outline).items() if key != "plan"}
    return {"name": name, "label": label(name, target.dtype_name), **told}


# --- a comparison: what each contender made, and how long its runs took --------------------------------


@dataclass
class Entry:
    """A contender in a comparison, and what became of it so far.

    latents, frames: of its first run. together: whether both guidance branches ran in one batch, where that was said.
    cold, warm: the first run and the later ones, as `Timings.as_dict` has them.
    """

    contender: Contender
    outline: Outline
    latents: Tensor | None = None
    frames: np.ndarray | None = None
    together: bool | None = None
    cold: dict[str, Any] | None = None
    warm: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.contender.name

    @property
    def clip(self) -> MadeClip:
        """What the first run made."""
        assert self.latents is not None
        assert self.frames is not None
        return self.latents, self.frames

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs that count: the warm ones, or the cold one where there are no others."""
        return self.warm or [self.cold or {}]

    def times(self, what: Callable[[list[float]], float], name: str) -> float | None:
        """The median, least or most of a time; None where it was not measured."""
        each = [run[name] for run in self.runs]
        return None if None in each else what(each)


def there_and_back(entries: Sequence[Entry], passes: int) -> list[Entry]:
    """The order of the warm runs: A B B A, so that a machine that slows down slows all of them."""
    return [one for number in range(passes) for one in (entries if number % 2 == 0 else entries[::-1])]


@dataclass(frozen=True)
class Span:
    """Steps that have one plan in each layer, counted from 0. sigma: noise level before the first, after the last."""

    first: int
    last: int
    sigma: tuple[float, float]


def spans(plans: Sequence[object], sigmas: Sequence[float]) -> list[Span]:
    """The runs of equal plans; sigmas: before each step, and the one after the last."""
    found, first = [], 0
    for _, alike in groupby(plans):
        last = first + sum(1 for _ in alike) - 1
        found.append(Span(first, last, (sigmas[first], sigmas[last + 1])))
        first = last + 1
    return found


def common_spans(entries: Sequence[Entry], request: Request) -> list[Span]:
    """The longest spans in which nobody's plans change; contenders without plans have no say."""
    every = [one.outline.plan.steps for one in entries if one.outline.plan is not None]
    together = list(zip(*every, strict=True))
    return spans(together, request.settings.new_solver().sigmas.tolist())


def contender(
    entry: Entry,
    reference: Entry,
    cut: Sequence[Span],
    splits: Sequence[Any],
    near: Fidelity | None,
    target: Target,
    nonfinite: int | None = None,
) -> CompareContender:
    """splits: the parts of a step of each span. near: None for the reference, and without videos."""
    compared = entry is not reference and bool(entry.warm)  # the first cold run pays for all
    return CompareContender(
        **who(entry.name, entry.outline, target),
        together=entry.together,
        cold=entry.cold,
        warm=entry.warm,
        median={name: entry.times(median, name) for name in WHOLE},
        spread={name: [entry.times(min, name), entry.times(max, name)] for name in WHOLE},
        phases=[phase(entry, span, split) for span, split in zip(cut, splits, strict=True)],
        speedup={name: speedup(entry, reference, name) for name in ("total", "denoise")} if compared else None,
        fidelity=near,
        nonfinite=nonfinite,
    )


def phase(entry: Entry, span: Span, split: Any) -> PhaseTimes:
    steps = slice(span.first, span.last + 1)
    plans = () if entry.outline.plan is None else entry.outline.plan.steps[steps]
    density = sum(plan.density for plan in plans) / len(plans) if plans else None
    step = median(seconds for run in entry.runs for seconds in run["steps"][steps])
    return PhaseTimes(span.first + 1, span.last + 1, span.sigma, density, step, split)


def speedup(entry: Entry, reference: Entry, name: str) -> SpeedUp:
    each = [theirs[name] / ours[name] for ours, theirs in zip(entry.warm, reference.warm, strict=True)]
    return SpeedUp(median(each), each)
