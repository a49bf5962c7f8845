"""Host side of `sm90_attention.cu`: its compile-time parameters, by the names that the source has for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np

_SCORES = {"FP32": 0, "FP16": 1, "INT32": 2}

# Of `kernels_cuda/tile.cuh`: tokens that a tile has room for, channels of a head, bytes beside a tile of k.
SLOTS, HEAD_DIM, TRAILER_BYTES = 128, 128, 16
WORK_BYTES = 32  # `Work` of the source

# `Parameters` of the source, which says what each is; pointers, then counts.
PARAMETERS = np.dtype(
    [
        *((name, np.uint64) for name in ("q", "k", "v", "trailers", "q_scale", "v_scale")),
        *((name, np.uint64) for name in ("summary_k", "summary_v", "summary_trailers", "addends")),
        *((name, np.uint64) for name in ("order", "counts", "summaries", "list_of", "row_ptr", "cols")),
        *((name, np.uint64) for name in ("chosen_of", "chosen", "offsets", "out")),
        *((name, np.int32) for name in ("streams", "heads", "tiles", "tokens")),
    ],
    align=True,
)


@dataclass(frozen=True)
class AttentionKernel:
    """One variant of the kernel; `fpsgen.attention.emulator.VARIANTS` says what each computes.

    SCORES: what holds q kᵀ. With FP32 every exponential is computed, and P is summed before its rounding; with the
    others P's codes are computed without the exponential unit, and the tensor cores sum them. KEYS: columns of scores,
    128, or 120 where no tile has more tokens, as at Wan's own sizes. PROMOTE: key tiles from one float32 sum to the
    next. STAGES: key tiles in flight; four fill shared memory. CLUSTER: blocks that take neighbouring query tiles; two
    get a key tile that both want from L2 once.

    Its entry function is `fps_attention`, for any number of clusters: they share the work, and a block fills an SM.

    ValueError, with the reason, for a combination that is not one of the variants.
    """

    SOURCE: ClassVar[str] = "sm90_attention"
    architecture: ClassVar[str] = "sm_90a"
    THREADS: ClassVar[int] = 384

    SCORES: Literal["FP32", "FP16", "INT32"]
    PROMOTE: int
    KEYS: int = 128
    STAGES: int = 4
    CLUSTER: int = 2

    def __post_init__(self) -> None:
        short = self.SCORES != "FP32"
        for wrong, reason in (
            (self.SCORES not in _SCORES, "scores are FP32, FP16 or INT32"),
            (not 2 <= self.STAGES <= 4, "2 STAGES are needed to overlap, and 5 do not fit in shared memory"),
            (self.KEYS not in (120, 128), "tiles have KEYS = 128 slots, of which 120 may be all that is used"),
            (self.SCORES == "INT32" and self.KEYS != 128, "INT8 tensor cores do not multiply 120 columns"),
            (self.CLUSTER not in (1, 2), "a CLUSTER has 1 block, or 2, of which each copies half of a tile"),
            ((4 if short else 1) != self.PROMOTE, "the emulator and the error table have another PROMOTE"),
        ):
            if wrong:
                raise ValueError(f"{self}: {reason}")

    @property
    def defines(self) -> dict[str, int]:
        own = {name: _SCORES[value] if name == "SCORES" else int(value) for name, value in asdict(self).items()}
        return own | {"SHARED_BYTES": self.shared_bytes}

    @property
    def key_tile_bytes(self) -> int:
        """What a block copies for one key tile: k, its trailer, v."""
        return self.KEYS * HEAD_DIM + TRAILER_BYTES + (HEAD_DIM + (0 if self.SCORES == "FP32" else 8)) * SLOTS

    @property
    def shared_bytes(self) -> int:
        """The size of `Shared`, which the source asserts: q twice, k and v by stage, rows of the result, barriers."""
        tile = SLOTS * HEAD_DIM
        v = tile + (0 if self.SCORES == "FP32" else 1024)
        out = SLOTS * (2 * HEAD_DIM + 16)
        q = tile + 4 * (SLOTS + HEAD_DIM) + WORK_BYTES + 2 * 8
        whole = 2 * q + self.STAGES * (tile + v + TRAILER_BYTES + 4 * SLOTS + 4 * 8) + 2 * 8 + out
        return -(-whole // 1024) * 1024


# By the format of q and k, then that of the scores; `fpsgen.attention.emulator.VARIANTS` has the same names.
VARIANTS = {
    "fp8-fp32": AttentionKernel("FP32", PROMOTE=1),
    "fp8-fp16": AttentionKernel("FP16", PROMOTE=4),
    "int8-int32": AttentionKernel("INT32", PROMOTE=4),
}
# The names of older versions, which users may still type and older records have.
FORMER_NAMES = {"a": "fp8-fp32", "c": "fp8-fp16", "e": "int8-int32"}


def variant_named(name: str) -> str:
    """The key of `VARIANTS` that a user's word means; the word itself, in lower case, if it means none."""
    return FORMER_NAMES.get(name.lower(), name.lower())
