"""Tile order and windows: properties of every size that Wan2.1 can render."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest
import torch

from fpsgen.attention.tiles import KeyLists, Shape3, TileGrid, default_tile, key_lists

CPU = torch.device("cpu")
CASES = [
    ((21, 45, 80), (3, 5, 8)),
    ((21, 30, 52), (3, 10, 4)),
    ((7, 6, 10), (2, 2, 2)),
    ((5, 7, 3), (3, 5, 8)),
    ((1, 1, 1), (3, 5, 8)),
    ((4, 9, 5), (3, 2, 4)),
]


def wan_grids() -> Iterator[Shape3]:
    """Token grids of 16x16 to 1920x1088 pixels in steps of 16, and of 1 to 161 frames."""
    yield from itertools.product(range(1, 42), range(1, 1088 // 16 + 1), range(1, 1920 // 16 + 1))


def windows(tiles: TileGrid) -> list[Shape3]:
    """All legal windows, as `fit` gives them, the full one among them."""
    along = [[n for n in range(1, count + 1) if n % 2 or n == count] for count in tiles.counts]
    return list(itertools.product(*along))


def check_order(tiles: TileGrid) -> None:
    """Rows are a permutation of the tokens, and each tile's rows are its cuboid, in raster order."""
    order, inverse = tiles.order, tiles.inverse
    assert len(order) == len(inverse) == tiles.tokens
    assert torch.equal(inverse[order], torch.arange(tiles.tokens))  # hence a permutation: nothing is lost or doubled
    counts, valid, offsets = tiles.counts, tiles.valid, tiles.offsets
    assert len(valid) == math.prod(counts)
    assert len(offsets) == len(valid) + 1
    assert int(offsets[0]) == 0
    assert int(offsets[-1]) == int(valid.sum()) == tiles.tokens
    # The tile of each token, by its coordinates; rows must hold tile 0 first, as often as it has tokens, then tile 1, …
    parts = [
        torch.div(torch.arange(size), step, rounding_mode="floor")
        for size, step in zip(tiles.grid, tiles.tile, strict=True)
    ]
    tile_of = ((parts[0][:, None, None] * counts[1] + parts[1][:, None]) * counts[2] + parts[2]).flatten()
    assert torch.equal(tile_of[inverse], torch.arange(len(valid)).repeat_interleave(valid))
    assert bool((inverse.diff() > 0)[tile_of[inverse].diff() == 0].all())  # raster order inside each


def check_window(tiles: TileGrid, window: Shape3) -> None:
    """Every query tile sees the `window` of tiles around its clamped centre, in one ascending list; density is what the
    lists say."""
    assert tiles.fit(window) == (None if window == tiles.counts else window)
    lists = key_lists.__wrapped__(tiles, window)
    cols = lists.cols.view(-1, math.prod(window))  # so every list has its full length, at a border, too
    assert torch.equal(lists.row_ptr, torch.arange(len(cols) + 1, dtype=torch.int32) * math.prod(window))
    assert bool((cols.diff(dim=1) > 0).all())  # sorted, and unique
    assert int(cols[0, 0]) == 0
    assert int(cols[-1, -1]) == len(tiles.valid) - 1
    assert len(lists.list_of.bincount(minlength=len(cols))) == len(cols)
    assert bool((lists.list_of.bincount() > 0).all())  # no list that nobody has
    own = cols[lists.list_of]
    # All entries of a list differ, and it has as many as the window has tiles: so it is enough that none lies too far.
    numbers = torch.arange(len(tiles.valid))
    places = zip(torch.unravel_index(numbers, tiles.counts), torch.unravel_index(own, tiles.counts), strict=True)
    for (query, keys), length, count in zip(places, window, tiles.counts, strict=True):
        if length < count:  # else the whole axis is seen
            half = (length - 1) // 2
            centre = query.clamp(half, count - 1 - half)
            assert bool(((keys - centre[:, None]).abs() <= half).all())
    pairs = int((tiles.valid * tiles.valid[own].sum(1)).sum())
    assert tiles.density(window) == pytest.approx(pairs / tiles.tokens**2, rel=1e-12)  # two ways to add integers


@pytest.mark.parametrize(("grid", "tile"), CASES, ids=str)
def test_tiles_are_contiguous_and_complete(grid: Shape3, tile: Shape3) -> None:
    check_order(TileGrid(grid, tile))


def test_order_is_what_its_definition_says() -> None:
    """By sorting coordinates in plain Python, for a grid that is ragged along every axis."""
    tiles = TileGrid((4, 5, 7), (3, 2, 4))
    raster = list(itertools.product(*map(range, tiles.grid)))
    by_tile = sorted(raster, key=lambda token: ([c // s for c, s in zip(token, tiles.tile, strict=True)], token))
    assert [raster[i] for i in tiles.inverse.tolist()] == by_tile


def test_tiles_and_windows_of_many_sizes() -> None:
    rng = random.Random(5)
    grids = [grid for grid in rng.sample(list(wan_grids()), 400) if math.prod(grid) < 60_000]
    grids += [(t, h, w) for t in (1, 41) for h in (1, 68) for w in (1, 120)]
    for grid in grids:
        tiles = TileGrid(grid, default_tile(grid))
        check_order(tiles)
        for window in rng.sample(windows(tiles), 2) if len(tiles.valid) > 1 else windows(tiles):
            if len(tiles.valid) * math.prod(window) < 4_000_000:
                check_window(tiles, window)


@pytest.mark.parametrize("tile", [(2, 2, 2), (1, 3, 2), (3, 5, 8)], ids=str)
def test_every_window_of_a_ragged_grid(tile: Shape3) -> None:
    for grid in ((7, 6, 10), (5, 11, 13)):
        tiles = TileGrid(grid, tile)
        for window in windows(tiles):
            check_window(tiles, window)


@pytest.mark.slow
def test_order_of_every_size() -> None:
    for grid in wan_grids():
        check_order(TileGrid(grid, default_tile(grid)))


@pytest.mark.slow
def test_windows_of_every_size() -> None:
    """One window of each size, drawn from all; lists depend on the counts of tiles alone, densities on the grid."""
    rng = random.Random(6)
    for grid in wan_grids():
        tiles = TileGrid(grid, default_tile(grid))
        window = rng.choice(windows(tiles))
        assert tiles.fit((99, 99, 199)) is None  # larger than any grid here: dense
        check_window(tiles, window)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("count", "length", "firsts"),
    [
        (5, 1, [0, 1, 2, 3, 4]),
        (5, 3, [0, 0, 1, 2, 2]),
        (5, 5, [0, 0, 0, 0, 0]),
        (6, 3, [0, 0, 1, 2, 3, 3]),
        (6, 5, [0, 0, 0, 1, 1, 1]),
        (6, 6, [0, 0, 0, 0, 0, 0]),
        (9, 5, [0, 0, 0, 1, 2, 3, 4, 4, 4]),
        (9, 7, [0, 0, 0, 0, 1, 2, 2, 2, 2]),
    ],
)
def test_windows_slide_and_stop_at_the_border(axis: int, count: int, length: int, firsts: list[int]) -> None:
    """By hand, along one axis: where the window around each tile begins, the last tile being ragged."""
    grid, window = [1, 1, 1], [1, 1, 1]
    grid[axis], window[axis] = 2 * count - 1, length
    tile = [1, 1, 1]
    tile[axis] = 2
    lists = key_lists(TileGrid(tuple(grid), tuple(tile)), tuple(window))  # type: ignore[arg-type]
    seen = [lists.split()[i].tolist() for i in lists.list_of.tolist()]
    assert seen == [list(range(first, first + length)) for first in firsts]


def test_a_list_without_key_tiles_is_refused() -> None:
    """A kernel would wait for its first tile for ever."""
    row_ptr, cols, list_of = (torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 2, 3], [0, 1, 2], [0, 1, 2]))
    with pytest.raises(ValueError, match="list 1 of 3"):
        KeyLists(row_ptr, cols, list_of)
    with pytest.raises(ValueError, match="at least 1"):
        key_lists(TileGrid((4, 4, 4), (1, 1, 1)), (1, 0, 1))


def test_an_even_window_spans_its_axis_or_is_refused() -> None:
    tiles = TileGrid((7, 6, 10), (2, 2, 2))  # 4 x 3 x 5 tiles
    assert tiles.fit((4, 1, 1)) == (4, 1, 1)
    assert tiles.fit((6, 9, 8)) is None
    with pytest.raises(ValueError, match="2 of 4 tiles along T is even"):
        tiles.fit((2, 3, 5))
    with pytest.raises(ValueError, match="at least 1"):
        tiles.fit((1, 0, 1))


def test_density_of_ragged_tiles_counts_tokens() -> None:
    """Three tiles of 2, 2 and 1 tokens, each seeing itself: (4 + 4 + 1) of 25 pairs."""
    assert TileGrid((1, 1, 5), (1, 1, 2)).density((1, 1, 1)) == pytest.approx(9 / 25)


def seen_share(size: int, tile: int, length: int) -> float:
    """The share of pairs of tokens along one axis that a window of `length` tiles keeps, pair by pair."""
    count, half = math.ceil(size / tile), length // 2
    pairs = 0
    for query, key in itertools.product(range(size), repeat=2):
        centre = min(max(query // tile, half), count - 1 - half)
        pairs += length == count or abs(key // tile - centre) <= half
    return pairs / size**2


def test_density_is_the_share_of_pairs_of_tokens() -> None:
    """Pair by pair: odd and even counts of tiles, ragged and whole, windows up to the grid."""
    tiles = TileGrid((5, 12, 20), (2, 2, 3))  # 3 x 6 x 7 tiles, short ones along T and W
    for window in windows(tiles):
        axes = zip(tiles.grid, tiles.tile, window, strict=True)
        assert tiles.density(window) == pytest.approx(math.prod(itertools.starmap(seen_share, axes)), rel=1e-12)


@pytest.mark.parametrize("wanted", [1e-3, 0.01, 0.02, 0.06, 0.11, 0.2, 0.35, 0.5, 0.7, 0.95])
def test_the_window_of_a_density_is_the_nearest_that_keeps_as_much(wanted: float) -> None:
    """By search over all windows, with the distance that `window_of` states."""
    tiles = TileGrid((5, 12, 20), (2, 2, 3))
    far: dict[Shape3, float] = {}
    for window in windows(tiles):
        shares = list(itertools.starmap(seen_share, zip(tiles.grid, tiles.tile, window, strict=True)))
        if math.prod(shares) >= wanted * (1 - 1e-9):
            apart = [math.log(share) - math.log(wanted) / 3 for share in shares]
            far[window] = 10 * (math.log(math.prod(shares)) - math.log(wanted)) ** 2 + sum(x**2 for x in apart)
    found = tiles.window_of(wanted) or tiles.counts
    assert far[found] == pytest.approx(min(far.values()), abs=1e-8)


def test_the_window_of_a_density_has_a_like_share_of_each_axis() -> None:
    """Others of the same density reach across one axis and hardly along another, such as 1 x 3 x 9."""
    assert TileGrid((9, 9, 9), (1, 1, 1)).window_of(1 / 27) == (3, 3, 3)


def test_lists_are_shared() -> None:
    """Plans of a schedule ask again and again."""
    first, again = (key_lists(TileGrid((7, 6, 10), (2, 2, 2)), (3, 3, 3)) for _ in range(2))
    assert isinstance(first, KeyLists)
    assert first is again


def test_wan_sizes_have_exact_covers_of_120_tokens() -> None:
    exact = {(21, 45, 80): 630, (21, 30, 52): 273, (21, 80, 45): 630, (21, 52, 30): 273}
    for grid, count in exact.items():
        sizes = TileGrid(grid, default_tile(grid)).valid
        assert len(sizes) == count
        assert (sizes == 120).all()


def test_of_tiles_that_pad_equally_the_first_is_taken() -> None:
    """A preset of a window or a density means nothing without the tile: 640x640 is covered exactly by all four."""
    assert default_tile((21, 40, 40)) == (3, 5, 8)
    assert default_tile((21, 20, 52)) == (3, 10, 4)  # the other three pad it


def test_the_largest_legal_size_has_an_order() -> None:
    """4096 x 4096 pixels, and 4093 frames of the smallest."""
    for grid in ((1, 256, 256), (1024, 1, 1)):
        check_order(TileGrid(grid, default_tile(grid)))


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TileGrid((0, 2, 2), (1, 1, 1))
