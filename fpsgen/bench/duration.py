"""How long `--random-weights` takes on a CPU: its operations, by how many this machine does in a second.

Convolutions, attention and rounding do less in a second than a matrix product, so it takes at least so long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fpsgen.bench import synthetic
from fpsgen.bench.compare import CompareJob
from fpsgen.bench.steps import ENOUGH, SAMPLES
from fpsgen.wan import vae as wan_vae
from fpsgen.wan.tokenizer import TEXT_LENGTH
from fpsgen.weights import load, needs
from fpsgen.weights.layout import Checkpoint

_PROBE = 0.2  # seconds of each probe
_SIDE = 1024  # of the matrices whose product is timed
_FILLED = 2**22  # random numbers that are drawn at once


def seconds(job: CompareJob) -> float:
    """How long `synthetic.measure` takes at least."""
    checkpoint, target, config = job.model.checkpoint, job.target, job.model.config
    branches = 1 if job.request.settings.guidance == 1 else 2
    rates = {dtype: products(dtype) for dtype in {target.dtype, target.text_dtype, torch.float32}}
    total = fill(checkpoint)
    encoder = load.empty_text_encoder(checkpoint)
    weights = sum(module.weight.numel() for module in encoder.modules() if isinstance(module, nn.Linear))
    total += (1 + branches) * 2.0 * TEXT_LENGTH * weights / rates[target.text_dtype]
    total += 2 * decode_flops(checkpoint, job.request.settings.latent_shape) / rates[torch.float32]
    linear = 2.0 * config.weights_per_token * prod(config.grid(job.request.settings.latent_shape))
    for one in job.line_up.contenders:
        plan = one.outline(job.request, job.model, target).plan
        for each in dict.fromkeys(plan.steps if plan else ()):
            flops = linear + sum(own.flops(config.num_heads, config.head_dim) for own in each.attention)
            step = branches * flops / rates[target.dtype]
            total += max(1, job.passes) * step * (1 + min(SAMPLES, 1 + int(ENOUGH / step)))
    return total


def products(dtype: torch.dtype) -> float:
    """Operations of a matrix product in a second."""
    a, b = torch.ones(2, _SIDE, _SIDE, dtype=dtype)
    return 2.0 * _SIDE**3 * often(lambda: a @ b)


def often(call: Callable[[], object]) -> float:
    """How many times something is done in a second, after once to warm up."""
    call()
    begin, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < _PROBE:
        call()
        count += 1
    return count / spent


def fill(checkpoint: Checkpoint) -> float:
    """Seconds for the random values of all components."""
    values = torch.empty(_FILLED)
    each = needs.weights(checkpoint, torch.float32, torch.float32)
    return sum(each.values()) / values.nbytes / often(values.normal_)


def decode_flops(checkpoint: Checkpoint, latent_shape: tuple[int, int, int]) -> float:
    """The operations of the latent frames that are decoded, counted by torch on tensors without values."""
    vae = load.empty_vae(checkpoint)
    latents = torch.empty(1, checkpoint.config.in_channels, *latent_shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        for _ in zip(range(synthetic.PIECES), wan_vae.stream(vae, latents), strict=False):
            pass
    return counter.get_total_flops()
