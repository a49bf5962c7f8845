"""`fpsgen bench quality`: many prompts and seeds by a preset and by others; how near each clip is to the reference's.

Every clip and what is measured of it is kept, and found again by the next run, whatever that compares.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsgen import assets, experts, machine, metrics
from fpsgen import journal as journals
from fpsgen.bench import fidelity, perceptual, vbench
from fpsgen.bench.contenders import VideoContender
from fpsgen.bench.lineup import LineUp
from fpsgen.bench.perceptual import Lpips
from fpsgen.bench.record import ClipMean, ClipRecord, MeanFidelity, QualityContender, QualityRecord
from fpsgen.errors import RenderError
from fpsgen.events import Done, Notice, Stage, Watch, Work, finish
from fpsgen.journal import Journal
from fpsgen.metrics import Pair
from fpsgen.pocket import judge
from fpsgen.pocket.words import ASPECTS
from fpsgen.sampling import Denoiser, both_fit, not_finite, zero_nonfinite
from fpsgen.seeds import next_seed
from fpsgen.texts import encode_prompts
from fpsgen.values import from_dict
from fpsgen.video import VideoWriter
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.transformer import WanTransformer
from fpsgen.wan.vae import VAE
from fpsgen.weights.load import fingerprint, load_vae

# The measures that are averaged over clips, and which of several values is the worst.
MEASURES: dict[str, Callable[[Sequence[float]], float]] = {
    "latent_cosine": min, "latent_error": max, "psnr": min, "ssim": min, "lpips": max,
}  # fmt: skip
_VERSION = 2  # raised where a measure changes its meaning, so that older ones are not taken for new

Note = Callable[[str], None]  # tells something at once, and puts it into the record


@dataclass(frozen=True)
class Take:
    """Every contender makes a clip of it."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class QualityJob:
    """What is compared: contenders of fpsgen's own. seeds: of each prompt; seed: of the first clip, each further one
    counting up. command: for the record."""

    line_up: LineUp
    prompts: tuple[str, ...]
    seeds: int
    seed: int
    command: list[str]

    @cached_property
    def takes(self) -> list[Take]:
        each = [prompt for prompt in self.prompts for _ in range(self.seeds)]
        return [Take(prompt, next_seed(self.seed, number)) for number, prompt in enumerate(each)]

    @property
    def judged(self) -> bool:
        """Whether the pocket model's judge can tell what the clips show."""
        own = self.line_up.settings
        return self.line_up.plan.model.pocket is not None and (own.frames, own.height, own.width) == judge.SHAPE

    @property
    def decoding(self) -> float:
        """The work of decoding and measuring a clip, in denoising steps."""
        return 12.0 if self.line_up.plan.model.pocket else 0.5


@torch.inference_mode()
def run(
    job: QualityJob,
    watch: Watch,
    videos: Mapping[str, Sequence[Path]] | None = None,
    fresh: bool = False,
    program: Path | None = None,
) -> tuple[QualityRecord, list[Pair]]:
    """The record, and frames of the first clips and of the worst by the preset and by the reference.

    videos: for each contender where its clips are written to; program: VBench's, to judge them. fresh: render and
    measure again what is kept. RenderError where the reference's values are not finite.
    """
    line_up, model, target = job.line_up, job.line_up.plan.model, job.line_up.plan.target
    head, cache = line_up.facts(job.command), assets.cache("bench")
    journals.check(cache)
    watch(Work(len(job.takes) * sum(one.settings.steps + job.decoding for one in line_up.contenders)))
    watch(Stage("load"))
    notes: list[str] = []

    def note(text: str | None) -> None:
        if text and text not in notes:
            notes.append(text)
            watch(Notice(text))

    lpips, why_not = perceptual.load(target.device)
    note(why_not)
    if model.pocket and not job.judged:
        note("what the clips show is not judged: the judge knows only the pocket model's own size and frames")
    texts = encode(job, note)
    transformer, low = experts.load_all(model, target)
    weights = fingerprint(model.checkpoint, transformer)
    for one in line_up.contenders:
        note(one.plan.preset.surprise(weights, one.settings, model.loras))
    journal = Journal(cache, key(job, transformer, weights))
    if fresh:
        journal.forget()
    watch(Stage("denoise"))
    render(job, transformer, low, texts, journal, watch)
    del transformer, low
    machine.release()
    watch(Stage("decode"))
    screen = Screen(job, load_vae(model.checkpoint, target.device), journal, lpips, weights)
    clips: dict[str, list[ClipRecord]] = {one.name: [] for one in line_up.contenders}
    for number, take in enumerate(job.takes):
        for one in line_up.contenders:
            clips[one.name].append(screen.clip(one, take, None if videos is None else videos[one.name][number]))
            watch(Done(job.decoding))
    scores = {}
    if program is not None and videos is not None:
        watch(Stage("vbench"))
        scores = {name: vbench.evaluate(program, paths[0].parent, watch, note) for name, paths in videos.items()}
    contenders = [contender(one, clips[one.name], scores.get(one.name)) for one in line_up.contenders]
    for told in contenders:
        if told.nonfinite:
            note(f"{told.name}: {told.nonfinite} clips have latents that are not finite, taken for 0")
    head["video"] = replace(head["video"], prompt=None, seed=None)  # each clip has its own
    made = QualityRecord(
        **head, prompts=job.prompts, seeds=job.seeds, seed=job.seed, contenders=contenders, notes=notes
    )
    return made, pairs(job, screen, clips[line_up.contenders[0].name])


def encode(job: QualityJob, note: Note) -> dict[str, list[Tensor]]:
    """For each prompt what a `Denoiser` reads: its embedding and, with guidance, the negative prompt's."""
    plan, own = job.line_up.plan, job.line_up.settings
    events = encode_prompts(job.prompts, [own.negative], plan.model, plan.target)
    *texts, negative = finish(events, lambda event: note(event.text) if isinstance(event, Notice) else None)
    return {prompt: [text, negative][: own.branches] for prompt, text in zip(job.prompts, texts, strict=True)}


def key(job: QualityJob, transformer: WanTransformer, weights: str) -> dict[str, object]:
    """All that the clips of every contender depend on; also whether both guidance branches run in one batch, which a
    clip's last bits depend on, and which itself depends on the memory that is free."""
    plan, own = job.line_up.plan, job.line_up.settings
    torch.cuda.empty_cache()
    return {
        **journals.surroundings(plan.model, weights, plan.target), "version": _VERSION,
        "settings": asdict(own), "together": both_fit(transformer, own, plan.target.device),
    }  # fmt: skip


def piece(kind: str, one: VideoContender, *more: object) -> str:
    """A name in the journal, of all that a clip depends on besides the journal's key. The contender's name is in it:
    one that computes what another does is made on its own all the same, or it would be compared with itself."""
    told = f"({one.identity}{''.join(f', {value!r}' for value in more)})"
    return f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:24]}"


def render(
    job: QualityJob,
    transformer: WanTransformer,
    low: WanTransformer | None,
    texts: dict[str, list[Tensor]],
    journal: Journal,
    watch: Watch,
) -> None:
    """The final latents of every clip by every contender, into the journal. low: the low-noise one of two experts."""
    device = job.line_up.plan.target.device
    for take in job.takes:
        for one in job.line_up.contenders:
            if (kept := journal.get(piece("clip", one, take))) is not None:
                watch(Done(one.settings.steps))
            else:
                torch.cuda.empty_cache()  # else what the last clip left seems taken, when it is asked what fits
                denoiser = Denoiser(transformer, one.settings, texts[take.prompt], device, low=low)
                latents = denoiser.noise(take.seed)
                with one.running():
                    for moment in denoiser.run(latents, one.steps, fresh=functools.partial(denoiser.noise, take.seed)):
                        latents = moment.latents
                        watch(Done(1))
                del denoiser  # what it holds would seem taken, too
                kept = journal.put(piece("clip", one, take), latents=latents)
            # For the others it is a result.
            if one is job.line_up.reference and not kept["latents"].isfinite().all():
                raise not_finite(transformer.dtype, who=f"the reference, {one.name},")


class Screen:
    """Clips as frames: decoded where they are needed, one take at a time, and measured once. weights: the
    transformer's fingerprint."""

    def __init__(self, job: QualityJob, vae: VAE, journal: Journal, lpips: Lpips | None, weights: str):
        self._vae, self._journal, self._lpips, self._weights = vae, journal, lpips, weights
        self._reference = job.line_up.reference
        self._network = judge.load_network() if job.judged else None
        self._take: Take | None = None
        self._frames: dict[str, np.ndarray] = {}

    def latents(self, one: VideoContender, take: Take) -> Tensor:
        kept = self._journal.get(piece("clip", one, take))
        if kept is None:
            raise RenderError("a clip that was rendered is no longer in the cache", hint="run the same command again")
        return kept["latents"]

    def frames(self, one: VideoContender, take: Take) -> np.ndarray:
        """uint8 [frames, height, width, 3]. Values that are not finite are taken for 0."""
        if take != self._take:
            self._take, self._frames = take, {}
        if one.name not in self._frames:
            latents = zero_nonfinite(self.latents(one, take)).to(one.plan.target.device)
            self._frames[one.name] = np.concatenate(list(wan_vae.frames_of(self._vae, latents)))
        return self._frames[one.name]

    def clip(self, one: VideoContender, take: Take, video: Path | None) -> ClipRecord:
        """What is measured of a clip, which is written to `video`."""
        if video is not None:
            plan, own = replace(one.plan, request=replace(one.plan.request, **asdict(take))), one.settings
            with VideoWriter(video, (own.width, own.height), own.fps) as writer:
                writer.write(self.frames(one, take))
                writer.finish(plan.about(self._weights))
        name = piece("found", one, take, piece("reference", self._reference), self._lpips is not None)
        kept = self._journal.get(name)
        if kept is None:
            told = json.dumps(self._measure(one, take)).encode()
            kept = self._journal.put(name, told=torch.frombuffer(bytearray(told), dtype=torch.uint8))
        found = json.loads(kept["told"].numpy().tobytes())
        return from_dict(ClipRecord, {**asdict(take), **found, "video": None if video is None else str(video)})

    def _measure(self, one: VideoContender, take: Take) -> dict[str, Any]:
        near, shown = None, None
        if one is not self._reference:
            ours, exact = ((self.latents(each, take), self.frames(each, take)) for each in (one, self._reference))
            near = asdict(fidelity.between(ours, exact, self._lpips))
        if self._network is not None:
            shown = dict(zip(ASPECTS, self._network.classify(self.frames(one, take)), strict=True))
        return {"fidelity": near, "shown": shown}


def pairs(job: QualityJob, screen: Screen, clips: Sequence[ClipRecord]) -> list[Pair]:
    """The first clips and the worst, by the preset (whose clips these are) and by the reference."""
    psnr = [clip.fidelity.psnr_or_inf for clip in clips if clip.fidelity is not None]
    ours, exact = job.line_up.contenders[0], job.line_up.reference
    found = []
    for number, which in metrics.shown_clips(psnr, exact.label):
        take = job.takes[number]
        frames = screen.frames(exact, take), screen.frames(ours, take)
        found.append(Pair(take.prompt, psnr[number], *frames, (exact.label, ours.label), which))
    return found


def contender(one: VideoContender, clips: list[ClipRecord], scores: dict[str, float | None] | None) -> QualityContender:
    """One contender; the reference's clips have no fidelity."""
    near = [clip.fidelity for clip in clips if clip.fidelity is not None]
    means: dict[str, Any] = {name: summary([getattr(each, name) for each in near], MEASURES[name]) for name in MEASURES}
    return QualityContender(
        **vars(one.about()), clips=clips, adherence=adherence(clips), vbench=scores,
        fidelity=MeanFidelity(**means) if near else None,
        identical=sum(each.identical for each in near) if near else None,
        nonfinite=sum(each.nonfinite > 0 for each in near) if near else None,
    )  # fmt: skip


def summary(values: Sequence[float | None], worst: Callable[[Sequence[float]], float]) -> ClipMean | None:
    """None where no clip has a value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, ci95 = metrics.mean_ci95(known)
    return ClipMean(mean=mean, ci95=ci95, worst=worst(known))


def adherence(clips: Sequence[ClipRecord]) -> dict[str, tuple[int, ...]] | None:
    """For each aspect, how many clips show what their prompt says, of how many; None where nobody judged."""
    shown = [clip.shown for clip in clips if clip.shown is not None]
    if len(shown) < len(clips):
        return None
    seen = [(one["subject"], one["motion"], one["scene"]) for one in shown]
    return dict(judge.score(seen, [clip.prompt for clip in clips]))
