"""What `fpsgen bench quality` found, as JSON has it (docs/bench.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fpsgen import metrics
from fpsgen.bench import record
from fpsgen.pocket import judge
from fpsgen.pocket.words import ASPECTS
from fpsgen.presets import label

if TYPE_CHECKING:
    from fpsgen.bench.contenders import Outline
    from fpsgen.bench.quality import Job

# What is told of all clips together, and which of several is the worst.
MEASURES: dict[str, Callable[[Sequence[float]], float]] = {
    "latent_cosine": min,
    "latent_error": max,
    "psnr": min,
    "ssim": min,
    "lpips": max,
}


def facts(begin: dict[str, Any], job: Job) -> dict[str, Any]:
    """What is the same for all contenders. begin: the provenance."""
    request = job.request(job.clips[0])
    return {
        **record.head("quality", begin, job),
        "video": {**asdict(job.settings), "solver": request.solver, "grid": request.grid},
        "prompts": list(job.prompts),
        "seeds": job.seeds,
        "seed": job.seed,
        "reference": job.reference,
    }


def contender(name: str, outline: Outline, clips: list[dict[str, Any]], dtype: str) -> dict[str, Any]:
    """One contender; the reference's clips have no fidelity."""
    near = [clip["fidelity"] for clip in clips if clip["fidelity"] is not None]
    means = {measure: summary([one[measure] for one in near], measure) for measure in MEASURES}
    return {
        "name": name,
        "label": label(name, dtype),
        "told": outline.told,
        "preset": outline.preset,
        "density": outline.density,
        "backends": list(outline.backends),
        "fidelity": means if near else None,
        "identical": sum(one["identical"] for one in near) if near else None,
        "nonfinite": sum(one["nonfinite"] > 0 for one in near) if near else None,
        "clips": clips,
        "adherence": adherence(clips),
        "vbench": None,
    }


def summary(values: Sequence[float | None], measure: str) -> dict[str, float] | None:
    """Mean, half its 95 % interval and the worst, over the clips that have a value; None where no clip has one. The
    interval is left out where only one clip has a value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, ci95 = metrics.interval95(known)
    return {"mean": mean, **({} if ci95 is None else {"ci95": ci95}), "worst": MEASURES[measure](known)}


def adherence(clips: Sequence[dict[str, Any]]) -> dict[str, list[int]] | None:
    """For each aspect, how many clips show what their prompt says, of how many; None where nobody judged."""
    if any(clip["shown"] is None for clip in clips):
        return None
    seen = [tuple(clip["shown"][aspect] for aspect in ASPECTS) for clip in clips]
    return {aspect: list(told) for aspect, told in judge.score(seen, [clip["prompt"] for clip in clips]).items()}
