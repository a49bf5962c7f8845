"""A solved schedule as a preset."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from string import ascii_letters, digits

from fpsgen.attention.plan import KeyTiles, fit
from fpsgen.calibrate.candidates import PRECISIONS, Candidates
from fpsgen.calibrate.job import Job
from fpsgen.calibrate.solve import Schedule
from fpsgen.presets import DENSE_HEAD, Layers, Phase, Preset
from fpsgen.wan.plan import StepSpan

# One for each choice that there may be, but dense: 63 windows and 16 shares, with and without summary.
_LETTERS = ascii_letters + digits + "_" + "".join(filter(str.isalpha, map(chr, range(0xC0, 0x180))))

# What a layer of a phase does: precision of q and k, what each head sees (None for all tiles).
_Layer = tuple[str, tuple[KeyTiles | None, ...]]


def to_preset(job: Job, solved: Schedule) -> Preset:
    """A job's solution as a preset that says nothing of its quality yet."""
    return preset(solved, job.candidates, job.phases, job.name, job.model.family)


def preset(schedule: Schedule, candidates: Candidates, spans: list[StepSpan], name: str, family: str) -> Preset:
    """Phases that do the same become one; in a phase, what most layers do is said once."""
    choices = [None if fit(own, candidates.tiles) is None else _portable(own) for own in candidates.choices]
    each = [
        tuple(
            (PRECISIONS[int(p)], tuple(choices[c] for c in of_heads))
            for p, of_heads in zip(of_layers, heads, strict=True)
        )
        for of_layers, heads in zip(schedule.precision, schedule.choice.tolist(), strict=True)
    ]
    mixed = {own for layers in each for _, heads in layers if len(set(heads)) > 1 for own in heads if own}
    letters = dict(zip(sorted(mixed, key=choices.index), _LETTERS, strict=False))
    phases: list[Phase] = []
    last = None
    for layers, span in zip(each, spans, strict=True):
        if layers == last:
            phases[-1] = replace(phases[-1], sigma=(phases[-1].sigma[0], span.sigma[1]))
        else:
            phases.append(_phase(layers, span, letters))
        last = layers
    windows = {letter: own.window if own.is_window and own.window else own for own, letter in letters.items()}
    return Preset(name=name, phases=tuple(phases), tile=candidates.tiles.tile, model=family, windows=windows)


def _phase(layers: tuple[_Layer, ...], span: StepSpan, letters: dict[KeyTiles, str]) -> Phase:
    common = Counter(layers).most_common(1)[0][0]
    others: dict[_Layer, list[int]] = {}
    for number, layer in enumerate(layers):
        if layer != common:
            others.setdefault(layer, []).append(number)
    own = tuple(Layers(at=tuple(at), **_setting(layer, letters)) for layer, at in others.items())
    return Phase(sigma=span.sigma, layers=own, **_setting(common, letters))


def _setting(layer: _Layer, letters: dict[KeyTiles, str]) -> dict:
    qk, seen = layer
    said: dict = {"qk": qk, "pv": "bf16" if qk == "bf16" else "fp8"}
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
