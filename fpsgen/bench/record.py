"""What a comparison found, as JSON has it (docs/bench.md): phases, medians, speed-ups, fidelity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby
from math import prod
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from fpsgen.bench import stopwatch
from fpsgen.bench.fidelity import Fidelity
from fpsgen.presets import BF16, Plans, label
from fpsgen.timing import PHASES

if TYPE_CHECKING:
    from fpsgen.bench import quality
    from fpsgen.bench.compare import Job, Made
    from fpsgen.pipeline import Request

WHOLE = (*PHASES, "total")
_NO_SETTINGS = ("output", "may_replace", "preset", "scale_to")  # of a request: every contender has its own


@dataclass(frozen=True)
class Span:
    """Steps that have one plan in each layer, counted from 0. sigma: noise level before the first, after the last."""

    first: int
    last: int
    sigma: tuple[float, float]


def spans(plans: Sequence[Plans], sigmas: Sequence[float]) -> list[Span]:
    """The runs of equal plans; sigmas: before each step, and the one after the last."""
    found, first = [], 0
    for _, alike in groupby(plans):
        last = first + sum(1 for _ in alike) - 1
        found.append(Span(first, last, (sigmas[first], sigmas[last + 1])))
        first = last + 1
    return found


def common_spans(found: Sequence[Made], request: Request) -> list[Span]:
    """The steps in which the plans of nobody, of those that have any, change."""
    every = [one.outline.plans for one in found if one.outline.plans is not None]
    together = [tuple(chain.from_iterable(layers)) for layers in zip(*every, strict=True)]
    return spans(together, request.new_solver().sigmas.tolist())


def head(kind: str, begin: dict[str, Any], job: Job | quality.Job) -> dict[str, Any]:
    """How the record of any bench that runs a model begins. begin: from `provenance`, before the work."""
    model = job.model
    return {
        "kind": kind,
        "format": 1,
        **begin,
        "card": stopwatch.card(job.device) if job.device.type == "cuda" else None,
        "model": model.told,
        "device": str(job.device),
        "dtype": short(job.dtype),
        "text_dtype": short(job.text_dtype),
    }


def short(dtype: torch.dtype) -> str:
    """A precision's name, such as float32."""
    return str(dtype).removeprefix("torch.")


def facts(begin: dict[str, Any], job: Job) -> dict[str, Any]:
    """What is the same for all contenders."""
    request = job.request
    settings = asdict(replace(request, preset=BF16))
    return {
        **head("compare", begin, job),
        "random_weights": False,
        "extrapolated": False,
        "video": {key: value for key, value in settings.items() if key not in _NO_SETTINGS},
        "tokens": prod(job.model.config.grid(request.latent_shape)),
        "reference": job.line_up.reference,
        "pairs": job.passes,
        "tried": [asdict(one) for one in job.line_up.tried],
        "notes": [],
    }


def contender(
    one: Made, reference: Made, cut: Sequence[Span], near: Fidelity | None, dtype: torch.dtype
) -> dict[str, Any]:
    """One contender; what its steps are made of is not in it yet. near: None for the reference, and without videos."""
    runs, itself = timed(one), one is reference
    return {
        "name": one.contender.name,
        "label": label(one.contender.name, short(dtype)),
        "told": one.outline.told,
        "preset": one.outline.preset,
        "density": one.outline.density,
        "backends": list(one.outline.backends),
        "together": one.together,
        "cold": one.cold,
        "warm": one.warm,
        "median": {name: of_runs(median, runs, name) for name in WHOLE},
        "spread": {name: [of_runs(min, runs, name), of_runs(max, runs, name)] for name in WHOLE},
        "phases": [phase(one, span, runs) for span in cut],
        # The first run pays for all, so that cold runs are not compared.
        "speedup": None
        if itself or not one.warm
        else {name: speedup(one.warm, reference.warm, name) for name in ("total", "denoise")},
        "fidelity": near and asdict(near),
    }


def timed(one: Made) -> list[dict[str, Any]]:
    """The runs that count: the warm ones, or the cold one where there are no others."""
    return one.warm or [one.cold]


def of_runs(what: Callable[[list[float]], float], runs: Sequence[dict[str, Any]], name: str) -> float | None:
    """Median, least or most of a time; None where it was not measured."""
    times = [run[name] for run in runs]
    return None if None in times else what(times)


def phase(one: Made, span: Span, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One phase; step: the median over its steps in all runs, in seconds. Steps are counted from 1, as users do."""
    steps = slice(span.first, span.last + 1)
    plans = [plan for layers in (one.outline.plans or [])[steps] for plan in layers]
    return {
        "first": span.first + 1,
        "last": span.last + 1,
        "sigma": list(span.sigma),
        "density": sum(plan.density for plan in plans) / len(plans) if plans else None,
        "step": median(seconds for run in runs for seconds in run["steps"][steps]),
        "split": None,
    }


def speedup(runs: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The reference's time divided by the contender's, in each pass, and the median of that."""
    each = [theirs[name] / ours[name] for ours, theirs in zip(runs, other, strict=True)]
    return {"median": median(each), "each": each}
