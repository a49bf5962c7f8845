"""What one self-attention layer computes at one denoising step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil, prod
from typing import Literal, get_args

from fpsgen.attention.tiles import Shape3, TileGrid

QKPrecision = Literal["bf16", "fp8", "int8"]
PVPrecision = Literal["bf16", "fp8"]
Rest = Literal["drop", "summary"]


@dataclass(frozen=True)
class KeyTiles:
    """Which tiles of keys each tile of queries sees: a `window` around it, or the share `top` of all tiles, those that
    fit it best (`select`); all of them where there is neither. rest: whether the tiles that it does not see are
    dropped, or enter the softmax as one key each (`reference`)."""

    window: Shape3 | None = None
    top: float | None = None
    rest: Rest = "drop"

    def __str__(self) -> str:
        sees = "dense" if self.window is None else "window {}x{}x{}".format(*self.window)
        sees = sees if self.top is None else f"top {100 * self.top:.6g} %"
        return sees + (" with summary" if self.rest == "summary" else "")

    @property
    def is_window(self) -> bool:
        """Whether it is a window, or all tiles, and nothing else."""
        return self.top is None and self.rest == "drop"

    def count(self, tiles: TileGrid) -> int:
        """How many tiles each tile of queries sees; of a share, what makes it whole."""
        if self.top is None:
            return prod(self.window or tiles.counts)
        return max(1, ceil(self.top * prod(tiles.counts) - 1e-9))  # 0.07 of 100 is 7, not 7.000000000000001


# A window whose rest is dropped is written as its lengths alone; None is all tiles.
Seen = Shape3 | KeyTiles | None


def as_key_tiles(seen: Seen) -> KeyTiles:
    return seen if isinstance(seen, KeyTiles) else KeyTiles(seen)


def fit(seen: Seen, tiles: TileGrid) -> Seen:
    """`seen` as a plan over `tiles` has it: None where it is all tiles. ValueError as `TileGrid.fit`."""
    own = as_key_tiles(seen)
    if own.top is not None:
        return own if own.count(tiles) < prod(tiles.counts) else None
    window = own.window and tiles.fit(own.window)
    return KeyTiles(window, rest=own.rest) if window and own.rest == "summary" else window


@dataclass(frozen=True)
class AttentionPlan:
    """Which tiles of keys each tile of queries sees, and in which precision.

    seen: the distinct choices of key tiles, as `fit` gives them; None is dense. heads: for each head, the index of its
    choice; empty where all have the first. qk, pv: format of the operands of the two matrix products; bf16 is for not
    rounded, the 16 or 32 bits that the tensors come in. smooth_k: take the mean over tokens from k before it is
    rounded, which leaves exact attention as it is (SageAttention2, arXiv 2411.10958).

    A plan is a value: it holds no tensors. `tiles.key_lists` gives the lists of a window, shared by all plans that have
    it; `select` gives those of a `top` share, from q and k.
    """

    tiles: TileGrid
    seen: tuple[Seen, ...] = (None,)
    heads: tuple[int, ...] = ()
    qk: QKPrecision = "bf16"
    pv: PVPrecision = "bf16"
    smooth_k: bool = True

    def __post_init__(self) -> None:
        for own in self.seen:
            if fit(own, self.tiles) != own:
                told = (
                    f"{as_key_tiles(own)} spans or exceeds the grid of {self.tiles.counts} tiles, or is a plain window"
                )
                raise ValueError(f"{told}: write {fit(own, self.tiles)}")
        if len(set(self.seen)) != len(self.seen):
            raise ValueError(f"the choices {self.seen} are not distinct")
        if set(self.heads or (0,)) != set(range(len(self.seen))):
            raise ValueError(f"heads {self.heads} do not use exactly the {len(self.seen)} choices there are")
        if self.qk not in get_args(QKPrecision) or self.pv not in get_args(PVPrecision):
            raise ValueError(f"there is no precision qk={self.qk!r}, pv={self.pv!r}")

    def __str__(self) -> str:
        seen, tiles = ", ".join(map(str, self.key_tiles)), "{}x{}x{}".format(*self.tiles.counts)
        smoothed = "" if self.qk == "bf16" else ", k smoothed" if self.smooth_k else ", k not smoothed"
        return f"{seen} of {tiles} tiles, density {self.density:.3g}, qk {self.qk}{smoothed}, pv {self.pv}"

    @property
    def key_tiles(self) -> tuple[KeyTiles, ...]:
        """`seen`, all in one form."""
        return tuple(map(as_key_tiles, self.seen))

    @property
    def has_windows_only(self) -> bool:
        return all(own.is_window for own in self.key_tiles)

    @property
    def has_summary(self) -> bool:
        """Whether any head has a summary of the tiles that it does not see."""
        return any(own.rest == "summary" for own in self.key_tiles)

    @property
    def is_dense(self) -> bool:
        return self.seen == (None,)

    @property
    def is_8bit(self) -> bool:
        """Whether any operand is rounded to 8 bits."""
        return self.qk != "bf16" or self.pv != "bf16"

    @cached_property
    def density(self) -> float:
        """The share of (query token, key) pairs that are computed, mean over the heads. Keys are the tokens of all
        tiles that are seen and, with a summary, one for each other tile."""
        return self.mean(self.density_of)

    def density_of(self, own: KeyTiles) -> float:
        """The density of heads that see `own`."""
        skipped = prod(self.tiles.counts) - own.count(self.tiles) if own.rest == "summary" else 0
        return self.listed(own) + skipped / self.tiles.tokens

    def listed(self, own: KeyTiles) -> float:
        """The share of pairs in the tiles that are seen. Of a `top` share it is that of the tiles: which they are, and
        how many ragged ones are among them, the content decides."""
        if own.top is None:
            return self.tiles.density(own.window)
        return own.count(self.tiles) / prod(self.tiles.counts)

    def mean(self, of: Callable[[KeyTiles], float]) -> float:
        """The mean over the heads of a number that each choice of key tiles has."""
        each = [of(own) for own in self.key_tiles]
        return sum(each[index] for index in self.heads or (0,)) / len(self.heads or (0,))

    def flops(self, heads: int, head_dim: int) -> float:
        """Floating-point operations of both products, 4 · head_dim per pair of tokens and head, for one batch entry."""
        return 4.0 * head_dim * heads * self.density * self.tiles.tokens**2

    def heads_of(self, index: int) -> list[int] | slice:
        """The heads that have choice `index`, to index a tensor's axis of heads with."""
        if not self.heads:
            return slice(None)
        return [head for head, own in enumerate(self.heads) if own == index]


@lru_cache(maxsize=1024)
def of_heads(plan: AttentionPlan, first: int, end: int) -> AttentionPlan:
    """What a plan says of heads `first` to before `end` alone."""
    own = plan.heads[first:end]
    if not own:
        return plan
    used = sorted(set(own))
    heads = tuple(used.index(index) for index in own) if len(used) > 1 else ()
    return replace(plan, seen=tuple(plan.seen[index] for index in used), heads=heads)
