"""What a calibration chooses from, by hand on few tiles."""

from __future__ import annotations

import math

import pytest

from fpsgen.attention.plan import AttentionPlan, KeyTiles, fit
from fpsgen.attention.tiles import TileGrid
from fpsgen.calibrate.candidates import Candidates
from fpsgen.presets import cost

ROW = TileGrid((1, 1, 5), (1, 1, 1))  # windows of 1 and 3 tiles; shares of 1 to 4
CANDIDATES = Candidates(ROW, 75_600)
CHOICES = (
    *(KeyTiles((1, 1, length)) for length in (1, 3)),
    *(KeyTiles((1, 1, length), rest="summary") for length in (1, 3)),
    *(KeyTiles(top=share) for share in (0.2, 0.4, 0.5, 0.8)),
    *(KeyTiles(top=share, rest="summary") for share in (0.2, 0.4, 0.5, 0.8)),
    KeyTiles(),
)


def test_windows_and_shares_with_and_without_summary() -> None:
    """Of shares that come to as many tiles one is enough."""
    assert CANDIDATES.choices == CHOICES
    kept = (0.2, 0.6, 1, 1, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1)  # tiles of one token: a mean is as many keys as the tile
    assert CANDIDATES.densities == pytest.approx(kept)


def test_of_long_axes_four_lengths_are_spread_from_one_to_all() -> None:
    every = [own.window for own in Candidates(TileGrid((4, 7, 20), (1, 1, 1)), 75_600).choices if own.window]
    along = [sorted({window[axis] for window in every}) for axis in range(3)]
    assert along == [[1, 3, 4], [1, 3, 5, 7], [1, 7, 15, 20]]


def test_sparse_attention_is_to_be_had_in_8_bits_alone() -> None:
    """The kernel has no other: a schedule with sparse BF16 would be solved for a price that nothing has."""
    unrounded, *rounded = CANDIDATES.costs.tolist()
    assert unrounded == [math.inf] * (len(CHOICES) - 1) + [1.0]
    for costs, precision in zip(rounded, ("int8", "fp8"), strict=True):
        each = [AttentionPlan(ROW, (fit(own, ROW),), (), precision, "fp8") for own in CHOICES]
        assert costs == pytest.approx([cost.of_plan(plan, 75_600) for plan in each])


def test_the_probe_is_int8_and_the_best_fifth_with_a_summary() -> None:
    assert CANDIDATES.choices[CANDIDATES.probe[1]] == KeyTiles(top=0.2, rest="summary")
    assert CANDIDATES.probe_plan(3) == AttentionPlan(ROW, (KeyTiles(top=0.2, rest="summary"),), (), "int8", "fp8")


def test_each_head_of_a_plan_has_its_own_key_tiles() -> None:
    seen = ((1, 1, 3), (1, 1, 1), KeyTiles(top=0.4, rest="summary"), None)
    assert CANDIDATES.plan(2, [1, 0, 0, 9, 12]) == AttentionPlan(ROW, seen, (0, 1, 1, 2, 3), "fp8", "fp8")
    assert CANDIDATES.plan(0, [12, 12]) == AttentionPlan(ROW)
