"""How long `--random-weights` takes on a CPU: its operations, by how many this machine does in a second.

Convolutions, attention and rounding do less in a second than a matrix product, so it takes at least so long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode

from fpsgen.bench import synthetic
from fpsgen.bench.compare import Job
from fpsgen.bench.contenders import Outline
from fpsgen.bench.steps import ENOUGH, SAMPLES
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.tokenizer import TEXT_LENGTH
from fpsgen.weights import load, needs
from fpsgen.weights.layout import Checkpoint

_PROBE = 0.2  # seconds of each probe
_SIDE = 1024  # of the matrices whose product is timed
_FILLED = 2**22  # random numbers that are drawn at once


def seconds(job: Job) -> float:
    """Of `synthetic.measure`."""
    checkpoint = job.model.checkpoint
    branches = 1 if job.request.guidance == 1 else 2
    rates = {dtype: products(dtype) for dtype in {job.dtype, job.text_dtype, torch.float32}}
    total = sum(fill(checkpoint, job))
    total += (1 + branches) * text_flops(checkpoint.text_config) / rates[job.text_dtype]
    total += 2 * decode_flops(checkpoint, job.request.latent_shape) / rates[torch.float32]
    for one in job.line_up.contenders:
        for flops in step_flops(one.outline(job.request, job.model, job.device), job):
            step = branches * flops / rates[job.dtype]
            total += max(1, job.passes) * step * (1 + min(SAMPLES, 1 + int(ENOUGH / step)))
    return total


def products(dtype: torch.dtype) -> float:
    """Operations of a matrix product in a second."""
    a, b = torch.ones(2, _SIDE, _SIDE, dtype=dtype)
    return 2.0 * _SIDE**3 * often(lambda: a @ b)


def often(call: Callable[[], object]) -> float:
    """How often something is done in a second, after once to warm up."""
    call()
    begin, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < _PROBE:
        call()
        count += 1
    return count / spent


def fill(checkpoint: Checkpoint, job: Job) -> list[float]:
    """Seconds for the random values of each component."""
    sizes = needs.weights(checkpoint, job.dtype, job.text_dtype)
    found = []
    for part, dtype in zip(sizes, (job.dtype, job.text_dtype, torch.float32), strict=True):
        values = torch.empty(_FILLED, dtype=dtype)
        found.append(sizes[part] / dtype.itemsize / (_FILLED * often(values.normal_)))
    return found


def text_flops(config: dict) -> float:
    """The operations of one embedding, but for the products of attention."""
    inner = config["num_heads"] * config["d_kv"]
    return 2.0 * TEXT_LENGTH * config["num_layers"] * config["d_model"] * (4 * inner + 3 * config["d_ff"])


def decode_flops(checkpoint: Checkpoint, latent_shape: tuple[int, int, int]) -> float:
    """The operations of the latent frames that are decoded, counted by torch on tensors without values."""
    vae = load.empty_vae(checkpoint)
    latents = torch.empty(1, checkpoint.config.in_channels, *latent_shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        for _ in zip(range(synthetic.PIECES), wan_vae.stream(vae, latents), strict=False):
            pass
    return counter.get_total_flops()


def step_flops(outline: Outline, job: Job) -> list[float]:
    """The operations of each guidance branch in each step that is measured: one for each that differs."""
    config = job.model.config
    linear = 2.0 * config.weights_per_token * prod(config.grid(job.request.latent_shape))
    every = dict.fromkeys(outline.plans or [])
    return [linear + sum(plan.flops(config.num_heads, config.head_dim) for plan in layers) for layers in every]
