"""The stated model of cost, by hand from the figures that it states."""

from __future__ import annotations

import pytest

from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid
from fpsgen.presets import cost
from fpsgen.wan.config import WAN_14B
from fpsgen.wan.plan import UNROUNDED, Linears

HD = 75_600  # tokens of 1280x720, 81 frames
# 9 bytes for each token and channel at 3.0 TB/s, against 4 operations for each pair and channel at 470 TFLOPS.
PROLOGUE = (9 / 3.0e12) / (4 * HD / 470e12)
# A score of 2 operations a channel for each pair of 630 tiles at 6 TFLOPS, against 4 for each pair of tokens at 470.
SELECT = (2 * 630**2 / 6e12) / (4 * HD**2 / 470e12)
WINDOW, TOP = KeyTiles((1, 1, 1), rest="summary"), KeyTiles(top=0.5)
D, F = 5120, 13824  # of Wan2.1 14B
ROUNDED = 5 / 3.0e12 / 2  # seconds for each number, halved as operations are
TILES = TileGrid((1, 1, 8), (1, 1, 2))  # 4 tiles, of which a window of one keeps a quarter


@pytest.mark.parametrize(
    ("density", "qk", "expected"),
    [
        (1.0, "bf16", 1.0),
        (0.25, "bf16", 0.25),
        (1.0, "fp8", 0.52691 + PROLOGUE),  # 470 of 892 TFLOPS
        (1.0, "int8", 0.53288 + PROLOGUE),  # 470 of 882 TFLOPS
        (0.1, "int8", 0.053288 + PROLOGUE),  # of skipped tiles nothing is computed, and all tokens are rounded
    ],
)
def test_cost_of_pairs(density: float, qk: str, expected: float) -> None:
    assert cost.of_pairs(density, qk, HD) == pytest.approx(expected, abs=1e-5)


def test_the_prologue_counts_for_more_where_tokens_are_few() -> None:
    """By tokens, where attention goes by their square: at 705 tokens it takes half of dense attention's time."""
    assert cost.of_pairs(1.0, "fp8", 705) - cost.of_pairs(1.0, "fp8", HD) == pytest.approx(0.5 - PROLOGUE, abs=1e-6)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (AttentionPlan(TILES), 1.0),
        (AttentionPlan(TILES, ((1, 1, 1),)), 0.25),
        (AttentionPlan(TILES, ((1, 1, 1), None), (0, 0, 0, 1), "int8", "fp8"), 0.4375 * 0.53288 + PROLOGUE),
        (AttentionPlan(TILES, qk="fp8", pv="fp8"), 0.52691 + PROLOGUE),
        (AttentionPlan(TILES, pv="fp8"), 0.52691 + PROLOGUE),  # rounded, too, and by the same kernel
        # A key for each of 630 tiles of 120 tokens, in whatever tiles the stand-in has.
        (AttentionPlan(TILES, (WINDOW,), (), "int8", "fp8"), (0.25 + 1 / 120) * 0.53288 + PROLOGUE),
        (AttentionPlan(TILES, (TOP,), (), "int8", "fp8"), 0.5 * 0.53288 + SELECT + PROLOGUE),
        (AttentionPlan(TILES, (None, TOP), (0, 0, 0, 1)), 0.875 + SELECT / 4),
    ],
    ids=str,
)
def test_cost_of_a_plan(plan: AttentionPlan, expected: float) -> None:
    assert cost.of_plan(plan, HD) == pytest.approx(expected, abs=1e-5)


def test_a_video_s_own_tiles_count_in_its_own_cost() -> None:
    """8 tokens in 4 tiles: a summary has a key for every second token; of pairs there are a quarter as many."""
    plain, summed = (
        cost.of_plan(AttentionPlan(TILES, (seen,)), 8) for seen in (TOP, KeyTiles(top=0.5, rest="summary"))
    )
    assert plain == pytest.approx(0.5 + SELECT * 120**2 / 4, abs=1e-5)
    assert summed - plain == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (UNROUNDED, (6 * D**2 + 2 * D * F) / 791.2e12),
        (Linears("fp8", "int8"), (4 * D**2 + 2 * D * F) / 1385.3e12 + 2 * D**2 / 791.2e12 + (3 * D + F) * ROUNDED),
        (Linears(ffn="fp8"), 6 * D**2 / 791.2e12 + 2 * D * F / 1385.3e12 + (D + F) * ROUNDED),
        (Linears(attention="fp8"), (2 * D**2 + 2 * D * F) / 791.2e12 + 4 * D**2 / 1385.3e12 + 2 * D * ROUNDED),
    ],
    ids=str,
)
def test_cost_of_linear_layers(precision: Linears, expected: float) -> None:
    """Operations by their rates, and the bytes that rounding moves; in units of dense attention. Cross-attention's q
    and o stay as they are."""
    attention = 2 * D * HD / 470e12  # both in halves: 2 operations for each weight, 4 for each pair and channel
    assert cost.of_linear(WAN_14B, HD, precision) == pytest.approx(expected / attention, rel=1e-6)
