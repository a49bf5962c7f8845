"""Text, and perhaps an image, to video: what is loaded when, what runs, and what is told to whoever watches.

`generate` is an iterator of events. It owns the order of things: a component is loaded when its turn comes and
freed before the next one, because each of the two large ones may need all the memory there is; `residence` says
where it does not. Several videos share each load.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
from torch import OutOfMemoryError, Tensor

from fpsgen import conditioning, experts, files, formats, machine, readiness, residence, texts, unfinished
from fpsgen.errors import RenderError, UsageError, option
from fpsgen.events import Branches, Denoised, Event, Frames, Notice, Run, Stage, Step, VideoFailed, Written
from fpsgen.formats import PLAIN, Encoding
from fpsgen.preview import Previews
from fpsgen.printable import printable
from fpsgen.ranks import Ranks
from fpsgen.request import Request, VideoPlan, resolve
from fpsgen.sampling import Denoiser, State, not_finite, zero_nonfinite
from fpsgen.settings import Offload
from fpsgen.several_gpus import ALONE, check_done, handed, laid_out, part_of, sent, told_of
from fpsgen.target import Target
from fpsgen.timing import Timings, of_all, of_one
from fpsgen.unfinished import Unfinished
from fpsgen.video import VideoWriter, check_path, write_picture
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.conditions import Conditions
from fpsgen.wan.graphs import Graphs, why_not
from fpsgen.wan.text_encoder import KnownTexts
from fpsgen.wan.transformer import WanTransformer
from fpsgen.wan.vae import VAE
from fpsgen.weights.load import fingerprint, load_vae
from fpsgen.weights.models import Model


@dataclass(eq=False)
class Rendering:
    """One video on its way. texts: embeddings of its prompt and, with guidance, of its negative one, on the CPU;
    image: what its model is given beside the noisy latents; kept: on the disk, if it is; state: None before the first
    step and after the last frame; about: what its comment says; fault: what ended it, while others go on; group: the
    processes that render it."""

    plan: VideoPlan
    timings: Timings
    texts: Sequence[Tensor]
    image: Conditions | None
    number: int
    kept: Unfinished | None = None
    previews: Previews | None = None
    state: State | None = None
    about: dict[str, Any] = field(default_factory=dict)
    fault: RenderError | None = None
    group: Ranks = ALONE


def generate(
    requests: Sequence[Request],
    model: Model,
    target: Target,
    timings: Sequence[Timings] = (),
    accept: bool = False,
    known: Callable[[], KnownTexts] | None = None,
    decode_in_bf16: bool = False,
    resume: bool | None = None,
    encoding: Encoding = PLAIN,
    group: Ranks = ALONE,
    offload: Offload = "auto",
) -> Generator[Event, None, None]:
    """Make a video of each request, yielding events on the way; timings: filled in, one for each video. What all videos
    wait for, such as a load, counts in the time of each. A video is decoded as soon as it is denoised, where the VAE
    fits beside the transformer; else after all of them.

    Raises UsageError before anything loads when settings or a preset do not fit a video, or when one of several outputs
    cannot be written, and RenderError when a result would not be a video of its prompt; of several videos the others go
    on, and an event says so. accept: go on after a step whose latents are not finite; these are 0 in the video
    then. known: opens embeddings of earlier runs. decode_in_bf16: on devices that are quick in it, where
    frames are as good (`vae.frames_of`). resume: whether videos that are not complete go on from the state that lies
    beside them, which each step renews; None: nothing is kept there. encoding: how the files are written. group: the
    processes that render each video together; the first one reads texts and images, and writes. offload: where the
    transformer's blocks are (`residence`).
    """
    if not requests:
        return
    encoding.check()
    for request in requests:
        encoding.check_fits(request.output, request.settings.frames, request.settings.fps)
    if len(requests) > 1:
        if encoding.last_frame_to:
            told = f"{option('last_frame_to', encoding.last_frame_to)} is for one video, and there are {len(requests)}"
            raise UsageError(told, hint="leave it out, or make one video at a time")
        for request in requests:
            if not formats.is_folder(request.output):
                files.check_place(request.output, "video.mp4")
        for path in {(one.output.parent, one.output.suffix): one.output for one in requests}.values():
            check_path(path)  # which tries ffmpeg
    clocks = [*timings, *(Timings() for _ in requests[len(timings) :])]
    yield Stage("load", "text encoder")
    with of_all(clocks, "load"):
        plans = [resolve(request, model, target) for request in requests]
        kept = [None if resume is None else Unfinished(plan, resume, group.world) for plan in plans]
        unfinished.check_room(plans)
        for plan in plans:
            laid_out(plan, group)
        machine.reset_peak(target.device)
        embeddings = known() if known else None
        shown = {each: each.frames() for each in map(conditioning.shown, plans) if each}
    for own, clock in zip(kept, clocks, strict=True):
        if own:
            yield from own.notices()
            clock.steps.extend(own.seconds)
    embedded: Sequence[Sequence[Tensor]] = [()] * len(plans)
    left = any(own is None or own.done < len(plan.steps) for own, plan in zip(kept, plans, strict=True))
    if left and group.is_first:
        embedded = yield from texts.encode(plans, clocks, embeddings)
    seen: dict[conditioning.Shown, Conditions] = {}
    if shown and left and group.is_first:
        seen = yield from conditioning.look(shown, model, target, partial(of_all, clocks))
    if group.world > 1:
        check_done([own.done if own else 0 for own in kept], group)
        if left:
            embedded, seen = handed(group, plans, embedded, shown, seen)
    given = [seen.get(each) if each else None for each in map(conditioning.shown, plans)]
    videos = [Rendering(*of, number) for number, of in enumerate(zip(plans, clocks, embedded, given, strict=True))]
    previews = Previews(encoding.preview) if encoding.preview else None
    for video, own in zip(videos, kept, strict=True):
        video.kept, video.group = own, group
        video.previews = previews if group.is_first else None
    decoder = Decoder(videos, decode_in_bf16, encoding)
    yield from _denoise_all(videos, accept, decoder, offload)
    if previews:
        previews.close()
    for video in videos:
        if decoder.waits(video):
            machine.release()  # what others have left, which would seem to lack
            if video is not videos[-1]:
                yield Run(video.plan.request.prompt, video.number + 1, len(videos))
        yield from decoder.decode(video)


class Decoder:
    """The VAE, loaded when the first video needs it; each video is decoded once.

    decode_in_bf16, encoding: as `generate` has them.
    """

    def __init__(self, videos: Sequence[Rendering], decode_in_bf16: bool, encoding: Encoding):
        target, self._encoding = videos[0].plan.target, encoding
        self._videos, self._left = videos, {video.number for video in videos if video.group.is_first}
        self._in_bf16 = decode_in_bf16 and target.may_decode_in_bf16
        self._vae: VAE | None = None
        self._rounded: VAE | None = None

    def has_room(self, video: Rendering) -> bool:
        """Whether a video that is denoised may be decoded while the transformer is still in memory, because others
        wait for that."""
        machine.release()  # what its steps have left, which would seem to lack
        copies = 0 if self._vae is not None else 2 if self._in_bf16 else 1
        return residence.vae_fits_beside(video.plan, copies)

    def waits(self, video: Rendering) -> bool:
        """Whether a video that is denoised is still to be decoded."""
        return video.number in self._left and video.fault is None

    def decode(self, video: Rendering) -> Iterator[Event]:
        """The frames of a video that has its final latents to its file; nothing, where it failed or is there."""
        if not self.waits(video):
            return
        self._left.discard(video.number)
        if self._vae is None:
            yield Stage("load", "VAE")
            with of_all([each.timings for each in self._videos if each.number in {video.number, *self._left}], "load"):
                self._vae = load_vae(video.plan.model.checkpoint, video.plan.target.device)
                self._rounded = copy.deepcopy(self._vae).bfloat16() if self._in_bf16 else None
        notes: list[str] = []
        assert video.state is not None
        with of_one([each.timings for each in self._videos], video.number):
            tile = residence.vae_tile(video.plan, machine.free_bytes(video.plan.target.device))
            if tile:
                yield Notice(residence.told_of_tiles(video.plan, tile))
            latents = zero_nonfinite(video.state.latents.to(video.plan.target.device))
            pieces = wan_vae.frames_of(self._vae, latents, self._rounded, notes.append, tile)
            events = decode(video.plan, pieces, video.timings, video.about, notes, self._encoding)
            for event in _or_failed(events, video, self._videos):
                if isinstance(event, Written) and video.kept:
                    video.kept.remove()
                yield event
        video.state, video.texts = None, ()  # of thousands of videos too much


def _denoise_all(
    videos: Sequence[Rendering], accept: bool, decoder: Decoder, offload: Offload
) -> Generator[Event, None, None]:
    """All steps of all videos. One transformer computes its steps of all of them, then makes room for the other one, if
    there are two."""
    plans, clocks = [video.plan for video in videos], [video.timings for video in videos]
    turns = experts.turns(plans, [video.kept.done if video.kept else 0 for video in videos])
    for video in videos:
        if video.kept and (state := video.kept.state()):
            video.state = state
            state.set_aside(len(video.plan.steps))
            if state.step == len(video.plan.steps):
                video.about = video.kept.about() | {"graphs": Graphs.none("an earlier run computed all steps")}
                yield Denoised(state.latents)
    with of_all(clocks, "load"):
        lives = residence.of_transformer(plans, offload, videos[0].group.world)
    if turns:
        yield Notice(f"{lives}", detail=not lives.costs_time)
    with contextlib.ExitStack() as held:
        ahead: experts.Ahead | None = None
        for turn, after in zip_longest(turns, turns[1:]):
            yield Stage("load", turn.words)
            with of_all(clocks, "load"):
                transformer = ahead.take() if ahead else experts.load(turn, plans, lives.home)
                if turn is turns[0]:
                    weights = fingerprint(plans[0].model.checkpoint, transformer)
                    for video in videos:
                        video.about = video.about or (video.kept or video.plan).about(weights)
                        video.about |= {"gpus": video.group.world} if video.group.world > 1 else {}
                if after:
                    way = experts.way_ahead(after, plans, lives.home)
                    ahead = held.enter_context(experts.Ahead(after, plans, way, lives.home))
            if after:
                yield Notice(f"{ahead}", detail=True)
            for video, span in zip(videos, turn.spans, strict=True):
                if span[0] == span[1] or video.fault:
                    continue
                if len(videos) > 1:
                    machine.release()  # what the video before has left, which would seem to lack
                    alone = span == (video.kept.done if video.kept else 0, len(video.plan.steps))
                    title = video.plan.request.prompt + ("" if alone else f", {turn.words}")
                    yield Run(title, video.number + 1, len(videos))
                with of_one(clocks, video.number):
                    yield from _or_failed(_denoise_turn(video, span, transformer, accept), video, videos)
                if len(videos) > 1 and video.state:
                    video.state.set_aside(len(video.plan.steps))
                if after is None and video is not videos[-1] and not video.fault and decoder.has_room(video):
                    yield from decoder.decode(video)
            with of_all([clock for clock in clocks if not clock.total], "load"):
                del transformer
                machine.release()


def _or_failed(events: Iterator[Event], video: Rendering, videos: Sequence[Rendering]) -> Iterator[Event]:
    """The events of a video; of several, one that fails says so, and the others go on. A full GPU of several ends all:
    the other processes still wait for this video, and would take what is sent of the next one for its values."""
    try:
        yield from events
    except (RenderError, OutOfMemoryError) as fault:
        if len(videos) == 1 or (video.group.world > 1 and isinstance(fault, OutOfMemoryError)):
            raise
        if not isinstance(fault, RenderError):
            hint = f"try a smaller {option('res')} or fewer {option('frames')}"
            fault = RenderError("there is not enough memory for this video", hint)
        video.fault = fault.with_traceback(None)  # whose frames hold the transformer
        video.state = None
        yield VideoFailed(video.number + 1, video.fault)


def _denoise_turn(
    video: Rendering, span: tuple[int, int], transformer: WanTransformer, accept: bool
) -> Iterator[Event]:
    """The steps of a video that one transformer computes: from `span`'s first to before its last."""
    plan, (first, end) = video.plan, span
    own, target, weights = plan.request.settings, plan.target, video.about["weights"]
    warned = plan.preset.stranger(weights, plan.model.trained_for)
    if plan.preset.name != plan.model.own_preset:
        warned = warned or plan.preset.surprise(weights, own, plan.model.loras)
    if warned and not first:
        yield Notice(warned)
    with video.timings.stage("denoise"):  # texts become the keys and values of each layer
        streamed = transformer.streamed is not None
        refused = why_not(target.device, target.graphs, plan.backends, video.group.world, streamed)
        graphs = Graphs(transformer, target.device, refused)
        together = video.kept.together(first) if video.kept else None
        embedded = [text.to(target.device) for text in video.texts]
        part = part_of(plan, video.group)
        denoiser = Denoiser(
            transformer, own, embedded, target.device, together, graphs, image=video.image, parallel=part
        )
        state = video.state = video.state or denoiser.begin(plan.noise(), plan.noise)
        state.to(target.device)
    video.about["one_batch"] = denoiser.together if denoiser.branches > 1 else None
    if video.kept:
        yield from video.kept.warn(first, denoiser.together)
    kept = video.kept if video.group.is_first else None
    yield from denoise(plan, denoiser, video.timings, accept, state, end, kept, video.previews)
    yield Notice(f"{graphs}", detail=not (graphs.failed or (target.graphs and graphs.refused)))
    video.about["graphs"] = graphs.as_dict(video.about.get("graphs"))
    if end == len(plan.steps):
        yield Denoised(state.latents)


def denoise(
    plan: VideoPlan,
    denoiser: Denoiser,
    timings: Timings,
    accept: bool,
    state: State,
    end: int | None = None,
    kept: Unfinished | None = None,
    previews: Previews | None = None,
) -> Iterator[Event]:
    """All further steps of a trajectory, or those before step `end`; its state is brought up to date, and kept on the
    disk, if it is to be."""
    yield Stage("denoise")
    if denoiser.parallel is not None:
        own = denoiser.parallel.layout
        yield Notice(told_of(own, sent(plan, own)), detail=True)
    elif denoiser.branches > 1:
        yield Branches(denoiser.together)
    if not state.step:
        yield from readiness.notices(plan)
    yield from readiness.make_ready(plan, timings, denoiser.parallel)
    moments = denoiser.go_on(state, plan.steps, end=end)
    with kept.settled() if kept else contextlib.nullcontext():
        while True:
            before = state.latents
            with timings.stage("denoise"):
                moment = next(moments, None)
            if moment is None:
                break
            timings.steps.append(moment.seconds)
            step = Step(moment.step + 1, len(plan.steps), moment.seconds, moment.finite)
            if kept and step.finite:  # before anybody hears of the step, and may end the run
                yield from kept.keep(state, denoiser.together, timings)
            yield step
            if not step.finite and not accept:
                raise not_finite(plan.target.dtype, _where(plan, denoiser, before, moment.step))
            if previews and step.finite:
                with timings.stage("denoise"):
                    shown = list(previews.after(plan, moment.step, before, moment.velocity))
                yield from shown
    if kept:
        yield from kept.notes()


def _where(plan: VideoPlan, denoiser: Denoiser, latents: Tensor, step: int) -> str:
    """Which step, layer and phase gave values that are not finite. latents: before the step, counted from 0."""
    level, preset = plan.request.settings.noise_levels[step], plan.preset
    phase = preset.phases.index(preset.at(level)) + 1
    first = denoiser.where_not_finite(latents, step, plan.steps[step])
    told = f" at step {step + 1} of {len(plan.steps)}, first {first}"
    return f"{told} (noise level {level:.3f}: phase {phase} of {len(preset.phases)} of preset {printable(preset.name)})"


def decode(
    plan: VideoPlan,
    pieces: Iterator[np.ndarray],
    timings: Timings,
    about: dict,
    notes: Sequence[str] = (),
    encoding: Encoding = PLAIN,
) -> Iterator[Event]:
    """Pieces of frames to the finished file; each goes to the encoder as soon as it is decoded.

    about: what the file's comment says of how it was made; the timings, which end here, are added to it. notes: what
    `pieces` tells on the way. encoding: as `generate` has it.
    """
    yield Stage("decode")
    request, own = plan.request, plan.request.settings
    # File managers that look a third into a video show the last key frame before it: without one of its own the first
    # frame, which is often the pocket model's worst.
    form = ((own.width, own.height), own.fps, request.scale_to, request.may_replace, own.frames // 3)
    about["crf"] = encoding.crf_of(request.output)
    with contextlib.ExitStack() as held:
        with timings.stage("encode"):  # which begins with the encoder's start
            writer = held.enter_context(VideoWriter(request.output, *form, encoding.crf))
        while True:
            with timings.stage("decode"):
                if (frames := next(pieces, None)) is None:
                    break
            with timings.stage("encode"):
                writer.write(frames)
            last = frames[-1]
            yield Frames(writer.frames, own.frames, frames)
        yield from (Notice(note, detail=True) for note in notes)
        with timings.stage("encode"):
            writer.close()
        timings.peak_memory = machine.peak_bytes(plan.target.device)
        timings.stop()
        about["timings"] = timings.as_dict()
        if fault := writer.finish(about):
            yield Notice(f"the video is complete, but does not say how it was made: {fault}")
    yield Written(writer.path, plan, about)
    if encoding.last_frame_to:
        write_picture(last, encoding.last_frame_to, f"{writer.path} is complete, but not its last frame")
