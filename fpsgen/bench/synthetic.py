"""`fpsgen bench` with random weights: speed of Wan2.1's true shapes where there is no checkpoint.

Every component is built as a checkpoint would have it and filled with random values. Time does not depend on these. One
step of each phase is measured, and stands for the others; so it is with the latent frames that the VAE decodes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from fpsgen import machine, solvers
from fpsgen.bench import steps
from fpsgen.bench.compare import CompareJob, Comparison
from fpsgen.bench.record import CompareRecord, Split
from fpsgen.errors import UsageError, option
from fpsgen.events import Run, Stage, Watch
from fpsgen.request import VideoPlan
from fpsgen.sampling import Denoiser
from fpsgen.target import Target
from fpsgen.timing import RunTimes, Timings
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.plan import StepSpan
from fpsgen.wan.tokenizer import TEXT_LENGTH
from fpsgen.weights import load, needs
from fpsgen.weights.layout import Checkpoint

# The first piece is of one frame, the second fills the cache, and from the third on all take the same time.
PIECES = 3
# What a reader should know of such records.
NOTES = (
    "the weights are random: the speed is that of the true shapes, and there is no video",
    "one step of each phase was measured, up to three times, and its median stands for the others",
    f"text: {TEXT_LENGTH} random tokens, the most that a prompt may have, were encoded for each guidance branch",
    f"decode: up to {PIECES} latent frames were decoded; the last stands for those after it",
    "after a single pass a ratio close to 1 may be chance; on a busy machine, a larger one too",
    "the totals leave out load and encode: there are no files, and noise takes longer to encode than a video does",
)
_PROBE = 0.2  # seconds that a matrix product is repeated
_SIDE = 1024  # of its matrices

Module = TypeVar("Module", bound=nn.Module)


def measure(job: CompareJob, watch: Watch) -> CompareRecord:
    """The record, as `compare.measure` has it, but for fidelity. job: of one pass at least, its model from
    `models.absent`, whose weights fit (`check_memory`), its contenders all fpsgen's own."""
    found = Comparison(job)
    plan, device, on_card = found.plan, found.device, found.device.type == "cuda"
    machine.reset_peak(device)
    watch(Stage("text"))
    texts, text = encode(plan)
    watch(Stage("decode"))
    ends = {"text": text, "decode": decode(plan)}
    machine.release()
    peak = machine.peak_bytes(device)
    watch(Stage("transformer"))
    empty = load.empty_transformer(plan.model.checkpoint)
    transformer = randomise(empty, device, load.by_name(plan.target.dtype), plan.request.seed)
    for number, one in enumerate(found.warm, 1):
        watch(Run(one.name, number, len(found.warm)))
        watch(Stage("denoise"))
        machine.release()
        machine.reset_peak(device)
        settings = one.contender.settings
        with one.contender.running():
            denoiser = Denoiser(transformer, settings, texts, device)
            parts = steps.by_span(one.contender.plan, denoiser, found.cuts[settings])
        found.note_state()
        one.splits, one.nonfinite = [each.split for each in parts], sum(each.nonfinite for each in parts)
        one.together = denoiser.together if settings.branches > 1 else None
        del denoiser  # what it holds would seem taken, when the next one is asked what fits
        most = max(peak, machine.peak_bytes(device)) if on_card else None
        one.warm.append(timing(one.splits, found.cuts[settings], ends, most))
    return found.record([*NOTES], random=True)


def least_seconds(job: CompareJob) -> float:
    """How long `measure` takes at least on a CPU: the operations of linear layers and of attention, by how many of a
    matrix product this machine does in a second. Filling weights and decoding are not in it."""
    plan, own, config = job.line_up.plan, job.line_up.settings, job.line_up.plan.model.config
    encoder = load.empty_text_encoder(plan.model.checkpoint)
    weights = sum(module.weight.numel() for module in encoder.modules() if isinstance(module, nn.Linear))
    seconds = (1 + own.branches) * 2.0 * TEXT_LENGTH * weights / flops_per_second(plan.target.text_dtype)
    linear, rate = 2.0 * config.weights_per_token * plan.tiles.tokens, flops_per_second(plan.target.dtype)
    for one in job.line_up.contenders:
        for step in dict.fromkeys(one.steps):
            attention = sum(each.flops(config.num_heads, config.head_dim) for each in step.attention)
            once = own.branches * (linear + attention) / rate
            seconds += job.passes * once * (1 + min(steps.SAMPLES, 1 + int(steps.ENOUGH / once)))
    return seconds


def flops_per_second(dtype: torch.dtype) -> float:
    """Operations of a matrix product in a second, on the CPU."""
    a, b = torch.ones(2, _SIDE, _SIDE, dtype=dtype)
    a @ b  # warms up
    begin, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < _PROBE:
        a @ b
        count += 1
    return 2.0 * _SIDE**3 * count / spent


def check_memory(checkpoint: Checkpoint, target: Target) -> None:
    """UsageError where the largest component's weights do not fit in the memory that is free."""
    machine.release()
    free = machine.free_bytes(target.device)
    largest, size = max(needs.weights(checkpoint, target).items(), key=lambda part: part[1])
    if size > free:
        told = f"the {largest} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {target.device}"
        smaller = f"{option('dtype', 'bf16')} and {option('random_weights', '1.3b')} take less"
        raise UsageError(told, hint=f"{smaller}; or try another {option('device')}")


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
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def timing(splits: Sequence[Split], cut: Sequence[StepSpan], ends: dict[str, float], peak: int | None) -> RunTimes:
    """The times of a warm run, extrapolated."""
    timings = Timings(peak_memory=peak)
    for split, span in zip(splits, cut, strict=True):
        timings.steps += [split.total] * (span.steps)
    timings.seconds |= {**ends, "denoise": sum(timings.steps)}
    timings.total = sum(timings.seconds.values())
    return replace(timings.rounded(), load=None, compile=None, encode=None)


@torch.inference_mode()
def encode(plan: VideoPlan) -> tuple[list[Tensor], float]:
    """An embedding for each guidance branch, and the seconds that they took."""
    checkpoint, target, seed = plan.model.checkpoint, plan.target, plan.request.seed
    encoder = randomise(load.empty_text_encoder(checkpoint), target.device, lambda _: target.text_dtype, seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    ids = torch.randint(checkpoint.text_config["vocab_size"], (1, TEXT_LENGTH), generator=generator).to(target.device)

    def once() -> Tensor:
        return encoder(ids)

    once()  # warms up
    machine.synchronise(target.device)
    begin = time.perf_counter()
    texts = [once() for _ in range(plan.request.settings.branches)]
    machine.synchronise(target.device)
    return texts, time.perf_counter() - begin


@torch.inference_mode()
def decode(plan: VideoPlan) -> float:
    """Seconds from latents to pixels, the last measured piece standing for those after it."""
    machine.release()  # the text encoder
    device, seed, shape = plan.target.device, plan.request.seed, plan.request.settings.latent_shape
    vae = randomise(load.empty_vae(plan.model.checkpoint), device, lambda _: torch.float32, seed)
    latents = solvers.noise(plan.model.config.out_channels, shape, seed).to(device)
    for _ in ("warms up", "counts"):
        marks = [time.perf_counter()]
        pieces = wan_vae.stream(vae, wan_vae.denormalise(vae, latents))
        for _, piece in zip(range(PIECES), pieces, strict=False):
            wan_vae.to_uint8(piece)  # waits for the device, too
            marks.append(time.perf_counter())
    return marks[-1] - marks[0] + (shape[0] - len(marks) + 1) * (marks[-1] - marks[-2])
