"""What attention and linear layers cost: the stated model by which schedules are compared.

The unit is dense BF16 attention over the same tokens, by the fastest kernel for it; lower is cheaper.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.wan.config import WanConfig
from fpsgen.wan.plan import UNROUNDED, LinearPrecision, Linears

# Speeds of attention by the format of q and k; P and v are E4M3 beside both 8-bit ones. Published figures for this
# card, head_dim 128, 32k tokens, until a card has given ours: FlashAttention-3 in 16 bits and in FP8, SageAttention2's
# INT8 and FP8 (charts of github.com/thu-ml/SageAttention). Skipped tiles cost nothing.
CARD = "NVIDIA H100"
TFLOPS = {"bf16": 470, "fp8": 892, "int8": 882}

# Seconds per pair of tokens against BF16's.
RATES = {name: TFLOPS["bf16"] / rate for name, rate in TFLOPS.items()}

# The prologue reads q, k and v in 16 bits and writes 8: 9 bytes for each token and channel, at 3.0 TB/s (an H100's
# memory). Dense attention is 4 operations for each pair of tokens and channel, at 470 TFLOPS. Their quotient, times the
# number of tokens:
_PROLOGUE_TOKENS = 9 * 470e12 / (4 * 3.0e12)

# Choosing `top` tiles: a score for each pair of tiles, 2 operations for each channel, beside attention's 4 for each
# pair of tokens. By ordinary instructions, not by tensor cores, and then it sorts: a tenth of an H100's 60 TFLOPS in
# FP32 is assumed, until a card has given its own. Times the square of (tiles / tokens): 0.3 % of dense BF16 attention
# for tiles of 120 tokens.
_SELECT = (2 / 6e12) / (4 / 470e12)

# Linear layers: 2 operations for each weight and token, in 16 bits, at 80 % of an H100's 989 TFLOPS. FlashAttention-3's
# paper (arXiv 2407.08608) says that optimised matrix products reach 80 to 90 % on this card. In 8 bits 70 % of 1979 is
# assumed: sums of FP8 products are promoted on the way, and those of INT8 leave as 32-bit numbers.
LINEAR_TFLOPS = {"16bit": 0.8 * 989, "fp8": 0.7 * 1979, "int8": 0.7 * 1979}

# What is rounded for them is read twice in 16 bits, for its largest number and for itself, and written in 8: 5 bytes
# for each token and channel, at 3.0 TB/s. Our kernels between products (`wan/elementwise`) move less, as most of it is
# rounded in a pass that is there anyway; PyTorch's own passes, which are not fused, move five times that.
_ROUNDED_SECONDS = 5 / 3.0e12

# The pocket model stands in for the models that schedules are for: its 420 tokens count as Wan2.1's at 720p, its tiles
# as Wan2.1's of 120 tokens.
STAND_IN_TOKENS = 75_600
_STAND_IN_TILE = 120


def of_pairs(density: float, qk: str, tokens: int) -> float:
    """Cost of attention over a share `density` of all pairs of `tokens`; qk: the format of q and k."""
    return density * RATES[qk] + (_PROLOGUE_TOKENS / tokens if qk != "bf16" else 0.0)


@lru_cache(4096)  # a video's layers and steps share few plans
def of_plan(plan: AttentionPlan, tokens: int) -> float:
    """Cost of one layer at one step. tokens: how many the video has, or the one that it stands for.

    A summary is one more key for every tile: the kernel computes those of the listed tiles, too, and leaves them out by
    what it adds to their scores. The means themselves are made by the prologue, from what it reads anyway.
    """
    qk = plan.qk if plan.qk != "bf16" else "fp8" if plan.is_8bit else "bf16"
    own_tokens = plan.tiles.tokens == tokens
    tile_share = (prod(plan.tiles.counts) if own_tokens else tokens / _STAND_IN_TILE) / tokens

    def pairs(own: KeyTiles) -> float:
        return plan.listed(own) + (tile_share if own.rest == "summary" else 0.0)

    chosen = plan.mean(lambda own: own.top is not None)
    return of_pairs(plan.mean(pairs), qk, tokens) + chosen * _SELECT * tile_share**2


def of_linear(config: WanConfig, tokens: int, precision: Linears = UNROUNDED) -> float:
    """Cost of one layer's linear layers at one step: for Wan2.1 14B at 720p 0.23, and 0.16 with all that can be in 8
    bits."""
    dim, ffn = config.dim, config.ffn_dim
    attention, of_ffn = 4 * dim**2, 2 * dim * ffn
    cross = config.weights_per_token / config.num_layers - attention - of_ffn
    seconds = _seconds(attention, 2 * dim, precision.attention) + _seconds(of_ffn, dim + ffn, precision.ffn)
    return (seconds + _seconds(cross, 0, "16bit")) / (4 * dim * tokens / (TFLOPS["bf16"] * 1e12))


def _seconds(weights: float, channels: int, precision: LinearPrecision) -> float:
    """Of linear layers, for each token. channels: of what would be rounded for them."""
    rounding = 0.0 if precision == "16bit" else channels * _ROUNDED_SECONDS
    return 2 * weights / (LINEAR_TFLOPS[precision] * 1e12) + rounding


def of_video(attention: float, linear: float) -> float:
    """Cost of attention and linear layers together, whose own costs are given. The unit is that of both where attention
    is dense and in BF16, and linear layers are 16-bit. Text, VAE and what else is in a step are not counted."""
    return (attention + linear) / (1 + linear)
