"""End to end: one video by several contenders.

Every contender runs once in the order given: the cold runs, in which kernels are compiled and libraries load what they
load late. Then all run again, there and back, so that a machine that slows down slows all of them: A B B A.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fpsgen import files, machine
from fpsgen.bench import fidelity, perceptual, steps
from fpsgen.bench.contenders import VideoContender
from fpsgen.bench.fidelity import MadeClip
from fpsgen.bench.lineup import LineUp
from fpsgen.bench.record import CompareContender, CompareRecord, Fidelity, PhaseTimes, SpeedUp, Split, State
from fpsgen.errors import RenderError, option
from fpsgen.events import Branches, Denoised, Frames, Notice, Run, Stage, Watch
from fpsgen.metrics import Pair
from fpsgen.sampling import Denoiser
from fpsgen.timing import STAGES, RunTimes, Timings
from fpsgen.wan.conditions import blank
from fpsgen.wan.plan import StepSpan, mean_density
from fpsgen.weights.load import load_tokenizer, load_transformer

WHOLE = (*STAGES, "total")


@dataclass(frozen=True)
class CompareJob:
    """What is compared. passes: warm runs of each contender; command: for the record."""

    line_up: LineUp
    passes: int
    command: list[str]


@dataclass
class Entry:
    """A contender in a comparison, and what became of it so far.

    clip: what the first run made. together: whether both guidance branches ran in one batch, where that was said. cold,
    warm: the first run and the later ones. splits: the parts of a step of each span. nonfinite: of all velocities that
    were looked at.
    """

    contender: VideoContender
    clip: MadeClip = field(init=False)
    together: bool | None = None
    cold: RunTimes | None = None
    warm: list[RunTimes] = field(default_factory=list)
    splits: Sequence[Split] = ()
    fidelity: Fidelity | None = None
    nonfinite: int | None = None

    @property
    def name(self) -> str:
        return self.contender.name

    @property
    def runs(self) -> list[RunTimes]:
        """The runs that count: the warm ones, or the cold one where there are no others."""
        return self.warm or ([self.cold] if self.cold else [])

    def record(self, reference: Entry, cut: Sequence[StepSpan]) -> CompareContender:
        compared = self is not reference and bool(self.warm)  # the first cold run pays for all
        splits = self.splits or (None,) * len(cut)
        return CompareContender(
            **vars(self.contender.about()), together=self.together, cold=self.cold, warm=self.warm,
            median={name: self._over_runs(median, name) for name in WHOLE},
            spread={name: [self._over_runs(min, name), self._over_runs(max, name)] for name in WHOLE},
            phases=[self._phase(span, parts) for span, parts in zip(cut, splits, strict=True)],
            speedup={name: self._speedup(reference, name) for name in ("total", "denoise")} if compared else None,
            fidelity=self.fidelity, nonfinite=self.nonfinite,
        )  # fmt: skip

    def _over_runs(self, what: Callable[[list[float]], float], name: str) -> float | None:
        """The median, least or most of a time; None where it was not measured."""
        each = [seconds for run in self.runs if (seconds := run.of(name)) is not None]
        return what(each) if each else None

    def _phase(self, span: StepSpan, parts: Split | None) -> PhaseTimes:
        steps = slice(span.first, span.last + 1)
        own = self.contender.steps[steps]
        density = mean_density(own, self.contender.settings.branches) if own else None
        seconds = median(each for run in self.runs for each in run.steps[steps])
        return PhaseTimes(span.first + 1, span.last + 1, span.sigma, density, seconds, parts)

    def _speedup(self, reference: Entry, name: str) -> SpeedUp:
        runs = zip(reference.warm, self.warm, strict=True)
        each = [getattr(theirs, name) / getattr(ours, name) for theirs, ours in runs]
        return SpeedUp(median(each), each)


class Comparison:
    """Entries of all contenders while they are measured. warm: the order of the warm runs, there and back; cuts: the
    steps, as the plans of all contenders with these settings divide them."""

    def __init__(self, job: CompareJob):
        line_up, plan = job.line_up, job.line_up.plan
        self.head = line_up.facts(job.command)
        self.job, self.plan, self.device = job, plan, plan.target.device
        self.entries = [Entry(one) for one in line_up.contenders]
        self.reference = next(one for one in self.entries if one.contender is line_up.reference)
        turns = (self.entries[:: 1 if number % 2 == 0 else -1] for number in range(job.passes))
        self.warm = [one for turn in turns for one in turn]
        ours = [one for one in line_up.contenders if one.steps]
        self.cuts = {
            own: steps.spans([one.steps for one in ours if one.settings == own], [*own.noise_levels, 0.0])
            for own in dict.fromkeys(one.settings for one in ours)
        }
        self.states: list[State | None] = []

    def note_state(self) -> None:
        """Note the card's state after a run, while it is warm from the work."""
        self.states.append(machine.card_state(self.device) if self.device.type == "cuda" else None)

    def record(self, notes: list[str], random: bool = False) -> CompareRecord:
        """random: whether the weights were, and the times are extrapolated."""
        if random:
            self.head["video"] = replace(self.head["video"], prompt=None, negative=None)
        return CompareRecord(
            **self.head, tokens=self.plan.tiles.tokens, random_weights=random, extrapolated=random,
            pairs=self.job.passes, order=[one.name for one in self.warm], notes=notes,
            tried=list(self.job.line_up.tried), states=self.states if any(self.states) else None,
            contenders=[one.record(self.reference, self.cuts[one.contender.settings]) for one in self.entries],
        )  # fmt: skip


def measure(job: CompareJob, folder: Path, watch: Watch) -> tuple[CompareRecord, list[Pair]]:
    """The record, and the frames of each contender beside the reference's; the videos go to `folder`.

    RenderError where the reference's latents are not finite; of another, that is a result.
    """
    found = Comparison(job)
    machine.settle()  # as `fpsgen generate` does
    outputs, runs = places(job.line_up, folder), [*found.entries, *found.warm]
    with no_kernels_yet():
        for number, one in enumerate(runs, 1):
            cold = one.cold is None
            watch(Run(f"{one.name}, {'cold' if cold else 'warm'}", number, len(runs)))
            timings = once(one, outputs[one.name], watch)
            found.note_state()
            if cold:
                one.cold = timings
            else:
                one.warm.append(timings)
        notes = compare_clips(found)
        watch(Stage("parts of a step"))
        try:
            split_steps(found)
        except (RuntimeError, MemoryError) as fault:  # of the device: the runs are worth more
            notes.append(f"the parts of a step were not measured: {str(fault).partition(chr(10))[0][:200]}")
    return found.record(notes), [pair(one, found.reference) for one in found.entries if one is not found.reference]


def places(line_up: LineUp, folder: Path) -> dict[str, Path]:
    """Where the video of each contender goes."""
    names = [one.name for one in line_up.contenders]
    return {name: folder / f"{number}-{files.safe_name(name)[:60]}.mp4" for number, name in enumerate(names, 1)}


def once(entry: Entry, output: Path, watch: Watch) -> RunTimes:
    """One video, and how long it took. The first that a contender makes is kept, for its fidelity."""
    first, timings, latents, pieces = entry.cold is None, Timings(), torch.empty(0), []
    machine.release()
    try:
        for event in entry.contender.run(output, timings):
            if isinstance(event, Notice):
                if first and not event.detail:
                    watch(Notice(f"{entry.name}: {event.text}"))
                continue
            watch(event)
            if isinstance(event, Branches):
                entry.together = event.together
            elif isinstance(event, Denoised) and first:
                latents = event.latents.cpu()
            elif isinstance(event, Frames) and first:
                pieces.append(event.pixels)
    except RenderError as fault:
        raise RenderError(f"{entry.name}: {fault}", fault.marked_hint) from None
    if first:
        entry.clip = latents, np.concatenate(pieces)
    if entry.contender.plan.target.device.type != "cuda":
        timings.peak_memory = None  # it would be the process's, of all runs so far
    return timings.rounded()


def compare_clips(found: Comparison) -> list[str]:
    """Measure how near each contender's first video is to the reference's; notes say what could not be measured."""
    name, exact = found.reference.name, found.reference.clip
    if nonfinite := fidelity.count_nonfinite(exact[0]):
        told = f"{name}, the reference, has {nonfinite} latents that are not finite"
        raise RenderError(told, hint=f"try {option('dtype', 'fp32')}, or compare with another")
    lpips, reason = perceptual.load(found.device)
    for one in found.entries:
        if one is not found.reference:
            one.fidelity = fidelity.between(one.clip, exact, lpips)
    return [reason] if reason else []


def pair(entry: Entry, reference: Entry) -> Pair:
    """For the report."""
    assert entry.fidelity is not None
    prompt, names = entry.contender.plan.request.prompt, (reference.contender.label, entry.contender.label)
    return Pair(prompt, entry.fidelity.psnr_or_inf, reference.clip[1], entry.clip[1], names)


def split_steps(found: Comparison) -> None:
    """Measure the parts of a step of each span, for fpsgen's contenders."""
    machine.release()  # what the last run has left would seem taken, and the branches not to fit in one batch
    checkpoint, target, branches = found.plan.model.checkpoint, found.plan.target, found.job.line_up.settings.branches
    transformer = load_transformer(checkpoint, target.device, target.dtype)
    # Time does not depend on what a text says.
    shape = (1, load_tokenizer(checkpoint).length, transformer.config.text_dim)
    text = torch.zeros(shape, device=target.device, dtype=target.text_dtype)
    texts, config = [text] * branches, transformer.config
    denoisers = {
        own: Denoiser(transformer, own, texts, target.device, image=blank(config, own.latent_shape))
        for own in found.cuts
    }
    for one in found.entries:
        if one.contender.steps:
            own = one.contender.settings
            with one.contender.running():
                found_parts = steps.by_span(one.contender.plan, denoisers[own], found.cuts[own])
            one.splits = [parts.split for parts in found_parts]


@contextmanager
def no_kernels_yet() -> Iterator[None]:
    """An empty cache of kernels inside, so that a cold run compiles what it needs, as a first one does."""
    before = os.environ.get("FPSGEN_CACHE_DIR")
    with files.temporary_folder("bench") as empty:
        os.environ["FPSGEN_CACHE_DIR"] = str(empty)
        try:
            yield
        finally:
            del os.environ["FPSGEN_CACHE_DIR"]
            os.environ.update({} if before is None else {"FPSGEN_CACHE_DIR": before})
