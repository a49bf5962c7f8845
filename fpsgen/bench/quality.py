"""`fpsgen bench quality`: many prompts and seeds by a preset and by others; how near each clip is to the reference's.

The record is what docs/bench.md says of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from fpsgen import assets, machine, metrics, pipeline
from fpsgen import journal as journals
from fpsgen.bench import fidelity, perceptual, record
from fpsgen.bench.contenders import Ours, Outline
from fpsgen.bench.fidelity import Fidelity, zero_nonfinite
from fpsgen.bench.lineup import LineUp
from fpsgen.bench.perceptual import Lpips
from fpsgen.bench.record import ClipRecord, QualityContender, QualityRecord
from fpsgen.errors import RenderError
from fpsgen.events import Done, Event, Notice, Stage, Watch, Work, finish
from fpsgen.journal import Journal
from fpsgen.metrics import Pair
from fpsgen.pocket import judge
from fpsgen.pocket.words import ASPECTS
from fpsgen.presets import label
from fpsgen.request import Request
from fpsgen.sampling import Denoiser, both_fit
from fpsgen.seeds import next_seed
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.video import VideoWriter
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights.load import load_transformer, load_vae
from fpsgen.weights.models import Model

# What is told of all clips together, and which of several is the worst.
MEASURES: dict[str, Callable[[Sequence[float]], float]] = {
    "latent_cosine": min,
    "latent_error": max,
    "psnr": min,
    "ssim": min,
    "lpips": max,
}
_OF_A_CLIP = ("prompt", "seed", "scale_to")  # in what a request says: the others are the same for all clips
_PAIRS = 2  # of frames, for the report
_DECODE = {True: 12.0, False: 0.5}  # decoding and measuring a clip, in a step's time, of a pocket model and of Wan2.1
_VERSION = 2  # raised where a measure changes its meaning, so that older ones are not taken for new


@dataclass(frozen=True)
class Take:
    """One clip of every contender."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class QualityJob:
    """What is compared: fpsgen's own contenders. seeds: of each prompt; seed: of the first clip, each further one
    counting up. command: for the record."""

    model: Model
    settings: Settings
    target: Target
    line_up: LineUp
    prompts: tuple[str, ...]
    seeds: int
    seed: int
    command: list[str]

    @property
    def contenders(self) -> list[Ours]:
        return [one for one in self.line_up.contenders if isinstance(one, Ours)]

    @property
    def reference(self) -> Ours:
        return next(one for one in self.contenders if one.name == self.line_up.reference)

    @cached_property
    def takes(self) -> list[Take]:
        each = [prompt for prompt in self.prompts for _ in range(self.seeds)]
        return [Take(prompt, next_seed(self.seed, number)) for number, prompt in enumerate(each)]

    def request(self, take: Take) -> Request:
        return Request(take.prompt, self.settings, take.seed, Path())

    @cached_property
    def outlines(self) -> dict[str, Outline]:
        """The outline of each contender; UsageError where a preset does not fit the video."""
        request = self.request(self.takes[0])
        return {one.name: one.outline(request, self.model, self.target) for one in self.contenders}

    def piece(self, kind: str, one: Ours, *more: object) -> str:
        """A name in the journal, of all that a clip depends on besides the journal's key. The contender's name is in
        it: one that computes what another does is made on its own all the same, or it would be compared with itself."""
        outline = self.outlines[one.name]
        told = repr((one.name, outline.plan and outline.plan.steps, outline.backends, *more))
        return f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:24]}"

    @property
    def judged(self) -> bool:
        """Whether the pocket model's judge can tell what the clips show."""
        own = self.settings
        return self.model.card is not None and (own.frames, own.height, own.width) == judge.SHAPE

    @property
    def decode(self) -> float:
        return _DECODE[self.model.card is not None]

    @property
    def work(self) -> float:
        """Steps of both guidance branches, or their time."""
        return len(self.takes) * len(self.contenders) * (self.settings.steps + self.decode)


@torch.inference_mode()
def run(
    job: QualityJob, watch: Watch, videos: dict[str, list[Path]] | None = None, fresh: bool = False
) -> tuple[QualityRecord, list[Pair]]:
    """The record, and frames of the first clips and of the worst by the preset and by the reference.

    videos: for each contender where its clips are written to. Every clip and what is measured of it is kept, and
    found again by the next run, whatever that compares, unless `fresh`. UsageError where a preset does not fit, before
    anything loads; RenderError where the reference's values are not finite.
    """
    head, outlines = record.head("quality", job.command, job.model, job.target), job.outlines
    cache = assets.cache("bench")
    journals.check(cache)
    watch(Work(job.work))
    watch(Stage("load"))
    notes: list[str] = []

    def note(text: str | None) -> None:
        """Tell at once, and in the record."""
        if text and text not in notes:
            notes.append(text)
            watch(Notice(text))

    lpips, why_not = perceptual.load(job.target.device)
    note(why_not)
    if job.model.card and not job.judged:
        note("what the clips show is not judged: the judge knows only the pocket model's own size and frames")
    texts = encode(job, note)
    transformer = load_transformer(job.model.checkpoint, job.target.device, job.target.dtype)
    own, weights = job.settings, transformer.fingerprint()
    for one in job.contenders:
        note(one.preset.surprise(weights, own))
    journal = Journal(cache, key(job, transformer))
    if fresh:
        journal.forget()
    watch(Stage("denoise"))
    for take in job.takes:
        for one in job.contenders:
            render(job, one, take, transformer, texts[take.prompt], journal, watch)
    del transformer
    machine.release()
    watch(Stage("decode"))
    screen = Screen(job, load_vae(job.model.checkpoint, job.target.device), journal, lpips, weights)
    clips: dict[str, list[ClipRecord]] = {one.name: [] for one in job.contenders}
    for number, take in enumerate(job.takes):
        for one in job.contenders:
            clips[one.name].append(screen.clip(one, take, None if videos is None else videos[one.name][number]))
            watch(Done(job.decode))
    contenders = [contender(name, outlines[name], clips[name], job.target) for name in outlines]
    for found in contenders:
        if found.nonfinite:
            note(f"{found.name}: {found.nonfinite} clips have latents that are not finite, taken for 0")
    video = {key: value for key, value in job.request(job.takes[0]).as_dict().items() if key not in _OF_A_CLIP}
    made = QualityRecord(
        **head, video=video, prompts=job.prompts,
        seeds=job.seeds, seed=job.seed, reference=job.reference.name, contenders=contenders, notes=notes,
    )  # fmt: skip
    return made, pairs(job, screen, clips[job.contenders[0].name])


def encode(job: QualityJob, note: Callable[[str], None]) -> dict[str, list[Tensor]]:
    """For each prompt what a `Denoiser` reads: its embedding and, with guidance, the negative prompt's."""

    def watch(event: Event) -> None:
        if isinstance(event, Notice) and not event.detail:
            note(event.text)

    events = pipeline.encode_prompts(job.prompts, [job.settings.negative], job.model, job.target)
    *texts, negative = finish(events, watch)
    return {prompt: [text, negative][: job.settings.branches] for prompt, text in zip(job.prompts, texts, strict=True)}


def key(job: QualityJob, transformer: WanTransformer) -> dict[str, object]:
    """All that the clips of every contender depend on; also whether both guidance branches run in one batch, which a
    clip's last bits depend on, and which itself depends on the memory that is free."""
    torch.cuda.empty_cache()
    return {
        **journals.surroundings(job.model, transformer.fingerprint(), job.target),
        "version": _VERSION,
        "settings": asdict(job.settings),
        "together": both_fit(transformer, job.settings, job.target.device),
    }


def render(
    job: QualityJob,
    one: Ours,
    take: Take,
    transformer: WanTransformer,
    texts: list[Tensor],
    journal: Journal,
    watch: Watch,
) -> None:
    """The final latents of a clip, into the journal."""
    name = job.piece("clip", one, take)
    if (kept := journal.get(name)) is None:
        torch.cuda.empty_cache()  # else what the last clip left seems taken, when it is asked what fits
        plan = job.outlines[one.name].plan
        assert plan is not None
        denoiser = Denoiser(transformer, job.settings, texts, job.target.device)
        with one.running():
            for moment in denoiser.run(denoiser.noise(take.seed), plan.steps):
                latents = moment.latents
                watch(Done(1))
        kept = journal.put(name, latents=latents)
    else:
        watch(Done(job.settings.steps))
    # For the others it is a result.
    if one is job.reference and not kept["latents"].isfinite().all():
        hint = None if job.target.dtype == torch.float32 else "try --dtype fp32"
        raise RenderError(f"the reference, {one.name}, gave values that are not finite", hint)


class Screen:
    """Clips as frames: decoded where they are needed, one take at a time, and measured once."""

    def __init__(self, job: QualityJob, vae: AutoencoderKLWan, journal: Journal, lpips: Lpips | None, weights: str):
        self._weights = weights
        self._job, self._vae, self._journal, self._lpips = job, vae, journal, lpips
        self._network = judge.load_network() if job.judged else None
        self._take: Take | None = None
        self._frames: dict[str, np.ndarray] = {}

    def latents(self, one: Ours, take: Take) -> Tensor:
        kept = self._journal.get(self._job.piece("clip", one, take))
        if kept is None:
            raise RenderError("a clip that was rendered is gone", hint="run the same command again")
        return kept["latents"]

    def frames(self, one: Ours, take: Take) -> np.ndarray:
        """uint8 [frames, height, width, 3]. Values that are not finite are taken for 0."""
        if take != self._take:
            self._take, self._frames = take, {}
        if one.name not in self._frames:
            latents = zero_nonfinite(self.latents(one, take)).to(self._job.target.device)
            self._frames[one.name] = np.concatenate(list(wan_vae.frames_of(self._vae, latents)))
        return self._frames[one.name]

    def clip(self, one: Ours, take: Take, video: Path | None) -> ClipRecord:
        """What is measured of a clip, which is written to `video`."""
        if video is not None:
            self._write(one, take, video)
        how = self._job.piece("reference", self._job.reference), self._lpips is not None
        name = self._job.piece("found", one, take, *how)
        kept = self._journal.get(name)
        if kept is None:
            told = json.dumps(self._measure(one, take)).encode()
            kept = self._journal.put(name, told=torch.frombuffer(bytearray(told), dtype=torch.uint8))
        found = json.loads(kept["told"].numpy().tobytes())
        near = None if found["fidelity"] is None else Fidelity(**found["fidelity"])
        return ClipRecord(take.prompt, take.seed, near, found["shown"], None if video is None else str(video))

    def _measure(self, one: Ours, take: Take) -> dict[str, Any]:
        near, shown, reference = None, None, self._job.reference
        if one is not reference:
            ours, exact = ((self.latents(each, take), self.frames(each, take)) for each in (one, reference))
            near = asdict(fidelity.between(ours, exact, self._lpips))
        if self._network is not None:
            shown = dict(zip(ASPECTS, self._network.classify(self.frames(one, take)), strict=True))
        return {"fidelity": near, "shown": shown}

    def _write(self, one: Ours, take: Take, path: Path) -> None:
        own, plan = self._job.settings, self._job.outlines[one.name].plan
        assert plan is not None
        plan = replace(plan, request=replace(self._job.request(take), preset=one.preset))
        with VideoWriter(path, (own.width, own.height), own.fps) as writer:
            writer.write(self.frames(one, take))
            writer.finish(plan.about(self._weights))


def pairs(job: QualityJob, screen: Screen, clips: Sequence[ClipRecord]) -> list[Pair]:
    """The first clips and the worst, by the preset (whose clips these are) and by the reference."""
    psnr = [clip.fidelity.psnr_or_inf for clip in clips if clip.fidelity is not None]
    ours, exact = job.contenders[0], job.reference
    names = label(exact.name, job.target.dtype_name), label(ours.name, job.target.dtype_name)
    worst = min(range(len(psnr)), key=psnr.__getitem__)
    found = []
    for number in sorted({*range(min(_PAIRS, len(psnr))), worst}):
        take, which = job.takes[number], f"clip {number + 1} of {len(psnr)}"
        if number == worst and len(psnr) > 1:
            which += f", the one furthest from {names[0]}"
        frames = screen.frames(exact, take), screen.frames(ours, take)
        found.append(Pair(take.prompt, psnr[number], *frames, names, which))
    return found


def contender(name: str, outline: Outline, clips: list[ClipRecord], target: Target) -> QualityContender:
    """One contender; the reference's clips have no fidelity."""
    near = [clip.fidelity for clip in clips if clip.fidelity is not None]
    return QualityContender(
        **record.who(name, outline, target),
        fidelity={key: summary([getattr(one, key) for one in near], key) for key in MEASURES} if near else None,
        identical=sum(one.identical for one in near) if near else None,
        nonfinite=sum(one.nonfinite > 0 for one in near) if near else None,
        clips=clips,
        adherence=adherence(clips),
    )


def summary(values: Sequence[float | None], measure: str) -> dict[str, float] | None:
    """Mean, half its 95 % interval and the worst, over the clips that have a value; None where no clip has one. The
    interval is left out where only one clip has a value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, ci95 = metrics.mean_ci95(known)
    return {"mean": mean, **({} if ci95 is None else {"ci95": ci95}), "worst": MEASURES[measure](known)}


def adherence(clips: Sequence[ClipRecord]) -> dict[str, list[int]] | None:
    """For each aspect, how many clips show what their prompt says, of how many; None where nobody judged."""
    shown = [clip.shown for clip in clips if clip.shown is not None]
    if len(shown) < len(clips):
        return None
    seen = [(one["subject"], one["motion"], one["scene"]) for one in shown]
    return {aspect: list(told) for aspect, told in judge.score(seen, [clip.prompt for clip in clips]).items()}
