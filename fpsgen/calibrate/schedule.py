"""A solved schedule as a preset."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from string import ascii_letters, digits

from fpsgen.attention.tiles import Shape3
from fpsgen.calibrate.candidates import PRECISIONS, Candidates
from fpsgen.calibrate.job import Job
from fpsgen.calibrate.solve import Schedule
from fpsgen.presets import DENSE_HEAD, Layers, Phase, Preset
from fpsgen.wan.plan import StepSpan

_LETTERS = ascii_letters + digits + "_"  # one for each of the 4 x 4 x 4 windows that there are at most, but dense

# What a layer of a phase does: precision of q and k, window of each head (None for dense).
_Layer = tuple[str, tuple[Shape3 | None, ...]]


def to_preset(job: Job, solved: Schedule) -> Preset:
    """A job's solution as a preset that says nothing of its quality yet."""
    return preset(solved, job.candidates, job.phases, job.name, job.model.family)


def preset(schedule: Schedule, candidates: Candidates, spans: list[StepSpan], name: str, family: str) -> Preset:
    """Phases that do the same become one; in a phase, what most layers do is said once."""
    each = [
        tuple(
            (PRECISIONS[int(p)], tuple(candidates.tiles.fit(candidates.windows[w]) for w in windows))
            for p, windows in zip(of_layers, heads, strict=True)
        )
        for of_layers, heads in zip(schedule.precision, schedule.window.tolist(), strict=True)
    ]
    mixed = Counter(w for layers in each for _, heads in layers if len(set(heads)) > 1 for w in heads if w)
    letters = dict(zip(sorted(mixed), _LETTERS, strict=False))
    phases: list[Phase] = []
    last = None
    for layers, span in zip(each, spans, strict=True):
        if layers == last:
            phases[-1] = replace(phases[-1], sigma=(phases[-1].sigma[0], span.sigma[1]))
        else:
            phases.append(_phase(layers, span, letters))
        last = layers
    windows = {letter: _portable(window) for window, letter in letters.items()}
    return Preset(name=name, phases=tuple(phases), tile=candidates.tiles.tile, model=family, windows=windows)


def _phase(layers: tuple[_Layer, ...], span: StepSpan, letters: dict[Shape3, str]) -> Phase:
    common = Counter(layers).most_common(1)[0][0]
    others: dict[_Layer, list[int]] = {}
    for number, layer in enumerate(layers):
        if layer != common:
            others.setdefault(layer, []).append(number)
    own = tuple(Layers(at=tuple(at), **_setting(layer, letters)) for layer, at in others.items())
    return Phase(sigma=span.sigma, layers=own, **_setting(common, letters))


def _setting(layer: _Layer, letters: dict[Shape3, str]) -> dict:
    qk, windows = layer
    said: dict = {"qk": qk, "pv": "bf16" if qk == "bf16" else "fp8"}
    if len(set(windows)) > 1:
        return said | {"heads": "".join(letters[window] if window else DENSE_HEAD for window in windows)}
    return said | {"window": windows[0] and _portable(windows[0])}


def _portable(window: Shape3) -> Shape3:
    """With odd lengths alone: an even one spans its axis here, and would fit no longer axis of another video."""
    t, h, w = (length | 1 for length in window)
    return t, h, w
