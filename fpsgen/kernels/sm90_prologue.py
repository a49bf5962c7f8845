"""Host side of `sm90_prologue.cu`: its compile-time parameters, by the names that the source has for them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import ClassVar, NamedTuple

import numpy as np

from fpsgen.kernels.sm90_attention import HEAD_DIM, SLOTS, TRAILER_BYTES

# `Parameters` of the source, which says what each is; pointers, then counts.
PARAMETERS = np.dtype(
    [
        *((name, np.uint64) for name in ("q", "k", "v", "norm_q", "norm_k", "rope", "offsets")),
        *((name, np.uint64) for name in ("k_rms", "k_mean", "v_scale", "v_beyond")),
        *((name, np.uint64) for name in ("q_image", "k_image", "v_image", "trailers", "q_scale")),
        *((name, np.uint64) for name in ("q_pooled", "k_pooled", "v_means")),
        *((name, np.uint64) for name in ("summary_k", "summary_v", "summary_trailers")),
        *((name, np.int32) for name in ("batch", "heads", "tiles", "tokens")),
        ("eps", np.float32),
    ],
    align=True,
)

MOST_HEADS = 48  # a row of all of them is in the registers of one block


@dataclass(frozen=True)
class PrologueKernel:
    """The prologue for one variant of the attention kernel, whose operands' format its parameters follow.

    QK_INT8: q and k in INT8, else in E4M3. QK_LARGEST: the number that their scales aim at. V_ONES: rows of ones below
    vᵀ, 8 or 0. SMOOTH_K: take the mean over tokens from k. SUMMARY: make tiles of each tile's mean of k and of v.

    Its entry functions, in this order: `fps_rows`, `fps_channels`, `fps_tiles`, `fps_v_again`; `fps_summary` with a
    SUMMARY.
    ValueError, with the reason, for a combination that no variant reads.
    """

    SOURCE: ClassVar[str] = "sm90_prologue"
    architecture: ClassVar[str] = "sm_90a"
    THREADS: ClassVar[int] = 256
    shared_bytes: ClassVar[int] = 0  # less than 48 KB, and static

    QK_INT8: bool
    QK_LARGEST: int
    V_ONES: int
    SMOOTH_K: bool = True
    SUMMARY: bool = False

    def __post_init__(self) -> None:
        if self.QK_LARGEST not in ((127,) if self.QK_INT8 else (16, 448)):
            raise ValueError(f"{self}: INT8 ends at 127, E4M3 at 448, and FP16 scores hold 16 at most")
        if bool(self.V_ONES) == (self.QK_LARGEST == 448) or self.V_ONES not in (0, 8):
            raise ValueError(f"{self}: V_ONES is 8 where the tensor cores sum P, and 0 with FP32 scores (448)")

    @property
    def defines(self) -> dict[str, int]:
        return {name: int(value) for name, value in asdict(self).items()}


# By the names of the attention kernels that read what they write.
VARIANTS = {
    "fp8-fp32": PrologueKernel(QK_INT8=False, QK_LARGEST=448, V_ONES=0),
    "fp8-fp16": PrologueKernel(QK_INT8=False, QK_LARGEST=16, V_ONES=8),
    "int8-int32": PrologueKernel(QK_INT8=True, QK_LARGEST=127, V_ONES=8),
}


class Traffic(NamedTuple):
    """Bytes that a launch reads from device memory, and writes to it."""

    read: int
    written: int


def traffic(kernel: PrologueKernel, tokens: int, heads: int, tiles: int, batch: int = 1) -> dict[str, Traffic]:
    """By entry function, each place once: what blocks read that run at the same time comes from the L2 cache.

    Offsets of tiles and weights of norms are too few to count. fps_v_again is counted as it is when v stays within its
    first scales.
    """
    rows, table, factors = 2 * batch * tokens * heads * HEAD_DIM, 4 * tokens * HEAD_DIM, 4 * batch * tokens
    items, per_channel = batch * heads * tiles, 4 * batch * heads * HEAD_DIM
    image, means, sample = items * SLOTS * HEAD_DIM, 4 * items * HEAD_DIM, 2 * items * HEAD_DIM
    smooth, tail = int(kernel.SMOOTH_K), kernel.V_ONES * SLOTS + TRAILER_BYTES
    moved = {
        "fps_rows": Traffic(2 * rows + table, image + 4 * items * SLOTS + 2 * means + factors),
        "fps_channels": Traffic(smooth * means + sample, (2 + smooth) * per_channel),
        "fps_tiles": Traffic(
            2 * rows + table + factors + (1 + smooth) * per_channel,
            2 * image + items * tail + kernel.SUMMARY * means,
        ),
        "fps_v_again": Traffic(per_channel, 0),
    }
    if kernel.SUMMARY:
        summaries = batch * heads * ceil(tiles / SLOTS)
        read = 2 * means + (1 + smooth) * per_channel
        moved["fps_summary"] = Traffic(read, summaries * (2 * SLOTS * HEAD_DIM + tail))
    return moved
