"""End to end: the video of one request by several contenders.

Every contender runs once in the order given: the cold runs, in which kernels are compiled and libraries load what they
load late. Then all run again, there and back, so that a machine that slows down slows all of them: A B B A. `record`
tells what came out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpsgen import files, machine
from fpsgen.bench import fidelity, perceptual, record, steps
from fpsgen.bench.contenders import Ours
from fpsgen.bench.fidelity import Fidelity
from fpsgen.bench.lineup import LineUp
from fpsgen.bench.record import CompareRecord, Entry, Span
from fpsgen.bench.steps import Split
from fpsgen.errors import RenderError
from fpsgen.events import Branches, Denoised, Frames, Notice, Run, Stage, Step, Watch
from fpsgen.metrics import Pair
from fpsgen.presets import label
from fpsgen.request import Request
from fpsgen.sampling import Denoiser
from fpsgen.target import Target
from fpsgen.timing import Timings
from fpsgen.weights.load import load_tokenizer, load_transformer
from fpsgen.weights.models import Model


@dataclass(frozen=True)
class CompareJob:
    """What is compared. passes: warm runs of each contender; command: for the record."""

    request: Request
    model: Model
    target: Target
    line_up: LineUp
    passes: int
    command: list[str]

    def entries(self) -> tuple[list[Entry], Entry]:
        """One for each contender, and the reference's."""
        contenders = self.line_up.contenders
        entries = [Entry(one, one.outline(self.request, self.model, self.target)) for one in contenders]
        return entries, next(one for one in entries if one.name == self.line_up.reference)

    def facts(self) -> dict[str, Any]:
        """What a record says of the job, whatever is found; to be asked before the work."""
        return {
            **record.head("compare", self.command, self.model, self.target),
            "video": {key: value for key, value in self.request.as_dict().items() if key != "scale_to"},
            "tokens": prod(self.model.config.grid(self.request.settings.latent_shape)),
            "reference": self.line_up.reference,
            "tried": [asdict(one) for one in self.line_up.tried],
        }


def measure(job: CompareJob, folder: Path, watch: Watch) -> tuple[CompareRecord, list[Pair]]:
    """The record, and the frames of each contender beside the reference's; the videos go to `folder`.

    RenderError where the reference's latents are not finite; of another, that is a result.
    """
    facts = job.facts()
    machine.settle()  # as `fpsgen generate` does
    entries, reference = job.entries()
    warm = record.there_and_back(entries, job.passes)
    with no_kernels_yet():
        states = run(entries, warm, job, folder, watch)
        near, notes = nearness(entries, reference, job.target.device)
        spans = record.common_spans(entries, job.request)
        watch(Stage("parts of a step"))
        try:
            splits = list(splits_of(entries, spans, job))
        except (RuntimeError, MemoryError) as fault:  # of the device: the runs are worth more
            splits = [[None] * len(spans) for _ in entries]
            notes.append(f"the parts of a step were not measured: {str(fault).partition(chr(10))[0][:200]}")
    found = CompareRecord(
        **facts,
        random_weights=False,
        extrapolated=False,
        pairs=job.passes,
        order=[one.name for one in warm],
        states=states if any(states) else None,
        notes=notes,
        contenders=[
            record.contender(one, reference, spans, parts, own, job.target)
            for one, parts, own in zip(entries, splits, near, strict=True)
        ],
    )
    reference_label = label(reference.name, job.target.dtype_name)
    pairs = [
        Pair(
            job.request.prompt, own.psnr_or_inf, reference.clip[1], one.clip[1],
            (reference_label, label(one.name, job.target.dtype_name)),
        )
        for one, own in zip(entries, near, strict=True) if own is not None
    ]  # fmt: skip
    return found, pairs


def run(
    entries: Sequence[Entry], warm: Sequence[Entry], job: CompareJob, folder: Path, watch: Watch
) -> list[dict[str, Any] | None]:
    """All runs, the cold ones first; the card's state after each, None where nobody knows it."""
    states = []
    outputs = places(job.line_up, folder)
    for number, one in enumerate((*entries, *warm), 1):
        cold = one.cold is None
        watch(Run(f"{one.name}, {'cold' if cold else 'warm'}", number, len(entries) + len(warm)))
        timings = once(one, replace(job.request, output=outputs[one.name]), job, watch)
        states.append(
            machine.card_state(job.target.device) if job.target.device.type == "cuda" else None
        )  # warm from the work
        if cold:
            one.cold = timings
        else:
            one.warm.append(timings)
    return states


def places(line_up: LineUp, folder: Path) -> dict[str, Path]:
    """Where the video of each contender goes."""
    names = [one.name for one in line_up.contenders]
    return {name: folder / f"{number}-{files.safe_name(name)[:60]}.mp4" for number, name in enumerate(names, 1)}


def once(entry: Entry, request: Request, job: CompareJob, watch: Watch) -> dict[str, Any]:
    """One video, and how long it took. The first that a contender makes is kept, for its fidelity."""
    first = entry.latents is None
    machine.release()
    timings = Timings()
    pieces = []
    try:
        for event in entry.contender.run(request, job.model, job.target, timings):
            if isinstance(event, Stage | Step):
                watch(event)
            elif isinstance(event, Denoised) and first:
                entry.latents = event.latents.cpu()
            elif isinstance(event, Frames) and first:
                pieces.append(event.pixels)
            elif isinstance(event, Branches):
                entry.together = event.together
            elif isinstance(event, Notice) and first and not event.detail:
                watch(Notice(f"{entry.name}: {event.text}"))
    except RenderError as fault:
        raise RenderError(f"{entry.name}: {fault}", fault.hint) from None
    if first:
        entry.frames = np.concatenate(pieces)
    if job.target.device.type != "cuda":
        timings.peak_memory = None  # it would be the process's, of all runs so far
    return timings.as_dict()


def nearness(
    entries: Sequence[Entry], reference: Entry, device: torch.device
) -> tuple[list[Fidelity | None], list[str]]:
    """How near each contender's first video is to the reference's, None for itself; and what could not be measured."""
    if nonfinite := fidelity.count_nonfinite(reference.clip[0]):
        told = f"{reference.name}, the reference, has {nonfinite} latents that are not finite"
        raise RenderError(told, hint="try --dtype fp32, or compare with another")
    lpips, reason = perceptual.load(device)
    near = [None if one is reference else fidelity.between(one.clip, reference.clip, lpips) for one in entries]
    return near, [reason] if reason else []


def splits_of(entries: Sequence[Entry], spans: Sequence[Span], job: CompareJob) -> Iterator[list[Split | None]]:
    """The parts of a step of each span, by contender; None for other programs."""
    machine.release()  # what the last run has left would seem taken, and the branches not to fit in one batch
    device = job.target.device
    transformer = load_transformer(job.model.checkpoint, device, job.target.dtype)
    # Time does not depend on what a text says.
    shape = (1, load_tokenizer(job.model.checkpoint).length, transformer.config.text_dim)
    text = torch.zeros(shape, device=device, dtype=job.target.text_dtype)
    texts = [text] * job.request.settings.branches
    for one in entries:
        if not isinstance(one.contender, Ours) or one.outline.plan is None:
            yield [None] * len(spans)
            continue
        with one.contender.running():
            denoiser = Denoiser(transformer, job.request.settings, texts, device)
            measured = steps.by_phase(one.outline.plan, denoiser, spans)
            yield [phase.split for phase in measured]


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
