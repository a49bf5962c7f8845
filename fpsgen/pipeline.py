"""Text, and perhaps an image, to video: what is loaded when, what runs, and what is told to whoever watches.

`generate` is an iterator of events. It owns the order of things and the memory policy: a component is
loaded when its turn comes and freed before the next one, because each of the two large ones may need
all the memory there is. Several videos share each load.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import groupby, zip_longest
from typing import Any

import numpy as np
from torch import Tensor

from fpsgen import conditioning, experts, machine, solvers
from fpsgen.attention import door
from fpsgen.attention.door import Choice
from fpsgen.errors import option
from fpsgen.events import Branches, Denoised, Event, Frames, Notice, Run, Stage, Step, Written
from fpsgen.pocket import reading
from fpsgen.presets import file
from fpsgen.printable import printable
from fpsgen.request import Request, VideoPlan, resolve
from fpsgen.sampling import Denoiser, State, not_finite, zero_nonfinite
from fpsgen.target import Target
from fpsgen.timing import Timings
from fpsgen.video import VideoWriter, check_path
from fpsgen.wan import elementwise
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.conditions import Conditions
from fpsgen.wan.graphs import Graphs, why_not
from fpsgen.wan.plan import distinct
from fpsgen.wan.text_encoder import KnownTexts
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights.load import fingerprint, load_text_encoder, load_vae
from fpsgen.weights.models import Model


def generate(
    requests: Sequence[Request],
    model: Model,
    target: Target,
    timings: Sequence[Timings] = (),
    accept: Callable[[Step], bool] = lambda step: False,
    known: Callable[[], KnownTexts] | None = None,
    decode_in_bf16: bool = False,
) -> Generator[Event, None, None]:
    """Make a video of each request, yielding events on the way; timings: filled in, one for each video. What all videos
    wait for, such as a load, counts in the time of each.

    Raises UsageError before anything loads when settings or a preset do not fit a video, or when one of several outputs
    cannot be written, and RenderError when a result would not be a video of its prompt. accept: asked whether to go on
    after a step whose latents are not finite; they are 0 in the video then. known: opens embeddings of earlier
    runs. decode_in_bf16: on devices that are quick in it, where frames are as good (`vae.frames_of`).
    """
    if not requests:
        return
    if len(requests) > 1:
        for request in requests:
            check_path(request.output)
    videos = [*timings, *(Timings() for _ in requests[len(timings) :])]
    yield Stage("load", "text encoder")
    with _all(videos, "load"):
        plans = [resolve(request, model, target) for request in requests]
        machine.reset_peak(target.device)
        kept = known() if known else None
        shown = {each: each.frames() for each in map(conditioning.shown, plans) if each}
    texts = yield from _encode(plans, model, target, videos, kept)
    seen = (yield from conditioning.look(shown, model, target, partial(_all, videos))) if shown else {}
    given = [seen[each] if each else None for each in map(conditioning.shown, plans)]
    ends, abouts = yield from _denoise_all(plans, texts, given, videos, accept)
    yield Stage("load", "VAE")
    with _all(videos, "load"):
        vae = load_vae(model.checkpoint, target.device)
        rounded = copy.deepcopy(vae).bfloat16() if decode_in_bf16 and target.may_decode_in_bf16 else None
    for number, plan in enumerate(plans):
        notes: list[str] = []
        with _alone(videos, number):
            pieces = wan_vae.frames_of(vae, ends[number], rounded, notes.append)
            yield from decode(plan, pieces, videos[number], abouts[number], notes)


def _denoise_all(
    plans: Sequence[VideoPlan],
    texts: Sequence[Sequence[Tensor]],
    given: Sequence[Conditions | None],
    videos: Sequence[Timings],
    accept: Callable[[Step], bool],
) -> Generator[Event, None, tuple[list[Tensor], list[dict[str, Any]]]]:
    """For each video its final latents, 0 where they are not finite, and what its comment says: the generator's return
    value. One transformer computes its steps of all videos, then makes room for the other one, if there are two."""
    turns = experts.turns(plans)
    states: list[State | None] = [None] * len(plans)
    abouts: list[dict[str, Any]] = []
    with contextlib.ExitStack() as held:
        ahead: experts.Ahead | None = None
        for turn, after in zip_longest(turns, turns[1:]):
            yield Stage("load", turn.words)
            with _all(videos, "load"):
                transformer = ahead.take() if ahead else experts.load(turn, plans)
                if not abouts:
                    weights = fingerprint(plans[0].model.checkpoint, transformer)
                    abouts = [plan.about(weights) for plan in plans]
                if after:
                    ahead = held.enter_context(experts.Ahead(after, plans, experts.way_ahead(after, plans)))
            if after:
                yield Notice(f"{ahead}", detail=True)
            yield from _denoise_turn(turn, plans, transformer, texts, given, videos, accept, states, abouts)
            with _all(videos, "load"):
                del transformer
                machine.release()
    return [zero_nonfinite(state.latents) for state in states if state], abouts


def _denoise_turn(
    turn: experts.Turn,
    plans: Sequence[VideoPlan],
    transformer: WanTransformer,
    texts: Sequence[Sequence[Tensor]],
    given: Sequence[Conditions | None],
    videos: Sequence[Timings],
    accept: Callable[[Step], bool],
    states: list[State | None],
    abouts: Sequence[dict[str, Any]],
) -> Iterator[Event]:
    """The steps of all videos that one transformer computes. states, abouts: of each video, brought up to date."""
    for number, (plan, (first, end)) in enumerate(zip(plans, turn.spans, strict=True)):
        if first == end:
            continue
        own, target, weights = plan.request.settings, plan.target, abouts[number]["weights"]
        warned = plan.preset.stranger(weights, plan.model.trained_for)
        if plan.preset.name != plan.model.own_preset:
            warned = warned or plan.preset.surprise(weights, own, plan.model.loras)
        if warned and not first:
            yield Notice(warned)
        if len(plans) > 1:
            machine.release()  # what the video before has left, which would seem to lack
            alone = (first, end) == (0, len(plan.steps))
            yield Run(plan.request.prompt + ("" if alone else f", {turn.words}"), number + 1, len(plans))
        with _alone(videos, number):
            with videos[number].stage("denoise"):  # texts become the keys and values of each layer
                graphs = Graphs(transformer, target.device, why_not(target.device, target.graphs, plan.backends))
                text, image = texts[number], given[number]
                denoiser = Denoiser(transformer, own, text, target.device, graphs=graphs, image=image)
                state = states[number] = states[number] or denoiser.begin(noise(plan), partial(noise, plan))
            yield from denoise(plan, denoiser, videos[number], accept, state, end)
            yield Notice(f"{graphs}", detail=not (graphs.failed or (target.graphs and graphs.refused)))
            abouts[number]["graphs"] = graphs.as_dict(abouts[number].get("graphs"))
            del denoiser, graphs  # which hold the transformer, and much memory
        if end == len(plan.steps):
            yield Denoised(state.latents)


@contextlib.contextmanager
def _all(videos: Sequence[Timings], stage: str) -> Iterator[None]:
    """What runs inside is part of a stage of all videos."""
    with contextlib.ExitStack() as stack:
        for timings in videos:
            stack.enter_context(timings.stage(stage))
        yield


@contextlib.contextmanager
def _alone(videos: Sequence[Timings], number: int) -> Iterator[None]:
    """What runs inside is the time of one video, and of no other."""
    with contextlib.ExitStack() as stack:
        for timings in (*videos[:number], *videos[number + 1 :]):
            stack.enter_context(timings.pause())
        yield


def _encode(
    plans: Sequence[VideoPlan], model: Model, target: Target, videos: Sequence[Timings], known: KnownTexts | None
) -> Generator[Event, None, list[list[Tensor]]]:
    """For each video the embedding of its prompt and, with guidance, of its negative prompt, the generator's return
    value; a text that several videos share is encoded once."""
    guided = [plan for plan in plans if plan.request.settings.branches > 1]
    prompts = list(dict.fromkeys(plan.request.prompt for plan in plans))
    negatives = list(dict.fromkeys(plan.request.settings.negative for plan in guided))
    texts = yield from encode_prompts(prompts, negatives, model, target, videos, known=known)
    found = dict(zip((*prompts, *negatives), texts, strict=True))  # one text is embedded alike on either side
    return [
        [found[own] for own in (plan.request.prompt, plan.request.settings.negative)[: plan.request.settings.branches]]
        for plan in plans
    ]


def encode_prompts(
    prompts: Sequence[str],
    negatives: Sequence[str],
    model: Model,
    target: Target,
    videos: Sequence[Timings] = (),
    keep: Callable[[Tensor], Tensor] = lambda text: text,
    known: KnownTexts | None = None,
) -> Generator[Event, None, list[Tensor]]:
    """The text embedding of each prompt, then of each negative one, the generator's return value; the encoder is gone
    afterwards. keep: what is kept of each embedding, where thousands would fill the memory. known: those of earlier
    runs."""
    with _all(videos, "load"):
        encoder = load_text_encoder(model.checkpoint, target.device, target.text_dtype, known)
    yield Stage("text")
    names = [f"prompt {number}" if len(prompts) > 1 else "prompt" for number in range(1, len(prompts) + 1)]
    texts = []
    for which, prompt in zip((*names, *("negative prompt" for _ in negatives)), (*prompts, *negatives), strict=True):
        if model.pocket is not None:
            read = reading.read(prompt, encoder.tokenizer)
            if remark := reading.remark(read, which, model.pocket):
                yield Notice(remark)
            prompt = read.text
        with _all(videos, "load"):
            encoder.make_ready(prompt)
        with _all(videos, "text"):
            encoded = encoder.encode(prompt)
            machine.synchronise(target.device)
        if encoded.unknown:
            words = printable(", ".join(encoded.unknown))
            yield Notice(f"the model's tokenizer has no token for some of the {which}: {words}")
        if encoded.cut:
            yield Notice(f"the {which} is longer than {encoder.tokenizer.length} tokens; its end was left out")
        texts.append(keep(encoded.text))
    if not encoder.is_loaded:
        yield Notice("all texts are known from earlier runs: no text encoder was loaded", detail=True)
    with _all(videos, "load"):
        del encoder
        machine.release()
    return texts


def noise(plan: VideoPlan, done: int = 0) -> Tensor:
    """A video's noise on its device: what it begins with, or what its solver adds after `done` steps. By nothing that
    holds a transformer, which makes room for another one while the trajectory goes on."""
    own, channels = plan.request.settings, plan.model.config.out_channels
    return solvers.noise(channels, own.latent_shape, plan.request.seed, done).to(plan.target.device)


def denoise(
    plan: VideoPlan,
    denoiser: Denoiser,
    timings: Timings,
    accept: Callable[[Step], bool],
    state: State,
    end: int | None = None,
) -> Iterator[Event]:
    """All further steps of a trajectory, or those before step `end`; its state is brought up to date."""
    yield Stage("denoise")
    if denoiser.branches > 1:
        yield Branches(denoiser.together)
    if not state.step:
        yield from notices(plan)
    yield from make_ready(plan, timings)
    moments = denoiser.go_on(state, plan.steps, end=end)
    while True:
        with timings.stage("denoise"):
            moment = next(moments, None)
        if moment is None:
            return
        timings.steps.append(moment.seconds)
        step = Step(moment.step + 1, len(plan.steps), moment.seconds, moment.finite)
        yield step
        if not step.finite and not accept(step):
            raise not_finite(plan.target.dtype, f" at step {step.done}")


def notices(plan: VideoPlan) -> Iterator[Notice]:
    """Which plan runs in which steps and layers, on which backend, and why on no other."""
    slow = ["attention"] if any(one.name == "reference" for one in plan.backends.values()) else []
    slow += ["linear layers"] if any(one.refused for one in plan.kernels.values()) else []
    if slow and plan.target.device.type == "cuda":
        told = f"plain PyTorch runs this preset's {' and '.join(slow)} here"
        yield Notice(f"{told}, which may take longer than {option('preset', 'bf16')}")
    first = 1
    for step, alike in groupby(plan.steps):
        last = first + sum(1 for _ in alike) - 1
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        linear = [own for _, own in step.layers]
        for attention in dict.fromkeys(step.attention):
            where, choice = _where(steps, step.attention, attention), plan.backends[attention]
            yield Notice(f"{where}: {attention}, {_by(choice)}", detail=True)
        for own in dict.fromkeys(linear):
            by = [_by(plan.kernels[kind]) for kind in dict.fromkeys((own.ffn, own.attention)) if kind != "16bit"]
            if by:
                yield Notice(f"{_where(steps, linear, own)}: linear layers {own}, {', '.join(by)}", detail=True)
        first = last + 1


def _where(steps: str, layers: Sequence[object], alike: object) -> str:
    """Steps, and which of the layers are `alike`, if not all of them."""
    numbers = [number for number, each in enumerate(layers) if each == alike]
    some = f", layer{'s' if len(numbers) > 1 else ''} {file.ranges(numbers)}"
    return steps + (some if len(numbers) < len(layers) else "")


def _by(choice: Choice) -> str:
    refused = "".join(f"; not {door.display_name(name)}: {reason}" for name, reason in choice.refused)
    return f"by {door.display_name(choice.name)}{refused}"


def make_ready(plan: VideoPlan, timings: Timings) -> Iterator[Notice]:
    """Compile the kernels that the steps launch, and bring all key lists to the device, so that no step begins with a
    wait; what was compiled, and where the cache cannot keep it."""
    config = plan.model.config
    with timings.stage("compile"):
        built = door.make_ready(plan.target.device, distinct(plan.steps), config.num_heads, config.head_dim)
        built += elementwise.make_ready(plan.target.device, plan.target.dtype, list(plan.kernels))
    if fresh := sorted({kernel.name for kernel in built if kernel.fresh and not kernel.note}):
        yield Notice(
            f"compiled {', '.join(fresh)}, which are kept for later runs in {built[0].cubin.parent.parent}", detail=True
        )
    for note in sorted({kernel.note for kernel in built if kernel.note}):
        yield Notice(note)


def decode(
    plan: VideoPlan, pieces: Iterator[np.ndarray], timings: Timings, about: dict, notes: Sequence[str] = ()
) -> Iterator[Event]:
    """Pieces of frames to the finished file; each goes to the encoder as soon as it is decoded.

    about: what the file's comment says of how it was made; the timings, which end here, are added to it. notes: what
    `pieces` tells on the way.
    """
    yield Stage("decode")
    request, own = plan.request, plan.request.settings
    # File managers that look a third into a video show the last key frame before it: without one of its own the first
    # frame, which is often the pocket model's worst.
    form = ((own.width, own.height), own.fps, request.scale_to, request.may_replace, own.frames // 3)
    with contextlib.ExitStack() as held:
        with timings.stage("encode"):  # which begins with the encoder's start
            writer = held.enter_context(VideoWriter(request.output, *form))
        while True:
            with timings.stage("decode"):
                if (frames := next(pieces, None)) is None:
                    break
            with timings.stage("encode"):
                writer.write(frames)
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
