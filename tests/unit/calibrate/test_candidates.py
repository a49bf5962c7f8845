"""What a calibration chooses from, by hand on few tiles."""

from __future__ import annotations

import math

import pytest

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.calibrate.candidates import Candidates
from fpsgen.presets import cost

ROW = TileGrid((1, 1, 5), (1, 1, 1))  # windows of 1, 3 and all 5 tiles keep 0.2, 0.6 and 1 of all pairs
CANDIDATES = Candidates(ROW, 75_600)


def test_windows_and_what_they_keep() -> None:
    assert CANDIDATES.windows == ((1, 1, 1), (1, 1, 3), (1, 1, 5))
    assert CANDIDATES.densities == pytest.approx((0.2, 0.6, 1.0))


def test_of_long_axes_four_lengths_are_spread_from_one_to_all() -> None:
    assert Candidates(TileGrid((4, 7, 20), (1, 1, 1)), 1).lengths == ((1, 3, 4), (1, 3, 5, 7), (1, 7, 15, 20))


def test_sparse_attention_is_to_be_had_in_8_bits_alone() -> None:
    """The kernel has no other: a schedule with sparse BF16 would be solved for a price that nothing has."""
    unrounded, *rounded = CANDIDATES.costs.tolist()
    assert unrounded == [math.inf, math.inf, 1.0]
    for costs, precision in zip(rounded, ("int8", "fp8"), strict=True):
        assert costs == pytest.approx([cost.of_pairs(kept, precision, 75_600) for kept in (0.2, 0.6, 1.0)])


def test_the_probe_is_int8_at_about_half_of_all_pairs() -> None:
    assert CANDIDATES.probe == (1, 1)
    assert CANDIDATES.probe_plan(3) == AttentionPlan(ROW, ((1, 1, 3),), (), "int8", "fp8")


def test_each_head_of_a_plan_has_its_own_window() -> None:
    assert CANDIDATES.plan(2, [1, 0, 0, 2]) == AttentionPlan(
        ROW, ((1, 1, 3), (1, 1, 1), None), (0, 1, 1, 2), "fp8", "fp8"
    )
    assert CANDIDATES.plan(0, [2, 2]) == AttentionPlan(ROW)
