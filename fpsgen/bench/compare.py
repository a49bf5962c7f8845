"""End to end: the video of one request by several contenders.

Every contender runs once in the order given: the cold runs, in which kernels are compiled and libraries load what they
load late. Then all run again, there and back, so that a machine that slows down slows all of them: A B B A. `record`
tells what came out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fpsgen import files, machine
from fpsgen.bench import fidelity, perceptual, record, steps
from fpsgen.bench.contenders import Contender, LineUp, Ours, Outline
from fpsgen.bench.fidelity import Clip, Fidelity
from fpsgen.bench.record import Span
from fpsgen.bench.steps import Split
from fpsgen.errors import RenderError
from fpsgen.metrics import Pair
from fpsgen.pipeline import Branches, Denoised, Frames, Notice, Phase, Request, Step
from fpsgen.presets import label
from fpsgen.timing import Timings
from fpsgen.weights.load import load_tokenizer, load_transformer
from fpsgen.weights.models import Model


class Watcher(Protocol):
    """Who is told what happens."""

    def begins(self, title: str, number: int, total: int) -> None:
        """One of `total` runs begins; the first has number 1."""
        ...

    def phase(self, name: str) -> None: ...

    def parts(self) -> None:
        """All runs are done; single steps are taken apart."""
        ...

    def step(self, done: int, total: int) -> None:
        """Denoising steps of the run that are behind us."""
        ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Job:
    """What is compared. passes: warm runs of each contender; command: for the record."""

    request: Request
    model: Model
    device: torch.device
    dtype: torch.dtype
    text_dtype: torch.dtype
    line_up: LineUp
    passes: int
    command: list[str]


@dataclass
class Made:
    """What one contender made the first time, and how long each of its runs took, as `Timings.as_dict` says it.

    together: whether both guidance branches ran in one batch, where that was said.
    """

    contender: Contender
    outline: Outline
    latents: Tensor | None = None
    frames: np.ndarray | None = None
    together: bool | None = None
    cold: dict[str, Any] = field(default_factory=dict)
    warm: list[dict[str, Any]] = field(default_factory=list)

    @property
    def clip(self) -> Clip:
        """What the first run made."""
        assert self.latents is not None
        assert self.frames is not None
        return self.latents, self.frames


def measure(job: Job, folder: Path, watcher: Watcher) -> tuple[dict[str, Any], list[Pair]]:
    """The record, and the frames of each contender beside the reference's; the videos go to `folder`.

    RenderError where the reference's latents are not finite; of another, that is a result.
    """
    facts = record.facts(machine.provenance(job.command), job)  # of the code that is running
    machine.settle()  # as `fpsgen generate` does
    found = [Made(one, one.outline(job.request, job.model, job.device)) for one in job.line_up.contenders]
    with no_kernels_yet():
        order, states = run(found, job, folder, watcher)
        reference = next(one for one in found if one.contender.name == job.line_up.reference)
        near, notes = nearness(found, reference, job.device)
        spans = record.common_spans(found, job.request)
        watcher.parts()
        try:
            splits = splits_of(found, spans, job)
        except (RuntimeError, MemoryError) as fault:  # of the device: the runs are worth more
            splits = [[] for _ in found]
            notes.append(f"the parts of a step were not measured: {str(fault).partition(chr(10))[0][:200]}")
    told = [record.contender(one, reference, spans, own, job.dtype) for one, own in zip(found, near, strict=True)]
    for one, own in zip(told, splits, strict=True):
        for phase, split in zip(one["phases"], own, strict=False):
            phase["split"] = asdict(split)
    pairs = [pair(one, reference, own, job) for one, own in zip(found, near, strict=True) if own is not None]
    return {**facts, "contenders": told, "order": order, "states": states, "notes": notes}, pairs


def splits_of(found: Sequence[Made], spans: Sequence[Span], job: Job) -> list[list[Split]]:
    """What a step of each span is made of, by contender; nothing for those that are not ours."""
    machine.release()  # what the last run has left would seem taken, and the branches not to fit in one batch
    transformer = load_transformer(job.model.checkpoint, job.device, job.dtype)
    # Time does not depend on what a text says.
    length = load_tokenizer(job.model.checkpoint).length
    shape = (1, length, transformer.config.text_dim)
    texts = [torch.zeros(shape, device=job.device, dtype=job.text_dtype)] * (1 if job.request.guidance == 1 else 2)
    every = []
    for one in found:
        own: list[Split] = []
        if isinstance(one.contender, Ours) and one.outline.plans is not None:
            with one.contender.running():
                measured = steps.by_phase(job.request, transformer, one.outline.plans, spans, texts, job.device)
                own = [phase.split for phase in measured]
        every.append(own)
    return every


def nearness(found: Sequence[Made], reference: Made, device: torch.device) -> tuple[list[Fidelity | None], list[str]]:
    """How near each contender's first video is to the reference's, None for itself; and what could not be measured."""
    if nonfinite := int((~reference.clip[0].isfinite()).sum()):
        told = f"{reference.contender.name}, the reference, has {nonfinite} latents that are not finite"
        raise RenderError(told, hint="try --dtype fp32, or compare with another")
    lpips, reason = perceptual.load(device)
    near = [None if one is reference else fidelity.between(one.clip, reference.clip, lpips) for one in found]
    return near, [reason] if reason else []


def pair(one: Made, reference: Made, near: Fidelity, job: Job) -> Pair:
    """For the report."""
    dtype = record.short(job.dtype)
    names = label(reference.contender.name, dtype), label(one.contender.name, dtype)
    return Pair(job.request.prompt, inf if near.identical else near.psnr, reference.clip[1], one.clip[1], names)


@contextmanager
def no_kernels_yet() -> Iterator[None]:
    """An empty cache of kernels inside, so that a cold run compiles what it needs, as a first one does."""
    before = os.environ.get("FPSGEN_CACHE_DIR")
    with files.temporary_folder("bench") as empty:
        os.environ["FPSGEN_CACHE_DIR"] = str(empty)
        try:
            yield
        finally:
            if before is None:
                del os.environ["FPSGEN_CACHE_DIR"]
            else:
                os.environ["FPSGEN_CACHE_DIR"] = before


def run(found: Sequence[Made], job: Job, folder: Path, watcher: Watcher) -> tuple[list[str], list[dict | None] | None]:
    """All runs; the order of the warm ones, and the card's state after each of all, None where nobody knows it."""
    turns = [found if number % 2 == 0 else found[::-1] for number in range(job.passes)]
    runs = [(one, True) for one in found] + [(one, False) for turn in turns for one in turn]
    states = []
    for number, (one, cold) in enumerate(runs, 1):
        watcher.begins(f"{one.contender.name}, {'cold' if cold else 'warm'}", number, len(runs))
        told = once(one, job, folder, watcher)
        states.append(machine.card_state(job.device) if job.device.type == "cuda" else None)  # warm from the work
        if cold:
            one.cold = told
        else:
            one.warm.append(told)
    return [one.contender.name for one, cold in runs if not cold], states if any(states) else None


def places(line_up: LineUp, folder: Path) -> dict[str, Path]:
    """Where the video of each contender goes."""
    names = [one.name for one in line_up.contenders]
    return {name: folder / f"{number}-{files.safe_name(name)[:60]}.mp4" for number, name in enumerate(names, 1)}


def once(one: Made, job: Job, folder: Path, watcher: Watcher) -> dict[str, Any]:
    """One video, and how long it took. The first that a contender makes is kept, for its fidelity."""
    name, first = one.contender.name, one.latents is None
    request = replace(job.request, output=places(job.line_up, folder)[name])
    machine.release()
    timings = Timings()
    pieces = []
    try:
        for event in one.contender.run(request, job.model, job.device, job.dtype, job.text_dtype, timings):
            if isinstance(event, Phase):
                watcher.phase(event.name)
            elif isinstance(event, Step):
                watcher.step(event.done, event.total)
            elif isinstance(event, Denoised) and first:
                one.latents = event.latents.cpu()
            elif isinstance(event, Frames) and first:
                pieces.append(event.pixels)
            elif isinstance(event, Branches):
                one.together = event.together
            elif isinstance(event, Notice) and first and not event.detail:
                watcher.note(f"{name}: {event.text}")
    except RenderError as fault:
        raise RenderError(f"{name}: {fault}", fault.hint) from None
    if first:
        one.frames = np.concatenate(pieces)
    told = timings.as_dict()
    if job.device.type != "cuda":
        told["peak_memory_bytes"] = None  # it would be the process's, of all runs so far
    return told
