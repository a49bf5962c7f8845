"""What `fpsgen bench` and `fpsgen bench quality` find, field by field as JSON has it: docs/bench.md explains each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fpsgen import machine
from fpsgen.bench import stopwatch
from fpsgen.bench.contenders import VideoContender
from fpsgen.bench.fidelity import Fidelity
from fpsgen.bench.lineup import LineUp
from fpsgen.bench.steps import Split


@dataclass(frozen=True, kw_only=True)
class Record:
    """The fields that `bench` and `bench quality` have in common."""

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
    """The fields that both have for a contender."""

    name: str
    label: str
    told: str
    preset: dict[str, Any] | None
    density: float | None
    backends: list[str]


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
    nonfinite: int | None


@dataclass(frozen=True, kw_only=True)
class QualityContender(ContenderRecord):
    fidelity: dict[str, dict[str, float] | None] | None
    identical: int | None
    nonfinite: int | None
    clips: list[ClipRecord]
    adherence: dict[str, list[int]] | None
    vbench: dict[str, float | None] | None


@dataclass(frozen=True)
class PhaseTimes:
    """Steps that compute the same, counted from 1; step: the median over them and all runs, in seconds."""

    first: int
    last: int
    sigma: tuple[float, float]
    density: float | None
    step: float
    split: Split | None


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


def head(kind: str, command: list[str], line_up: LineUp) -> dict[str, Any]:
    """The fields of `Record` but its notes. To be called before the work: the commit is that of the running code."""
    plan, target = line_up.plan, line_up.plan.target
    card = stopwatch.card(target.device) if target.device.type == "cuda" else None
    video = {key: value for key, value in plan.request.as_dict().items() if key != "scale_to"}
    about = {"kind": kind, **machine.provenance(command), "card": card, "model": plan.model.full_name}
    return {**about, **target.as_dict(), "video": video, "reference": line_up.reference.name}


def who(contender: VideoContender) -> dict[str, Any]:
    """The fields of `ContenderRecord`."""
    return {"name": contender.name, "label": contender.label, **contender.about()}
