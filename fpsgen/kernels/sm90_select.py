"""Host side of `sm90_select.cu`: its compile-time parameter, by the name that the source has for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fpsgen.kernels.sm90_attention import HEAD_DIM, SLOTS
from fpsgen.kernels.sm90_prologue import Traffic

# `Parameters` of the source, which says what each is; pointers, then counts.
PARAMETERS = np.dtype(
    [
        *((name, np.uint64) for name in ("q_pooled", "k_pooled", "log_valid", "row_ptr", "cols", "list_of")),
        *((name, np.uint64) for name in ("counts", "summaries", "chosen_of", "chosen", "addends")),
        *((name, np.int32) for name in ("streams", "heads", "tiles")),
    ],
    align=True,
)


@dataclass(frozen=True)
class SelectKernel:
    """Key tiles by their content, and a summary's addends. TILES: the number of tiles that there is room for.

    Its entry function is `fps_select`, for one block for each QUERIES query tiles of each stream.
    """

    SOURCE: ClassVar[str] = "sm90_select"
    architecture: ClassVar[str] = "sm_90a"
    THREADS: ClassVar[int] = 128
    QUERIES: ClassVar[int] = 16
    KEYS: ClassVar[int] = 64  # key tiles, of which half of the channels are in shared memory at once

    TILES: int

    @property
    def defines(self) -> dict[str, int]:
        return {"TILES": self.TILES, "SHARED_BYTES": self.shared_bytes}

    @property
    def shared_bytes(self) -> int:
        """The size of `Shared`, which the source asserts: a piece of k, q, and scores."""
        return 4 * (self.KEYS * (HEAD_DIM // 2 + 4) + self.QUERIES * (HEAD_DIM + self.TILES))


def traffic(streams: int, tiles: int, wanted: int, summaries: int) -> Traffic:
    """Bytes of one launch in which every stream chooses `wanted` tiles for each; each place once, as for a prologue.

    summaries: its summary tiles, or 0. The list that a warp reads for its addends is what it has just written.
    """
    rows = streams * tiles
    return Traffic(2 * 4 * rows * HEAD_DIM, 4 * rows * (wanted + summaries * SLOTS))


# All of Wan2.1's own sizes at 81 frames have at most 630 tiles.
VARIANTS = {tiles: SelectKernel(tiles) for tiles in (640, 2048)}
MOST_TILES = max(VARIANTS)


def fitting(tiles: int) -> SelectKernel:
    """The smallest variant with room for so many tiles; ValueError above MOST_TILES."""
    if tiles > MOST_TILES:
        raise ValueError(f"{tiles} tiles; tiles are chosen among {MOST_TILES} at most")
    return VARIANTS[min(room for room in VARIANTS if room >= tiles)]
