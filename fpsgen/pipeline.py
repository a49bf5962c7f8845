"""Text to video: what is loaded when, what runs, and what is told to whoever watches.

`generate` is an iterator of events. It owns the order of things and the memory policy: a component is
loaded when its turn comes and freed before the next one, because each of the two large ones may need
all the memory there is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fpsgen import __version__, machine, solvers
from fpsgen.attention import door
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import RenderError
from fpsgen.pocket import reading
from fpsgen.presets import BF16, Plans, Preset, file, shipped
from fpsgen.printable import printable
from fpsgen.timing import Timings
from fpsgen.video import VideoWriter
from fpsgen.wan import config, sizes
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.text_encoder import TextEncoder
from fpsgen.wan.transformer import KeyValue, WanTransformer
from fpsgen.weights.load import load_transformer, load_vae
from fpsgen.weights.models import Model

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One video. Width and height are rendered; `scale_to` is the file's size where it differs. may_replace: whether a
    file that has the name of `output` is replaced; else the video gets a name with a number."""

    prompt: str
    negative: str
    width: int
    height: int
    frames: int
    fps: int
    steps: int
    guidance: float
    shift: float
    seed: int
    output: Path
    scale_to: tuple[int, int] | None = None
    may_replace: bool = True
    solver: solvers.SolverName = "unipc"
    grid: solvers.SigmaGrid = "original"
    preset: Preset = BF16

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents."""
        return sizes.latent_shape(self.frames, self.height, self.width)

    @property
    def noise_levels(self) -> list[float]:
        """Before each step."""
        return solvers.noise_levels(self.steps, self.shift, self.solver, self.grid)

    def new_solver(self) -> solvers.Solver:
        """The solver before its first step."""
        return solvers.Solver(self.steps, self.shift, self.solver, self.grid)


@dataclass(frozen=True)
class Phase:
    """A phase begins: load, text, denoise or decode; what: is loaded."""

    name: str
    what: str = ""


@dataclass(frozen=True)
class Step:
    """`done` of `total` denoising steps are behind us; the last took `seconds`."""

    done: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Denoised:
    """The final latents, [1, 16, T, h, w]."""

    latents: Tensor


@dataclass(frozen=True)
class Frames:
    """`done` of `total` frames are decoded and with the encoder; pixels: the last, uint8 [n, height, width, 3]."""

    done: int
    total: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Written:
    """The video is complete, in `path`."""

    path: Path


@dataclass(frozen=True)
class Notice:
    """Something the user should know; `detail` ones only if asked for."""

    text: str
    detail: bool = False


@dataclass(frozen=True)
class Surprise(Notice):
    """What the preset was measured at is not what runs here, or nothing was."""


@dataclass(frozen=True)
class Branches:
    """Whether both guidance branches run in one batch, or one after the other."""

    together: bool


Event = Phase | Step | Denoised | Frames | Written | Notice | Branches


def generate(
    request: Request,
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    text_dtype: torch.dtype,
    timings: Timings,
    tolerant: bool = False,
) -> Generator[Event, None, None]:
    """Make the video of `request`, yielding events on the way; `timings` is filled in.

    dtype: of the transformer's matrix products; text_dtype: of the text encoder.

    Raises UsageError when the preset does not fit the video, before anything loads, and RenderError when the result
    would not be a video of the prompt: no frame is written then. tolerant: latents that are not finite are no error,
    and taken for 0 where they are decoded.
    """
    yield Phase("load", "text encoder")
    with timings.phase("load"):
        plans = schedule(request, model)
        told = describe(request, model, device, dtype, text_dtype)
        machine.reset_peak(device)
    prompts = [request.prompt, request.negative] if request.guidance != 1 else [request.prompt]
    texts = yield from encode_prompts(prompts, model, device, text_dtype, timings)
    yield Phase("load", "transformer")
    with timings.phase("load"):
        transformer = load_transformer(model.checkpoint, device, dtype)
        weights = transformer.fingerprint()
    if surprise := request.preset.surprise(weights, request.width, request.height, request.frames):
        yield Surprise(surprise)
    latents = yield from denoise(request, transformer, plans, texts, device, timings, tolerant)
    yield Denoised(latents)
    if tolerant:
        latents = latents.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    with timings.phase("load"):
        del transformer
        machine.release()
    yield from decode(request, model, latents, device, timings, told)


def finish(events: Generator[Event, None, T], watch: Callable[[Event], None]) -> T:
    """Run a phase to its end, telling `watch` each event; what the phase returns."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        watch(event)


def encode_prompts(
    prompts: list[str], model: Model, device: torch.device, dtype: torch.dtype, timings: Timings
) -> Generator[Event, None, list[Tensor]]:
    """The text embedding of each prompt, the generator's return value; the encoder is gone afterwards.

    Of several, the last is the negative one.
    """
    texts = []
    with timings.phase("load"):
        encoder = TextEncoder(model.checkpoint, device, dtype)
    yield Phase("text")
    for index, prompt in enumerate(prompts):
        number = f" {index + 1}" if len(prompts) > 2 else ""
        which = "negative prompt" if 0 < index == len(prompts) - 1 else f"prompt{number}"
        if model.card is not None:
            read = reading.read(prompt, encoder.tokenizer)
            if remark := reading.remark(read, which, model.card):
                yield Notice(remark)
            prompt = read.text
        with timings.phase("text"):
            encoded = encoder.encode(prompt)
            machine.synchronise(device)
        if encoded.unknown:
            words = printable(", ".join(encoded.unknown))
            yield Notice(f"the model's tokenizer has no token for some of the {which}: {words}")
        if encoded.cut:
            yield Notice(f"the {which} is longer than {encoder.tokenizer.length} tokens; its end was left out")
        texts.append(encoded.text)
    with timings.phase("load"):
        del encoder
        machine.release()
    return texts


def schedule(request: Request, model: Model) -> list[Plans]:
    """What each layer does at each step; UsageError where the preset is for another model or another video's size."""
    preset, config = request.preset, model.config
    preset.check_family(model.family)
    grid = config.grid(request.latent_shape)
    tiles = TileGrid(grid, preset.tile or model.tile(grid))
    return preset.schedule(request.noise_levels, tiles, config.num_layers, config.num_heads)


def default_preset(model: Model, width: int, height: int, frames: int, device: torch.device) -> Preset:
    """The `quality` grade where a kernel of ours runs it, else BF16."""
    if device.type != "cuda":
        return BF16
    if model.config.num_layers != config.FAMILIES.get(model.family, model.config).num_layers:
        return BF16  # a model of another make: what ships is not for it
    preset = shipped.of_grade("quality", model.family, width, height)
    grid = model.config.grid(sizes.latent_shape(frames, height, width))
    tiles = TileGrid(grid, preset.tile or model.tile(grid))
    phases = preset.plans(tiles, model.config.num_layers, model.config.num_heads)
    rounded = {plan for plans in phases.values() for plan in plans if not plan.is_dense or plan.is_8bit}
    ours = all(door.choose(device, plan, model.config.head_dim).name == "hopper" for plan in rounded)
    return preset if ours else BF16


def attention_by_step(plans: list[Plans], device: torch.device, head_dim: int) -> Iterator[Notice]:
    """Which plan runs in which steps and layers, on which backend, and why on no other."""
    every = {plan for layers in plans for plan in layers}
    if device.type == "cuda" and any(door.choose(device, plan, head_dim).name == "reference" for plan in every):
        yield Notice("plain PyTorch runs this preset's attention here, which may take longer than --preset bf16")
    first = 1
    for layers, alike in groupby(plans):
        last = first + sum(1 for _ in alike) - 1
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        for plan in dict.fromkeys(layers):
            own = [number for number, each in enumerate(layers) if each == plan]
            where = steps if len(own) == len(layers) else f"{steps}, layers {file.ranges(own)}"
            choice = door.choose(device, plan, head_dim)
            refused = "".join(f"; not {door.told(name)}: {reason}" for name, reason in choice.refused)
            yield Notice(f"{where}: {plan}, by {door.told(choice.name)}{refused}", detail=True)
        first = last + 1


def make_ready(
    plans: list[Plans], device: torch.device, heads: int, head_dim: int, timings: Timings
) -> Iterator[Notice]:
    """Compile the kernels that the steps launch, and bring all key lists to the device, so that no phase begins with a
    wait; what was compiled, and where the cache cannot keep it."""
    with timings.phase("compile"):
        built = door.make_ready(device, {plan for layers in plans for plan in layers}, heads, head_dim)
    if fresh := sorted({kernel.name for kernel in built if kernel.fresh and not kernel.note}):
        yield Notice(
            f"compiled {', '.join(fresh)}, which later runs find in {built[0].cubin.parent.parent}", detail=True
        )
    for note in sorted({kernel.note for kernel in built if kernel.note}):
        yield Notice(note)


@torch.inference_mode()
def denoise(
    request: Request,
    transformer: WanTransformer,
    plans: list[Plans],
    texts: list[Tensor],
    device: torch.device,
    timings: Timings,
    tolerant: bool = False,
) -> Generator[Event, None, Tensor]:
    """From noise to latents [1, 16, T, h, w], the generator's return value; plans: each layer's at each step.

    Raises RenderError where they are not finite, unless `tolerant`.
    """
    yield Phase("denoise")
    with timings.phase("denoise"):
        solver = request.new_solver()
        latents = solvers.noise(transformer.config.in_channels, request.latent_shape, request.seed).to(device)
        together = both_fit(transformer, plans[0][0].tiles.tokens, device)
        batches = [torch.cat(texts)] if together else texts
        contexts = [transformer.embed_text(batch) for batch in batches]
    if len(texts) > 1:
        yield Branches(together)
    yield from attention_by_step(plans, device, transformer.config.head_dim)
    config = transformer.config
    yield from make_ready(plans, device, config.num_heads, config.head_dim, timings)
    for index, (timestep, layers) in enumerate(zip(solver.timesteps, plans, strict=True)):
        begin = time.perf_counter()
        with timings.phase("denoise"):
            velocity = predict(transformer, latents, timestep, contexts, layers, request.guidance)
            latents = solver.step(velocity, latents)
            finite = bool(latents.isfinite().all())  # waits for the device, too
        timings.steps.append(time.perf_counter() - begin)
        if not finite and not tolerant:
            hint = None if transformer.dtype == torch.float32 else "try --dtype fp32"
            raise RenderError(f"the model gave values that are not finite at step {index + 1}", hint)
        yield Step(index + 1, request.steps, timings.steps[-1])
    return latents


def predict(
    transformer: WanTransformer,
    latents: Tensor,
    timestep: Tensor,
    contexts: list[list[KeyValue]],
    plans: Plans,
    guidance: float,
) -> Tensor:
    """Guided velocity. Contexts are one per branch, or one that holds both branches as a batch."""
    branches: list[Tensor] = []
    for context in contexts:
        batch = len(context[0][0])
        velocity = transformer(latents.expand(batch, -1, -1, -1, -1), timestep.expand(batch), context, plans)
        branches += velocity.chunk(batch)
    if len(branches) == 1:
        return branches[0]
    conditional, unconditional = branches
    return solvers.guide(conditional, unconditional, guidance)


def both_fit(transformer: WanTransformer, tokens: int, device: torch.device) -> bool:
    """Whether a batch of two guidance branches fits in the memory that is free, by a worst-case estimate."""
    per_token = transformer.config.bytes_per_token(transformer.dtype.itemsize)
    return 2 * tokens * per_token < 0.8 * machine.free_bytes(device)


def decode(
    request: Request, model: Model, latents: Tensor, device: torch.device, timings: Timings, told: dict
) -> Iterator[Event]:
    """Latents to the finished file; each piece goes to the encoder as soon as it is decoded.

    The file's metadata are `told` and the timings, which end here.
    """
    yield Phase("load", "VAE")
    with timings.phase("load"):
        vae = load_vae(model.checkpoint, device)
    yield Phase("decode")
    pieces = wan_vae.frames_of(vae, latents)
    size = (request.width, request.height)
    # File managers that look a third into a video show the last key frame before it: without one of its own the first
    # frame, which is often the pocket model's worst.
    form = (size, request.fps, request.scale_to, request.may_replace, request.frames // 3)
    with contextlib.ExitStack() as held:
        with timings.phase("encode"):  # which begins with the encoder's start
            writer = held.enter_context(VideoWriter(request.output, *form))
        while True:
            with timings.phase("decode"):
                if (frames := next(pieces, None)) is None:
                    break
            with timings.phase("encode"):
                writer.write(frames)
            yield Frames(writer.frames, request.frames, frames)
        with timings.phase("encode"):
            writer.close()
        timings.peak_memory = machine.peak_bytes(device)
        timings.stop()
        if fault := writer.finish({**told, "timings": timings.as_dict()}):
            yield Notice(f"the video is complete, but does not tell how it was made: {fault}")
    yield Written(writer.path)


def describe(request: Request, model: Model, device: torch.device, dtype: torch.dtype, text_dtype: torch.dtype) -> dict:
    """What was made, by what and with which settings; stored in the file, printed by --json."""
    settings = {**asdict(replace(request, preset=BF16)), "preset": file.as_dict(request.preset)}
    del settings["output"], settings["may_replace"]
    plans = [plan for layers in schedule(request, model) for plan in layers]
    return {
        "fpsgen": __version__,
        "model": model.told,
        "device": str(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,  # which a CPU's last bits depend on
        "dtype": str(dtype).removeprefix("torch."),
        "text_dtype": str(text_dtype).removeprefix("torch."),
        **settings,
        "attention": {
            "tile": plans[0].tiles.tile,
            "density": round(sum(plan.density for plan in plans) / len(plans), 6),
            "backends": sorted({door.choose(device, plan, model.config.head_dim).name for plan in set(plans)}),
        },
    }
