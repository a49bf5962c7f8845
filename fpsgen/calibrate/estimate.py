"""How long a calibration takes, worked out and not measured: what a dry run prints."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from fpsgen import machine
from fpsgen.attention.plan import AttentionPlan
from fpsgen.calibrate.candidates import PRECISIONS
from fpsgen.calibrate.job import Job
from fpsgen.sampling import Denoiser
from fpsgen.wan.plan import StepPlan
from fpsgen.weights.load import load_transformer

# Wan2.1's own table (its README, computational efficiency): 50 steps of 14B at 1280x720 and 81 frames take 1837.9 s on
# one H100. By the operations below that is the rate; we take the same for every size and both models.
_H100 = 353e12
# Candidates are compared in float32, which an H100 multiplies at 67 TFLOPS; small products reach perhaps a third.
_H100_FLOAT32 = 20e12
_TEXT = 32  # tokens, of a prompt that is a sentence
_EXPECTED_COST = 0.5  # of the schedules that are verified, in BF16 attention's


@dataclass(frozen=True)
class PartEstimate:
    """name; forwards: of the transformer, one guidance branch each; seconds: that they take."""

    name: str
    forwards: float
    seconds: float


def parts(job: Job) -> list[PartEstimate]:
    """What a calibration consists of, with one round of verification, on one H100."""
    dense, attention = forward_flops(job)
    rates = {"verification, a round": dense - (1 - _EXPECTED_COST) * attention}
    found = []
    for part in job.parts:
        forwards = part.steps * job.settings.branches
        seconds = forwards * rates.get(part.name, dense) / _H100
        found.append(PartEstimate(part.name, forwards, looking(job) if part.name == "candidates" else seconds))
    return found


def parts_here(job: Job, step: float) -> list[PartEstimate]:
    """As `parts`, on a machine where a step of all guidance branches takes `step` seconds."""
    return [PartEstimate(part.name, part.steps * job.settings.branches, part.work * step) for part in job.parts]


@torch.inference_mode()
def step_here(job: Job, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a step on this machine: the mean of a dense one and of one with the probe in all layers, which are
    measured half and half. Loads the transformer."""
    config = job.model.config
    transformer = load_transformer(job.model.checkpoint, device, dtype)
    texts = [torch.zeros(1, _TEXT, config.text_dim, device=device)] * job.settings.branches
    denoiser = Denoiser(transformer, job.settings, texts, device, together=True)
    latents = denoiser.noise(job.seed)
    spent = []
    for plan in (AttentionPlan(job.tiles), job.candidates.probe_plan(config.num_heads)):
        for _ in ("warms up", "counts"):
            begin = time.perf_counter()
            denoiser.velocity(latents, 0, StepPlan((plan,) * config.num_layers))
            machine.synchronise(device)
            taken = time.perf_counter() - begin
        spent.append(taken)
    return sum(spent) / len(spent)


def clip_seconds(job: Job) -> float:
    """Denoising of one BF16 clip on one H100."""
    return job.settings.steps * job.settings.branches * forward_flops(job)[0] / _H100


def forward_flops(job: Job) -> tuple[float, float]:
    """Operations of one forward pass, and those of self-attention among them."""
    config, tokens = job.model.config, job.tiles.tokens
    attention = 4.0 * config.dim * config.num_layers * tokens**2
    return 2.0 * config.weights_per_token * tokens + attention, attention


def looking(job: Job) -> float:
    """Seconds for comparing the candidates: in each precision attention of the sampled tiles, in float32, and for each
    candidate the sums over tiles and over means, in float64, at half the rate."""
    config, tiles, own = job.model.config, job.tiles, job.effort
    rows = min(own.tiles, len(tiles.valid)) * int(tiles.valid.max())
    branches = job.settings.branches
    products = 4.0 * tiles.tokens + 2 * 2 * 2 * len(job.candidates.choices) * len(tiles.valid)
    once = products * config.dim * config.num_layers * rows * len(PRECISIONS)
    return own.clips * len(job.phases) * branches * once / _H100_FLOAT32


def disk_bytes(job: Job) -> int:
    """The largest size of what is kept: a velocity for each step of each dense trajectory, the frames of each BF16
    clip. For a while also a velocity and a difference of both branches for each step of the video, in the probed clips,
    before any BF16 clip of verification is there."""
    t, h, w = job.settings.latent_shape
    steps, checks = job.effort.clips * job.effort.steps, job.effort.checks * job.settings.steps
    if job.choose & {"guidance", "compute"}:
        checks = max(checks, job.effort.probed * job.settings.steps * job.settings.branches)
    steps += checks
    frames = job.effort.checks * job.settings.frames * job.settings.height * job.settings.width * 3
    return steps * job.model.config.in_channels * t * h * w * 4 + frames
