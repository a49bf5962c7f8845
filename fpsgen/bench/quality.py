"""`fpsgen bench quality`: many prompts and seeds by a preset and by others; how near each clip is to the reference's.

The record is what docs/bench.md says of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from fpsgen import assets, machine, pipeline
from fpsgen import journal as journals
from fpsgen.bench import fidelity, perceptual, quality_record
from fpsgen.bench.contenders import Ours, Outline, resolved
from fpsgen.bench.perceptual import Lpips
from fpsgen.bench.record import short
from fpsgen.errors import RenderError, UsageError
from fpsgen.journal import Journal
from fpsgen.metrics import Pair
from fpsgen.pipeline import Event, Notice, Request, Step
from fpsgen.pocket import judge
from fpsgen.pocket.words import ASPECTS
from fpsgen.presets import BF16, label
from fpsgen.seeds import next_seed
from fpsgen.timing import Timings
from fpsgen.video import VideoWriter
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.sizes import Defaults
from fpsgen.wan.transformer import WanTransformer
from fpsgen.watcher import Watcher
from fpsgen.weights.load import load_transformer, load_vae
from fpsgen.weights.models import Model

_PAIRS = 2  # of frames, for the report
_DECODE = {"pocket": 12.0, "wan": 0.5}  # decoding and measuring a clip, in a step's time
_VERSION = 1  # raised where a measure changes its meaning, so that older ones are not taken for new


@dataclass(frozen=True)
class Clip:
    prompt: str
    seed: int


@dataclass(frozen=True)
class Job:
    """What is compared. seeds: of each prompt; seed: of the first clip, each further one counting up. contenders: the
    preset first; reference: the name of one of them. command: for the record."""

    model: Model
    settings: Defaults
    prompts: tuple[str, ...]
    seeds: int
    seed: int
    contenders: tuple[Ours, ...]
    reference: str
    device: torch.device
    dtype: torch.dtype
    text_dtype: torch.dtype
    command: list[str]

    @cached_property
    def clips(self) -> list[Clip]:
        every = [prompt for prompt in self.prompts for _ in range(self.seeds)]
        return [Clip(prompt, next_seed(self.seed, number)) for number, prompt in enumerate(every)]

    @cached_property
    def outlines(self) -> dict[str, Outline]:
        """The outline of each contender; UsageError where a preset does not fit the video."""
        request = self.request(self.clips[0])
        return {one.name: one.outline(request, self.model, self.device) for one in self.contenders}

    def request(self, clip: Clip) -> Request:
        return Request(prompt=clip.prompt, seed=clip.seed, output=Path(), **asdict(self.settings))

    def contender(self, name: str) -> Ours:
        return next(one for one in self.contenders if one.name == name)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a contender's clips depend on besides the journal's key. Its name is in it: one that computes what
        another does is made on its own all the same, or it would be compared with itself."""
        told = {name: repr((name, own.plans, own.backends)) for name, own in self.outlines.items()}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in told.items()}

    def piece(self, kind: str, one: Ours, clip: Clip, *more: object) -> str:
        """A name in the journal."""
        told = repr((self.identity[one.name], clip, *more))
        return f"{kind}-{hashlib.sha256(told.encode()).hexdigest()[:24]}"

    @property
    def judged(self) -> bool:
        """Whether the pocket model's judge can tell what the clips show."""
        own = self.settings
        return self.model.card is not None and (own.frames, own.height, own.width) == judge.SHAPE

    @property
    def decode(self) -> float:
        return _DECODE["pocket" if self.model.card else "wan"]

    @property
    def work(self) -> float:
        """Steps of both guidance branches, or their time."""
        return len(self.clips) * len(self.contenders) * (self.settings.steps + self.decode)


def line_up(
    preset: str, names: Sequence[str], model: Model, settings: Defaults, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Ours, ...], str]:
    """The contenders, the preset first, and the reference's name: bf16 where it is among `names`, else their first.

    UsageError where there is none of a name, or it cannot run here.
    """
    if preset in names:  # bf16, too: here both would be torch's own choice
        raise UsageError(f"--preset {preset} is compared with itself", hint="name another with --compare")
    found = []
    for one in resolved(preset, names, model, (settings.width, settings.height), device, dtype):
        if not isinstance(one, Ours):
            hint = f"fpsgen bench --compare {one.name} makes one video by it"
            raise UsageError(f"--compare {one.name}: bench quality compares presets and kernels", hint)
        found.append(one)
    return tuple(found), BF16.name if BF16.name in names else names[0]


@torch.inference_mode()
def run(
    job: Job, watcher: Watcher, videos: dict[str, list[Path]] | None = None, fresh: bool = False
) -> tuple[dict[str, Any], list[Pair]]:
    """The record, and frames of the first clips and of the worst by the preset and by the reference.

    videos: for each contender where its clips are written to. Every clip and what is measured of it is kept, and
    found again by the next run, whatever that compares, unless `fresh`. UsageError where a preset does not fit, before
    anything loads; RenderError where the reference's values are not finite.
    """
    begin, outlines = machine.provenance(job.command), job.outlines  # of the code that is running
    cache = assets.cache("bench")
    journals.check(cache)
    watcher.total(job.work)
    watcher.phase("load")
    notes = Notes(watcher)
    lpips, why_not = perceptual.load(job.device)
    if why_not:
        notes.warn(why_not)
    if job.model.card and not job.judged:
        notes.warn("what the clips show is not judged: that takes the pocket model's own size and frames")
    texts = encode(job, notes)
    transformer = load_transformer(job.model.checkpoint, job.device, job.dtype)
    warn_of_presets(job, transformer.fingerprint(), notes)
    journal = Journal(cache, key(job, transformer))
    if fresh:
        journal.forget()
    watcher.phase("denoise")
    render(job, transformer, texts, journal, watcher)
    del transformer
    machine.release()
    watcher.phase("decode")
    screen = Screen(job, load_vae(job.model.checkpoint, job.device), journal, lpips)
    made, pairs = look(job, screen, videos, watcher)
    contenders = [quality_record.contender(name, outlines[name], made[name], short(job.dtype)) for name in outlines]
    warn_of_clips(contenders, notes)
    return {**quality_record.facts(begin, job), "contenders": contenders, "notes": notes.told}, pairs


class Notes:
    """What is to be known besides: told at once, and in the record."""

    def __init__(self, watcher: Watcher):
        self.told: list[str] = []
        self._watcher = watcher

    def warn(self, text: str) -> None:
        self.told.append(text)
        self._watcher.warn(text)

    def watch(self, event: Event) -> None:
        if isinstance(event, Notice) and not event.detail and event.text not in self.told:
            self.warn(event.text)


def warn_of_presets(job: Job, weights: str, notes: Notes) -> None:
    own = job.settings
    for one in job.contenders:
        if surprise := one.preset.surprise(weights, own.width, own.height, own.frames):
            notes.warn(surprise)


def warn_of_clips(contenders: list[dict[str, Any]], notes: Notes) -> None:
    for one in contenders:
        if one["nonfinite"]:
            notes.warn(f"{one['name']}: {one['nonfinite']} clips have latents that are not finite, taken for 0")


def encode(job: Job, notes: Notes) -> dict[str, list[Tensor]]:
    """For each prompt what `pipeline.denoise` reads: its embedding and, with guidance, the negative prompt's."""
    every = [*job.prompts, job.settings.negative]
    events = pipeline.encode_prompts(every, job.model, job.device, job.text_dtype, Timings())
    *texts, negative = pipeline.finish(events, notes.watch)
    others = [] if job.settings.guidance == 1 else [negative]
    return {prompt: [text, *others] for prompt, text in zip(job.prompts, texts, strict=True)}


def key(job: Job, transformer: WanTransformer) -> dict[str, object]:
    """All that the clips of every contender depend on; also whether both guidance branches run in one batch, which a
    clip's last bits depend on, and which itself depends on the memory that is free."""
    torch.cuda.empty_cache()
    tokens = prod(job.model.config.grid(job.request(job.clips[0]).latent_shape))
    return {
        **journals.surroundings(job.model, transformer.fingerprint(), job.device, job.dtype, job.text_dtype),
        "version": _VERSION,
        "settings": asdict(job.settings),
        "together": pipeline.both_fit(transformer, tokens, job.device),
    }


def render(
    job: Job, transformer: WanTransformer, texts: dict[str, list[Tensor]], journal: Journal, watcher: Watcher
) -> None:
    """The final latents of every clip by every contender, into the journal."""

    def watch(event: Event) -> None:
        if isinstance(event, Step):
            watcher.advance(1)

    for clip in job.clips:
        for one in job.contenders:
            name = job.piece("clip", one, clip)
            if (kept := journal.get(name)) is not None:
                watcher.advance(job.settings.steps)
            else:
                torch.cuda.empty_cache()  # else what the last clip left seems taken, when it is asked what fits
                plans = job.outlines[one.name].plans
                assert plans is not None
                events = pipeline.denoise(
                    job.request(clip), transformer, plans, texts[clip.prompt], job.device, Timings(), tolerant=True
                )
                with one.running():
                    kept = journal.put(name, latents=pipeline.finish(events, watch))
            # For the others it is a result.
            if one.name == job.reference and not kept["latents"].isfinite().all():
                hint = None if job.dtype == torch.float32 else "try --dtype fp32"
                raise RenderError(f"the reference, {one.name}, gave values that are not finite", hint)


def look(
    job: Job, screen: Screen, videos: dict[str, list[Path]] | None, watcher: Watcher
) -> tuple[dict[str, list[dict[str, Any]]], list[Pair]]:
    """What is measured of every clip, by contender, and frames of the first clips and of the worst."""
    made: dict[str, list[dict[str, Any]]] = {one.name: [] for one in job.contenders}
    own, pairs = made[job.contenders[0].name], list[Pair]()
    for number, clip in enumerate(job.clips):
        for one in job.contenders:
            video = None if videos is None else videos[one.name][number]
            if video is not None:
                screen.write(one, clip, video)
            told = {**asdict(clip), **screen.measured(one, clip), "video": None if video is None else str(video)}
            made[one.name].append(told)
            watcher.advance(job.decode)
        if number < _PAIRS:
            pairs.append(screen.pair(number, own[number]))
    psnr = [psnr_of(told) for told in own]
    if (worst := min(range(len(own)), key=psnr.__getitem__)) >= _PAIRS:
        pairs.append(screen.pair(worst, own[worst]))
    if len(own) > 1:
        at = min(worst, _PAIRS)
        pairs[at] = replace(pairs[at], which=f"{pairs[at].which}, the one furthest from {pairs[at].names[0]}")
    return made, pairs


def psnr_of(told: dict[str, Any]) -> float:
    """The PSNR of a clip, infinite where its frames are the reference's."""
    return inf if told["fidelity"]["identical"] else told["fidelity"]["psnr"]


class Screen:
    """Clips as frames: decoded where they are needed, one clip at a time, and measured once."""

    def __init__(self, job: Job, vae: AutoencoderKLWan, journal: Journal, lpips: Lpips | None):
        self._job, self._vae, self._journal, self._lpips = job, vae, journal, lpips
        self._network = judge.load_network() if job.judged else None
        self._reference = job.contender(job.reference)
        self._clip: Clip | None = None
        self._frames: dict[str, np.ndarray] = {}

    def frames(self, one: Ours, clip: Clip) -> np.ndarray:
        """uint8 [frames, height, width, 3]. Values that are not finite are taken for 0."""
        if clip != self._clip:
            self._clip, self._frames = clip, {}
        if one.name not in self._frames:
            finite = self._latents(one, clip).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            self._frames[one.name] = np.concatenate(list(wan_vae.frames_of(self._vae, finite.to(self._job.device))))
        return self._frames[one.name]

    def measured(self, one: Ours, clip: Clip) -> dict[str, Any]:
        """The clip's fidelity, and what the judge sees in it, as the record has them."""
        how = self._job.identity[self._job.reference], self._lpips is not None
        name = self._job.piece("found", one, clip, *how)
        kept = self._journal.get(name)
        if kept is None:
            told = json.dumps(self._measure(one, clip)).encode()
            kept = self._journal.put(name, told=torch.frombuffer(bytearray(told), dtype=torch.uint8))
        return json.loads(kept["told"].numpy().tobytes())

    def pair(self, number: int, told: dict[str, Any]) -> Pair:
        """The clip by the reference and by the preset. told: what was measured of it."""
        clips, own, dtype = self._job.clips, self._job.contenders[0], short(self._job.dtype)
        names = label(self._reference.name, dtype), label(own.name, dtype)
        exact, ours = (self.frames(one, clips[number]) for one in (self._reference, own))
        which = f"clip {number + 1} of {len(clips)}"
        return Pair(clips[number].prompt, psnr_of(told), exact, ours, names, which)

    def write(self, one: Ours, clip: Clip, path: Path) -> None:
        """The clip as a video."""
        job = self._job
        about = pipeline.describe(
            replace(job.request(clip), preset=one.preset), job.model, job.device, job.dtype, job.text_dtype
        )
        with VideoWriter(path, (job.settings.width, job.settings.height), job.settings.fps) as writer:
            writer.write(self.frames(one, clip))
            writer.finish(about)

    def _measure(self, one: Ours, clip: Clip) -> dict[str, Any]:
        near, shown = None, None
        if one is not self._reference:
            ours, exact = ((self._latents(each, clip), self.frames(each, clip)) for each in (one, self._reference))
            near = asdict(fidelity.between(ours, exact, self._lpips))
        if self._network is not None:
            shown = dict(zip(ASPECTS, self._network.classify(self.frames(one, clip)), strict=True))
        return {"fidelity": near, "shown": shown}

    def _latents(self, one: Ours, clip: Clip) -> Tensor:
        kept = self._journal.get(self._job.piece("clip", one, clip))
        if kept is None:
            raise RenderError("a clip that was rendered is gone", hint="run the same command again")
        return kept["latents"]
