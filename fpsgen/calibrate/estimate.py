"""How long a calibration takes, worked out and not measured: what `--dry-run` prints."""

from __future__ import annotations

from dataclasses import dataclass

from fpsgen.calibrate.candidates import PRECISIONS
from fpsgen.calibrate.job import Job
from fpsgen.wan.config import WanConfig

# Wan2.1's own table (its README, computational efficiency): 50 steps of 14B at 1280x720 and 81 frames take 1837.9 s on
# one H100. By the operations below that is the rate; we take the same for every size and both models.
_H100 = 353e12
# Candidates are compared in float32, which an H100 multiplies at 67 TFLOPS; small products reach perhaps a third.
_H100_FLOAT32 = 20e12
_EXPECTED_COST = 0.5  # of the schedules that are verified, in BF16 attention's


@dataclass(frozen=True)
class Part:
    """name; forwards: of the transformer, one guidance branch each; seconds: on one H100."""

    name: str
    forwards: float
    seconds: float


def parts(job: Job) -> list[Part]:
    """What a calibration consists of, with one round of verification."""
    own, phases = job.effort, job.phases
    branches = 1 if job.video.guidance == 1 else 2
    dense, attention = forward_flops(job)
    each = dense / _H100
    cheaper = (dense - (1 - _EXPECTED_COST) * attention) / _H100
    probes = own.probed * (len(phases) * own.layers + sum(own.steps - span.first for span in phases)) * branches
    clip = own.checks * job.video.steps * branches
    return [
        Part("dense trajectories", own.clips * own.steps * branches, own.clips * own.steps * branches * each),
        Part("candidates", 0, looking(job)),
        Part("sensitivities", probes, probes * each),
        Part("verification, BF16", clip, clip * each),
        Part("verification, a round", clip, clip * cheaper),
    ]


def clip_seconds(job: Job) -> float:
    """Denoising of one BF16 clip on one H100."""
    return job.video.steps * (1 if job.video.guidance == 1 else 2) * forward_flops(job)[0] / _H100


def forward_flops(job: Job) -> tuple[float, float]:
    """Operations of one forward pass, and those of self-attention among them."""
    config, tokens = job.model.config, job.tiles.tokens
    attention = 4.0 * config.dim * config.num_layers * tokens**2
    return 2.0 * weights_per_token(config) * tokens + attention, attention


def weights_per_token(config: WanConfig) -> int:
    """Of the blocks, each multiplied once for each token: attention's four matrices, those of cross-attention that see
    tokens, the FFN."""
    return config.num_layers * (4 * config.dim**2 + 2 * config.dim**2 + 2 * config.dim * config.ffn_dim)


def looking(job: Job) -> float:
    """Seconds for comparing the candidates: attention of the sampled tiles, in each precision, in float32."""
    config, tiles, own = job.model.config, job.tiles, job.effort
    rows = min(own.tiles, len(tiles.valid)) * int(tiles.valid.max())
    branches = 1 if job.video.guidance == 1 else 2
    once = 4.0 * config.dim * config.num_layers * rows * tiles.tokens * len(PRECISIONS)
    return own.clips * len(job.phases) * branches * once / _H100_FLOAT32


def disk_bytes(job: Job) -> int:
    """Of what is kept: a velocity for each step of each dense trajectory, the frames of each BF16 clip."""
    t, h, w = job.latent_shape
    steps = job.effort.clips * job.effort.steps + job.effort.checks * job.video.steps
    frames = job.effort.checks * job.video.frames * job.video.height * job.video.width * 3
    return steps * job.model.config.in_channels * t * h * w * 4 + frames
