"""What one self-attention layer computes at one denoising step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from fpsgen.attention.tiles import Shape3, TileGrid

QKPrecision = Literal["bf16", "fp8", "int8"]
PVPrecision = Literal["bf16", "fp8"]


@dataclass(frozen=True)
class AttentionPlan:
    """Which tiles of keys each tile of queries sees, and in which precision.

    windows: the distinct windows, as `TileGrid.fit` gives them; None is dense. heads: for each head, the index of its
    window; empty where all have the first. qk, pv: format of the operands of the two matrix products; bf16 is for not
    rounded, the 16 or 32 bits that the tensors come in. smooth_k: take the mean over tokens from k before it is
    rounded, which leaves exact attention as it is (SageAttention2, arXiv 2411.10958).

    A plan is a value: it holds no tensors. `tiles.key_lists` gives its lists, shared by all plans with that window.
    """

    tiles: TileGrid
    windows: tuple[Shape3 | None, ...] = (None,)
    heads: tuple[int, ...] = ()
    qk: QKPrecision = "bf16"
    pv: PVPrecision = "bf16"
    smooth_k: bool = True

    def __post_init__(self) -> None:
        for window in self.windows:
            if window is not None and self.tiles.fit(window) != window:
                raise ValueError(f"window {window} spans or exceeds the grid of {self.tiles.counts} tiles")
        if len(set(self.windows)) != len(self.windows):
            raise ValueError(f"windows {self.windows} are not distinct")
        if set(self.heads or (0,)) != set(range(len(self.windows))):
            raise ValueError(f"heads {self.heads} do not use exactly the {len(self.windows)} windows there are")
        if self.qk not in get_args(QKPrecision) or self.pv not in get_args(PVPrecision):
            raise ValueError(f"there is no precision qk={self.qk!r}, pv={self.pv!r}")

    def __str__(self) -> str:
        windows = ", ".join("dense" if w is None else "window {}x{}x{}".format(*w) for w in self.windows)
        tiles = "{}x{}x{}".format(*self.tiles.counts)
        smoothed = "" if self.qk == "bf16" else ", k smoothed" if self.smooth_k else ", k not smoothed"
        return f"{windows} of {tiles} tiles, density {self.density:.3g}, qk {self.qk}{smoothed}, pv {self.pv}"

    @property
    def is_dense(self) -> bool:
        return self.windows == (None,)

    @property
    def is_8bit(self) -> bool:
        """Whether any operand is rounded to 8 bits."""
        return self.qk != "bf16" or self.pv != "bf16"

    @cached_property
    def density(self) -> float:
        """The share of (query token, key token) pairs that are computed, mean over the heads."""
        each = [self.tiles.density(window) for window in self.windows]
        return sum(each[index] for index in self.heads or (0,)) / len(self.heads or (0,))

    def flops(self, heads: int, head_dim: int) -> float:
        """Floating-point operations of both products, 4 · head_dim per pair of tokens and head, for one batch entry."""
        return 4.0 * head_dim * heads * self.density * self.tiles.tokens**2

    def heads_of(self, index: int) -> list[int] | slice:
        """The heads that have window `index`, to index a tensor's axis of heads with."""
        if not self.heads:
            return slice(None)
        return [head for head, own in enumerate(self.heads) if own == index]
