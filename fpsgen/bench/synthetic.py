"""`--random-weights`: speed of Wan2.1's true shapes where there is no checkpoint.

Every component is built as a checkpoint would have it and filled with random values. Time does not depend on these. One
step of each phase is measured, and stands for the others; so it is with the latent frames that the VAE decodes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fpsgen import machine, solvers
from fpsgen.bench import record, steps
from fpsgen.bench.compare import CompareJob
from fpsgen.bench.contenders import Ours
from fpsgen.bench.record import CompareRecord
from fpsgen.bench.steps import PhaseStep
from fpsgen.errors import UsageError
from fpsgen.events import Run, Stage, Watch
from fpsgen.request import Request
from fpsgen.sampling import Denoiser
from fpsgen.target import Target
from fpsgen.timing import Timings
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.tokenizer import TEXT_LENGTH
from fpsgen.weights import load, needs
from fpsgen.weights.layout import Checkpoint

# The first piece is of one frame, the second fills the cache, and from the third on all take the same time.
PIECES = 3

Module = TypeVar("Module", bound=nn.Module)


def measure(job: CompareJob, watch: Watch) -> CompareRecord:
    """The record, as `compare.measure` has it, but for fidelity; all contenders run there and back, one pass at least.

    job.model: from `models.absent`, whose weights fit (`check_memory`); all contenders are fpsgen's own.
    """
    facts = job.facts()
    facts["video"] |= {"prompt": None, "negative": None}
    request, checkpoint, device = job.request, job.model.checkpoint, job.target.device
    entries, reference = job.entries()
    cut = record.common_spans(entries, request)
    runs = record.there_and_back(entries, max(1, job.passes))
    machine.reset_peak(device)
    watch(Stage("text"))
    texts, text = encode(checkpoint, request, job.target)
    watch(Stage("decode"))
    ends = {"text": text, "decode": decode(checkpoint, request, device)}
    machine.release()
    peak = machine.peak_bytes(device)
    watch(Stage("transformer"))
    transformer = randomise(load.empty_transformer(checkpoint), device, needs.by_name(job.target.dtype), request.seed)
    measured: dict[str, list[PhaseStep]] = {}
    states = []
    for number, one in enumerate(runs, 1):
        assert isinstance(one.contender, Ours)  # others have refused a model without files
        plan = one.outline.plan
        assert plan is not None  # diffusers has refused a model without files
        watch(Run(one.name, number, len(runs)))
        watch(Stage("denoise"))
        machine.release()
        machine.reset_peak(device)
        with one.contender.running():
            denoiser = Denoiser(transformer, request.settings, texts, device)
            phases = list(steps.by_phase(plan, denoiser, cut))
        on_card = device.type == "cuda"
        states.append(machine.card_state(device) if on_card else None)
        one.warm.append(timing(phases, ends, max(peak, machine.peak_bytes(device)) if on_card else None))
        one.together = phases[0].together
        measured[one.name] = phases
    return CompareRecord(
        **facts,
        random_weights=True,
        extrapolated=True,
        pairs=len(entries[0].warm),
        order=[one.name for one in runs],
        states=states if any(states) else None,
        notes=notes(request, len(entries[0].warm)),
        contenders=[
            record.contender(
                one, reference, cut, [phase.split for phase in measured[one.name]], None, job.target,
                nonfinite=sum(phase.nonfinite for phase in measured[one.name]),
            )
            for one in entries
        ],
    )  # fmt: skip


def notes(request: Request, passes: int) -> list[str]:
    """What a reader should know of such records, in sentences."""
    latent_frames = request.settings.latent_shape[0]
    times = "once" if request.settings.guidance == 1 else "twice"
    told = [
        "the weights are random: the speed is that of the true shapes, and there is no video",
        "one step of each phase was measured, up to three times, and its median stands for the others",
        f"text: {TEXT_LENGTH} random tokens, the most that a prompt may have, were encoded {times}",
    ]
    if latent_frames > PIECES:
        told.append(f"decode: {PIECES} of {latent_frames} latent frames were decoded; the last stands for the others")
    if passes == 1:
        told.append(
            "all times come from a single pass: a ratio close to 1 may be chance; on a busy machine, a larger one too"
        )
    left_out = "there are no files, and a video encoder takes longer for noise than for a video"
    return [*told, f"the totals leave out load and encode: {left_out}"]


def check_memory(checkpoint: Checkpoint, target: Target) -> None:
    """UsageError where the largest component's weights do not fit in the memory that is free."""
    machine.release()
    free = machine.free_bytes(target.device)
    sizes = needs.weights(checkpoint, target.dtype, target.text_dtype)
    largest = max(sizes, key=sizes.__getitem__)
    if sizes[largest] <= free:
        return
    if max(needs.weights(checkpoint, torch.bfloat16, torch.bfloat16).values()) <= free:
        hint = "try --dtype bf16"
    elif largest == "transformer":
        hint = "try a smaller model, --random-weights 1.3b, or another --device"
    else:
        hint = "make room, or try another --device"
    told = f"the {largest} takes {sizes[largest] / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {target.device}"
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


def timing(measured: Sequence[PhaseStep], ends: dict[str, float], peak: int | None) -> dict[str, Any]:
    """The times of a warm run, extrapolated; as `Timings` has it, None where nothing was measured."""
    timings = Timings(peak_memory=peak)
    for phase in measured:
        timings.steps += [phase.split.total] * (phase.span.last - phase.span.first + 1)
    timings.seconds |= {**ends, "denoise": sum(timings.steps)}
    timings.total = sum(timings.seconds.values())
    return {**timings.as_dict(), "load": None, "compile": None, "encode": None}


@torch.inference_mode()
def encode(checkpoint: Checkpoint, request: Request, target: Target) -> tuple[list[Tensor], float]:
    """An embedding for each guidance branch, and the seconds that they took."""
    encoder = randomise(load.empty_text_encoder(checkpoint), target.device, lambda _: target.text_dtype, request.seed)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    ids = torch.randint(checkpoint.text_config["vocab_size"], (1, TEXT_LENGTH), generator=generator).to(target.device)

    def once() -> Tensor:
        return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    once()  # warms up
    machine.synchronise(target.device)
    begin = time.perf_counter()
    texts = [once() for _ in range(request.settings.branches)]
    machine.synchronise(target.device)
    return texts, time.perf_counter() - begin


@torch.inference_mode()
def decode(checkpoint: Checkpoint, request: Request, device: torch.device) -> float:
    """Seconds from latents to pixels, the last measured piece standing for those after it."""
    machine.release()  # the text encoder
    vae = randomise(load.empty_vae(checkpoint), device, lambda _: torch.float32, request.seed)
    latents = solvers.noise(checkpoint.config.in_channels, request.settings.latent_shape, request.seed).to(device)
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
    return sum(seconds) + (request.settings.latent_shape[0] - len(seconds)) * seconds[-1]
