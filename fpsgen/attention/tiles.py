"""Token geometry: the (T, H, W) grid cut into 3-D tiles, their order, and the windows of tiles around each.

A tile is the unit of everything that follows: a contiguous run of rows, one block of the sparse score matrix,
one scale of an 8-bit format (FPSAttention, arXiv 2506.04648, sections 3.1 and 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from itertools import accumulate, product
from math import ceil, log, prod
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:  # geometry needs no torch, and commands that need nothing else do not wait for it
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")
Shape3 = tuple[int, int, int]
Lengths3 = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # along T, H and W


def outlives_inference(make: Callable[P, T]) -> Callable[P, T]:
    """Makes tensors outside inference mode, to keep them: one made inside could never take part in training."""

    @wraps(make)
    def outside(*args: P.args, **kwargs: P.kwargs) -> T:
        import torch

        with torch.inference_mode(False):
            return make(*args, **kwargs)

    return outside


_holders: list[list[Any]] = []


def kept(most: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keeps the latest results, so many, of what makes tensors; those given out inside `holding` for longer."""

    def keeping(make: Callable[P, T]) -> Callable[P, T]:
        cached: Any = lru_cache(most)(outlives_inference(make))

        @wraps(make)
        def give(*args: P.args, **kwargs: P.kwargs) -> T:
            value = cached(*args, **kwargs)
            for holder in _holders:
                holder.append(value)
            return value

        give.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
        return give

    return keeping


@contextmanager
def holding() -> Iterator[list[Any]]:
    """A list of all that `kept` functions give out inside: as long as it lives, they stay at their addresses."""
    holder: list[Any] = []
    _holders.append(holder)
    try:
        yield holder
    finally:
        _holders.pop()


# 120 tokens each, 3 latent frames deep. At 81 frames the first covers 1280x720 exactly, the second
# 832x480; the last two are their portrait twins.
_WAN_TILES: tuple[Shape3, ...] = ((3, 5, 8), (3, 10, 4), (3, 8, 5), (3, 4, 10))


def default_tile(grid: Shape3) -> Shape3:
    """The tile that pads `grid` least; the earlier of two that pad equally."""
    return min(_WAN_TILES, key=lambda tile: prod(ceil(g / t) * t for g, t in zip(grid, tile, strict=True)))


@dataclass(frozen=True)
class TileGrid:
    """A token grid cut into tiles, edge tiles ragged where the tile does not divide the grid.

    Tiles follow one another in raster order, and so do the tokens inside a tile; a tile is a contiguous
    run of rows.
    """

    grid: Shape3
    tile: Shape3

    @classmethod
    def cut(cls, grid: Shape3, tile: Shape3 | None = None) -> TileGrid:
        """`grid` in tiles of a shape, by default the one that pads it least."""
        return cls(grid, tile or default_tile(grid))

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or min(self.tile) < 1:
            raise ValueError(f"grid {self.grid} and tile {self.tile} must be at least 1 along every axis")

    @property
    def tokens(self) -> int:
        return prod(self.grid)

    @property
    def counts(self) -> Shape3:
        """Tiles along each axis."""
        t, h, w = (ceil(g / t) for g, t in zip(self.grid, self.tile, strict=True))
        return t, h, w

    @property
    def edges(self) -> Lengths3:
        """Per axis, for each tile along it, how long it is there. Only the last may be short."""
        t, h, w = (
            (*[tile] * (count - 1), size - tile * (count - 1))
            for size, tile, count in zip(self.grid, self.tile, self.counts, strict=True)
        )
        return t, h, w

    @cached_property
    @outlives_inference
    def valid(self) -> Tensor:
        """int64 [tiles]: tokens of each tile."""
        import torch

        t, h, w = map(torch.tensor, self.edges)
        return (t[:, None, None] * h[:, None] * w).flatten()

    @cached_property
    @outlives_inference
    def offsets(self) -> Tensor:
        """int64 [tiles + 1]: tile i holds rows offsets[i] to offsets[i + 1]."""
        import torch

        return torch.cat([torch.zeros(1, dtype=torch.int64), self.valid.cumsum(0)])

    @cached_property
    @outlives_inference
    def inverse(self) -> Tensor:
        """int64 [tokens]: the raster token that stands in each row; `tokens[inverse]` is tile order."""
        import torch

        t, h, w = (torch.arange(size) // tile for size, tile in zip(self.grid, self.tile, strict=True))
        _, high, wide = self.counts
        tile_of_token = (t[:, None, None] * high + h[:, None]) * wide + w
        return tile_of_token.flatten().argsort(stable=True)  # inside a tile, tokens keep their order

    @cached_property
    @outlives_inference
    def order(self) -> Tensor:
        """int64 [tokens]: the row of each raster token; `rows[order]` is raster order again."""
        return self.inverse.argsort()

    def fit(self, window: Shape3) -> Shape3 | None:
        """`window` cut to the grid, in tiles; None where it spans all of it, which is dense attention.

        ValueError for an even length that does not span its axis: such a window has no tile at its centre.
        """
        if min(window) < 1:
            raise ValueError(f"window {window}: each length must be at least 1 tile")
        t, h, w = (min(length, count) for length, count in zip(window, self.counts, strict=True))
        for axis, length, count in zip("THW", (t, h, w), self.counts, strict=True):
            if length < count and length % 2 == 0:
                raise ValueError(
                    f"window {window}: {length} of {count} tiles along {axis} is even; "
                    f"a window is odd, or spans its axis"
                )
        return None if (t, h, w) == self.counts else (t, h, w)

    @property
    def lengths(self) -> Lengths3:
        """The lengths that a window may have along T, H and W, ascending: odd, or spanning the axis."""
        t, h, w = (tuple(sorted({*range(1, count + 1, 2), count})) for count in self.counts)
        return t, h, w

    @cached_property
    def windows(self) -> tuple[Shape3, ...]:
        """Every window there is, odd or spanning along each axis; all tiles, which is dense, among them."""
        t, h, w = self.lengths
        return tuple(product(t, h, w))

    def window_of(self, density: float) -> Shape3 | None:
        """The window that keeps at least `density` of all pairs, little more than that, and a like share of each axis.

        It has the least sum of squares of log(kept / density), tenfold, and of log(share / density^(1/3)) of each axis.
        None, for all tiles, where no other keeps that much.
        """
        wanted = log(density) / 3
        logs = {window: [log(share) for share in self._shares(window)] for window in self.windows}
        dense_enough = (window for window in self.windows if sum(logs[window]) >= log(density) - 1e-9)

        def far(window: Shape3) -> float:
            kept, each = sum(logs[window]) - log(density), logs[window]
            return round(10 * kept**2 + sum((share - wanted) ** 2 for share in each), 9)

        best = min(dense_enough, key=lambda window: (far(window), window))
        return None if best == self.counts else best

    def density(self, window: Shape3 | None) -> float:
        """The share of (query token, key token) pairs inside `window`, a product over the axes; 1 where it is None."""
        return prod(self._shares(window))

    def _shares(self, window: Shape3 | None) -> Iterator[float]:
        """The share of the pairs along each axis that `window` contains."""
        for edges, begins, length in zip(self.edges, self.begins(window), window or self.counts, strict=True):
            before = list(accumulate(edges, initial=0))
            seen = (before[first + length] - before[first] for first in begins)  # key tokens, by query tile
            yield sum(edge * keys for edge, keys in zip(edges, seen, strict=True)) / sum(edges) ** 2

    def begins(self, window: Shape3 | None) -> Lengths3:
        """Per axis, for each tile along it, where the window around it begins.

        Centres are clamped, so that a border tile sees a full window, too (as Sliding Tile Attention's do).
        """
        pairs = zip(window or self.counts, self.counts, strict=True)
        t, h, w = (
            tuple(min(max(tile - length // 2, 0), count - length) for tile in range(count)) for length, count in pairs
        )
        return t, h, w


@dataclass(frozen=True, eq=False)
class KeyLists:
    """The distinct lists of key tiles of one window, in CSR form, and which of them each query tile has.

    row_ptr: int32 [lists + 1]; cols: int32 [entries], ascending in each list; list_of: int32 [tiles].
    Clamping gives neighbours at a border one list; there are Π (count - length + 1), all of Π length tiles. ValueError
    for a list without tiles: a softmax has no sum there, and the Hopper kernel would wait for a tile that never comes.
    """

    row_ptr: Tensor
    cols: Tensor
    list_of: Tensor

    def __post_init__(self) -> None:
        if (empty := (self.row_ptr.diff() < 1).nonzero()).numel():
            raise ValueError(f"list {int(empty[0])} of {len(self.row_ptr) - 1} has no key tile: each needs at least 1")

    def split(self) -> tuple[Tensor, ...]:
        """The key tiles of each list."""
        return self.cols.split(self.row_ptr.diff().tolist())


@lru_cache(maxsize=256)  # plans of a schedule share their lists through this
@outlives_inference
def key_lists(tiles: TileGrid, window: Shape3) -> KeyLists:
    """The lists of `window`, one that `tiles.fit` gave or all `tiles.counts`, on the CPU."""
    import torch

    counts = tiles.counts
    lists_along = [count - length + 1 for length, count in zip(window, counts, strict=True)]
    first_t, first_h, first_w = map(torch.tensor, tiles.begins(window))
    list_of = (first_t[:, None, None] * lists_along[1] + first_h[:, None]) * lists_along[2] + first_w
    # Tile numbers of each list: six axes, three that say where the window begins, three inside it.
    t, h, w = (
        torch.arange(many)[:, None] + torch.arange(length) for many, length in zip(lists_along, window, strict=True)
    )
    t, h, w = t[:, None, None, :, None, None], h[None, :, None, None, :, None], w[None, None, :, None, None, :]
    cols = (t * counts[1] + h) * counts[2] + w
    row_ptr = torch.arange(prod(lists_along) + 1) * prod(window)
    return KeyLists(*(x.flatten().int() for x in (row_ptr, cols, list_of)))
