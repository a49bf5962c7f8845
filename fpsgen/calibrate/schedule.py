"""A solved schedule as a preset."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby
from string import ascii_letters, digits

from fpsgen.attention.plan import KeyTiles, fit
from fpsgen.calibrate.candidates import LINEARS, PRECISIONS, Candidates
from fpsgen.calibrate.job import Job
from fpsgen.calibrate.solve import Schedule
from fpsgen.presets import DENSE_HEAD, Layers, Phase, Preset
from fpsgen.wan.plan import Guidance, Linears, StepSpan

# One for each choice that there may be, but dense: 63 windows and 16 shares, with and without summary.
_LETTERS = ascii_letters + digits + "_" + "".join(filter(str.isalpha, map(chr, range(0xC0, 0x180))))

# What a layer of a phase does: precision of q and k, what each head sees (None for all tiles), and linear layers.
_Layer = tuple[str, tuple[KeyTiles | None, ...], Linears]
# What all layers of a phase do, and guidance; None for one that is not computed.
_Done = tuple[tuple[_Layer, ...], Guidance] | None


def to_preset(job: Job, solved: Schedule) -> Preset:
    """A job's solution as a preset that says nothing of its quality yet."""
    spans = job.steps if solved.runs else job.phases
    return preset(solved, job.candidates, spans, job.name, job.model.family, job.settings.boundary)


def preset(
    schedule: Schedule,
    candidates: Candidates,
    spans: list[StepSpan],
    name: str,
    family: str,
    boundary: float | None = None,
) -> Preset:
    """Phases that do the same become one, but for those of two experts; in a phase, what most layers do is said once.
    spans: of the schedule's phases, or of the video's steps where it has runs of them. boundary: between the experts.
    """
    choices = [None if fit(own, candidates.tiles) is None else _portable(own) for own in candidates.choices]
    rows = [
        tuple(
            (PRECISIONS[int(p)], tuple(choices[c] for c in of_heads), LINEARS[int(own)])
            for p, of_heads, own in zip(*of_layers, strict=True)
        )
        for of_layers in zip(schedule.precision, schedule.choice.tolist(), schedule.linear, strict=True)
    ]
    mixed = {own for layers in rows for _, heads, _ in layers if len(set(heads)) > 1 for own in heads if own}
    letters = dict(zip(sorted(mixed, key=choices.index), _LETTERS, strict=False))
    every: list[_Done] = [(layers, "full") for layers in rows]
    if schedule.runs:
        runs = zip(rows, schedule.runs, strict=True)
        every = [own for layers, run in runs for own in ((layers, run.guidance), *[None] * run.reused)]
    phases: list[Phase] = []
    of_low = [boundary is not None and span.sigma[0] <= boundary for span in spans]
    for (done, _), alike in groupby(zip(every, of_low, spans, strict=True), key=lambda each: each[:2]):
        sigmas = [span.sigma for *_, span in alike]
        phases.append(_phase(done, (sigmas[0][0], sigmas[-1][1]), letters))
    windows = {letter: own.window if own.is_window and own.window else own for own, letter in letters.items()}
    return Preset(name=name, phases=tuple(phases), tile=candidates.tiles.tile, model=family, windows=windows)


def _phase(done: _Done, sigma: tuple[float, float], letters: dict[KeyTiles, str]) -> Phase:
    if done is None:
        return Phase(sigma=sigma, compute="reuse")
    layers, guidance = done
    common = Counter(layers).most_common(1)[0][0]
    others: dict[_Layer, list[int]] = {}
    for number, layer in enumerate(layers):
        if layer != common:
            others.setdefault(layer, []).append(number)
    own = tuple(Layers(at=tuple(at), **_setting(layer, letters)) for layer, at in others.items())
    return Phase(sigma=sigma, guidance=guidance, layers=own, **_setting(common, letters))


def _setting(layer: _Layer, letters: dict[KeyTiles, str]) -> dict:
    qk, seen, linear = layer
    said: dict = {"qk": qk, "pv": "bf16" if qk == "bf16" else "fp8", "linear": linear}
    if len(set(seen)) > 1:
        return said | {"heads": "".join(letters[own] if own else DENSE_HEAD for own in seen)}
    own = seen[0] or KeyTiles()
    return said | {"window": own.window, "top": own.top, "rest": own.rest}


def _portable(own: KeyTiles) -> KeyTiles:
    """A window with odd lengths alone: an even one spans its axis here, and would fit no longer axis of another
    video."""
    if own.window is None:
        return own
    t, h, w = (length | 1 for length in own.window)
    return replace(own, window=(t, h, w))
