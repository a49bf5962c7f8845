"""`--random-weights`: speed of Wan2.1's true shapes where there is no checkpoint.

Every component is built as a checkpoint would have it and filled with random values. Time does not depend on these. One
step of each phase is measured, and stands for the others; so it is with the latent frames that the VAE decodes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fpsgen import machine, solvers
from fpsgen.bench import record, steps
from fpsgen.bench.compare import Job, Made, Watcher
from fpsgen.bench.contenders import Ours
from fpsgen.bench.steps import PhaseStep
from fpsgen.errors import UsageError
from fpsgen.pipeline import Request
from fpsgen.timing import Timings
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.tokenizer import TEXT_LENGTH
from fpsgen.weights import load, needs
from fpsgen.weights.layout import Checkpoint

# The first piece is of one frame, the second fills the cache, and from the third on all take the same time.
PIECES = 3

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Ends:
    """What all contenders share: the encoded prompts, seconds of text and decode, the peak of memory in bytes."""

    texts: list[Tensor]
    text: float
    decode: float
    peak: int


def measure(job: Job, watcher: Watcher) -> dict[str, Any]:
    """The record, as `compare.measure` has it, but for fidelity; all contenders run there and back, one pass at least.

    job.model: from `models.absent`, whose weights fit (`check_memory`); all contenders are fpsgen's own.
    """
    facts = record.facts(machine.provenance(job.command), job)
    found = [Made(one, one.outline(job.request, job.model, job.device)) for one in job.line_up.contenders]
    measured, order, states = _measured(found, job, job.model.checkpoint, watcher)
    reference = next(one for one in found if one.contender.name == job.line_up.reference)
    return {
        **facts,
        "video": facts["video"] | {"prompt": None, "negative": None},
        "random_weights": True,
        "extrapolated": True,
        "pairs": len(found[0].warm),
        "contenders": [_contender(one, reference, phases, job) for one, phases in zip(found, measured, strict=True)],
        "order": order,
        "states": states if any(states) else None,
        "notes": notes(job.request, len(found[0].warm)),
    }


def notes(request: Request, passes: int) -> list[str]:
    """What a reader should know of such records, in sentences."""
    latent_frames = request.latent_shape[0]
    times = "once" if request.guidance == 1 else "twice"
    told = [
        "the weights are random: the speed is that of the true shapes, and there is no video",
        "one step of each phase was measured, up to three times, and its median stands for the others",
        f"text: {TEXT_LENGTH} random tokens, the most that a prompt may have, {times}",
    ]
    if latent_frames > PIECES:
        told.append(f"decode: {PIECES} of {latent_frames} latent frames were decoded; the last stands for the others")
    if passes == 1:
        told.append("all comes from a single pass: a ratio near 1 may be chance, on a busy machine a larger one, too")
    left_out = "there are no files, and noise takes a video encoder longer than a video does"
    return [*told, f"load and encode are in no total: {left_out}"]


def check_memory(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, text_dtype: torch.dtype) -> None:
    """UsageError where the largest component's weights do not fit in the memory that is free."""
    machine.release()
    free = machine.free_bytes(device)
    sizes = needs.weights(checkpoint, dtype, text_dtype)
    largest = max(sizes, key=lambda part: sizes[part])
    if sizes[largest] <= free:
        return
    if max(needs.weights(checkpoint, torch.bfloat16, torch.bfloat16).values()) <= free:
        hint = "try --dtype bf16"
    elif largest == "transformer":
        hint = "try a smaller model, --random-weights 1.3b, or another --device"
    else:
        hint = "make room, or try another --device"
    told = f"the {largest} takes {sizes[largest] / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}"
    raise UsageError(told, hint)


def randomise(model: Module, device: torch.device, dtype: Callable[[str], torch.dtype], seed: int) -> Module:
    """Give a module built on the meta device random parameters of `dtype(name)`, and return it.

    They keep activations near one: norms are ones, biases zeros, all others normal with variance 1 / inputs.
    """
    generator = torch.Generator(device).manual_seed(seed)
    state = {}
    for name, parameter in model.named_parameters():
        values = state[name] = torch.empty(parameter.shape, device=device, dtype=dtype(name))
        if name.endswith("bias"):
            values.zero_()
        elif "norm" in name or name.endswith("gamma"):
            values.fill_(1)
        else:
            values.normal_(0, 1 / math.sqrt(math.prod(parameter.shape[1:])), generator=generator)
    model.load_state_dict(state, assign=True, strict=False)  # tied parameters have two names there, and one here
    return model.eval().requires_grad_(False)


def timing(measured: list[PhaseStep], ends: Ends, peak: int | None) -> dict[str, Any]:
    """The times of a warm run, extrapolated; as `Timings` has it, None where nothing was measured."""
    timings = Timings()
    for phase in measured:
        timings.steps += [phase.split.total] * (phase.span.last - phase.span.first + 1)
    timings.seconds |= {"text": ends.text, "denoise": sum(timings.steps), "decode": ends.decode}
    timings.total = sum(timings.seconds.values())
    timings.peak_memory = None if peak is None else max(peak, ends.peak)
    return {**timings.as_dict(), "load": None, "compile": None, "encode": None}


def _measured(
    found: list[Made], job: Job, checkpoint: Checkpoint, watcher: Watcher
) -> tuple[list[list[PhaseStep]], list[str], list[dict | None]]:
    """The phases of each contender, of its last pass, the timing of all being noted in it; the order, and the card's
    state after each."""
    request, device = job.request, job.device
    ends = _ends(checkpoint, request, device, job.text_dtype, watcher)
    watcher.phase("transformer")
    transformer = randomise(load.empty_transformer(checkpoint), device, needs.by_name(job.dtype), request.seed)
    cut = record.common_spans(found, request)
    turns = [found if number % 2 == 0 else found[::-1] for number in range(max(1, job.passes))]
    runs = [one for turn in turns for one in turn]
    measured: dict[str, list[PhaseStep]] = {}
    states = []
    for number, one in enumerate(runs, 1):
        assert isinstance(one.contender, Ours)  # others have refused a model without files
        watcher.begins(one.contender.name, number, len(runs))
        watcher.phase("denoise")
        machine.release()
        machine.reset_peak(device)
        with one.contender.running():
            phases = list(steps.by_phase(request, transformer, one.outline.plans or [], cut, ends.texts, device))
        states.append(machine.card_state(device) if device.type == "cuda" else None)
        one.warm.append(timing(phases, ends, machine.peak_bytes(device) if device.type == "cuda" else None))
        one.together = phases[0].together
        measured[one.contender.name] = phases
    return [measured[one.contender.name] for one in found], [one.contender.name for one in runs], states


def _ends(
    checkpoint: Checkpoint,
    request: Request,
    device: torch.device,
    text_dtype: torch.dtype,
    watcher: Watcher,
) -> Ends:
    """Text encoder and VAE, one after the other; both are gone afterwards."""
    machine.reset_peak(device)
    watcher.phase("text")
    texts, text = _encode(checkpoint, request, device, text_dtype)
    machine.release()
    watcher.phase("decode")
    decode = _decode(checkpoint, request, device)
    machine.release()
    return Ends(texts, text, decode, machine.peak_bytes(device))


@torch.inference_mode()
def _encode(
    checkpoint: Checkpoint, request: Request, device: torch.device, dtype: torch.dtype
) -> tuple[list[Tensor], float]:
    """An embedding for each guidance branch, and the seconds that they took."""
    encoder = randomise(load.empty_text_encoder(checkpoint), device, lambda name: dtype, request.seed)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    ids = torch.randint(checkpoint.text_config["vocab_size"], (1, TEXT_LENGTH), generator=generator).to(device)

    def encode() -> Tensor:
        return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    encode()  # warms up
    machine.synchronise(device)
    begin = time.perf_counter()
    texts = [encode() for _ in range(1 if request.guidance == 1 else 2)]
    machine.synchronise(device)
    return texts, time.perf_counter() - begin


@torch.inference_mode()
def _decode(checkpoint: Checkpoint, request: Request, device: torch.device) -> float:
    """Seconds from latents to pixels, the last measured piece standing for those after it."""
    vae = randomise(load.empty_vae(checkpoint), device, lambda name: torch.float32, request.seed)
    latents = solvers.noise(checkpoint.config.in_channels, request.latent_shape, request.seed).to(device)
    latent_frames = request.latent_shape[0]
    seconds: list[float] = []
    for _ in ("warms up", "counts"):
        seconds.clear()
        begin = time.perf_counter()
        pieces = wan_vae.stream(vae, wan_vae.denormalise(vae, latents))
        for _, piece in zip(range(PIECES), pieces, strict=False):
            wan_vae.to_uint8(piece)  # waits for the device, too
            now = time.perf_counter()
            seconds.append(now - begin)
            begin = now
    return sum(seconds) + (latent_frames - len(seconds)) * seconds[-1]


def _contender(one: Made, reference: Made, measured: list[PhaseStep], job: Job) -> dict[str, Any]:
    told = record.contender(one, reference, [phase.span for phase in measured], None, job.dtype)
    for phase, step in zip(told["phases"], measured, strict=True):
        phase["split"] = asdict(step.split)
    return {**told, "cold": None, "nonfinite": sum(phase.nonfinite for phase in measured)}
