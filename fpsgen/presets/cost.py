"""What attention costs: the stated model by which schedules are compared.

The unit is dense BF16 attention over the same tokens, by the fastest kernel for it; lower is cheaper.
"""

from __future__ import annotations

from fpsgen.attention.plan import AttentionPlan

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

# The pocket model stands in for the models that schedules are for: its 420 tokens count as Wan2.1's at 720p.
STAND_IN_TOKENS = 75_600


def of_pairs(density: float, qk: str, tokens: int) -> float:
    """Cost of attention over a share `density` of all pairs of `tokens`; qk: the format of q and k."""
    return density * RATES[qk] + (_PROLOGUE_TOKENS / tokens if qk != "bf16" else 0.0)


def of_plan(plan: AttentionPlan, tokens: int) -> float:
    """Cost of one layer at one step. tokens: how many the video has, or the one that it stands for."""
    return of_pairs(plan.density, plan.qk if plan.qk != "bf16" else ("fp8" if plan.is_8bit else "bf16"), tokens)
