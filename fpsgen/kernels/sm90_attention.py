"""Host side of `sm90_attention.cu`: its compile-time parameters, by the names that the source has for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np

_SCORES = {"FP32": 0, "FP16": 1, "INT32": 2}

# Of `kernels_cuda/tile.cuh`: tokens that a tile has room for, channels of a head, bytes beside a tile of k.
SLOTS, HEAD_DIM, TRAILER_BYTES = 128, 128, 16

# `Parameters` of the source, which says what each is; pointers, then counts.
PARAMETERS = np.dtype(
    [
        *((name, np.uint64) for name in ("q", "k", "v", "trailers", "q_scale", "v_scale")),
        *((name, np.uint64) for name in ("row_ptr", "cols", "list_of", "offsets", "out")),
        *((name, np.int32) for name in ("streams", "heads", "tiles", "tokens")),
    ],
    align=True,
)


@dataclass(frozen=True)
class AttentionKernel:
    """One variant of the kernel; `fpsgen.attention.emulator.VARIANTS` says what each computes.

    SCORES: what holds q kᵀ. SYNTHESISE: half of the exponentials without the exponential unit. SUM_CODES: P is summed
    by the tensor cores. PROMOTE: key tiles from one float32 sum to the next. RAGGED: tiles may have fewer than 128
    tokens; without that only FP32 saves a mask. STAGES: key tiles in flight; four fill shared memory.

    Its entry function is `fps_attention`, for any number of blocks: they share the work, and one fills an SM.

    ValueError, with the reason, for a combination that is not one of the variants.
    """

    SOURCE: ClassVar[str] = "sm90_attention"
    architecture: ClassVar[str] = "sm_90a"
    THREADS: ClassVar[int] = 384

    SCORES: Literal["FP32", "FP16", "INT32"]
    SYNTHESISE: bool
    SUM_CODES: bool
    PROMOTE: int
    RAGGED: bool = True
    STAGES: int = 4

    def __post_init__(self) -> None:
        short = self.SCORES != "FP32"
        promote = 4 if short else 1
        for wrong, reason in (
            (self.SCORES not in _SCORES, "scores are FP32, FP16 or INT32"),
            (not 2 <= self.STAGES <= 4, "2 STAGES are needed to overlap, and 5 do not fit in shared memory"),
            (not short and self.SYNTHESISE, "with FP32 scores no registers are left for SYNTHESISE"),
            (not short and self.SUM_CODES, "with FP32 scores no registers are left for the four columns of SUM_CODES"),
            (short and not self.SYNTHESISE, "the exponential unit binds, and nothing is gained over FP32 scores"),
            (short and not self.SUM_CODES, "SYNTHESISE knows P by its codes alone, and needs SUM_CODES"),
            (
                short and not self.RAGGED,
                "empty slots cost nothing with SUM_CODES: full tiles need no kernel of their own",
            ),
            (promote != self.PROMOTE, f"the emulator and the error table have PROMOTE = {promote}"),
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
        return (2 * HEAD_DIM + (8 if self.SUM_CODES else 0)) * SLOTS + TRAILER_BYTES

    @property
    def shared_bytes(self) -> int:
        """The size of `Shared`, which the source asserts: q twice, k and v by stage, rows of the result, barriers."""
        tile = SLOTS * HEAD_DIM
        v = tile + (1024 if self.SUM_CODES else 0)
        out = SLOTS * (2 * HEAD_DIM + 16)
        whole = 2 * tile + self.STAGES * (tile + v + TRAILER_BYTES + 4 * 8) + out + 4 * 8
        return -(-whole // 1024) * 1024


# By the format of q and k, then that of the scores; `fpsgen.attention.emulator.VARIANTS` has the same names.
VARIANTS = {
    "fp8-fp32": AttentionKernel("FP32", SYNTHESISE=False, SUM_CODES=False, PROMOTE=1),
    "fp8-fp16": AttentionKernel("FP16", SYNTHESISE=True, SUM_CODES=True, PROMOTE=4),
    "int8-int32": AttentionKernel("INT32", SYNTHESISE=True, SUM_CODES=True, PROMOTE=4),
}
# The names of older versions, which users may still type and older records have.
FORMER_NAMES = {"a": "fp8-fp32", "c": "fp8-fp16", "e": "int8-int32"}


def variant_named(name: str) -> str:
    """The key of `VARIANTS` that a user's word means; the word itself, in lower case, if it means none."""
    return FORMER_NAMES.get(name.lower(), name.lower())
