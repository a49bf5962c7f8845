"""A plan is a value that says what is computed, and what that costs."""

from __future__ import annotations

import pytest
import torch

from fpsgen.attention import reference
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid, key_lists
from fpsgen.presets import DENSE_HEAD, Layers, Phase, Preset

HD = TileGrid((21, 45, 80), (3, 5, 8))  # 1280x720, 81 frames: 7 x 9 x 10 tiles


def test_flops_of_dense_and_sparse() -> None:
    """Wan2.1-14B at 720p: 40 heads of 128 over 75,600 tokens, 4 · head_dim per pair."""
    assert AttentionPlan(HD).flops(40, 128) == 4 * 128 * 40 * 75_600**2
    sparse = AttentionPlan(HD, ((7, 3, 5),))
    assert sparse.density == pytest.approx(1 / 6)
    assert sparse.flops(40, 128) == pytest.approx(4 * 128 * 40 * 75_600**2 / 6)


def test_density_is_the_mean_over_heads() -> None:
    plan = AttentionPlan(HD, (None, (7, 3, 5)), (0, 1, 1, 1))
    assert plan.density == pytest.approx((1 + 3 / 6) / 4)


def test_plans_that_mean_nothing_are_refused() -> None:
    for arguments, told in (
        ({"seen": ((2, 3, 5),)}, "even"),
        ({"seen": ((7, 9, 10),)}, "spans"),
        ({"seen": (None, (1, 1, 1))}, "exactly"),
        ({"seen": (None,), "heads": (0, 1)}, "exactly"),
        ({"seen": (None, None), "heads": (0, 1)}, "distinct"),
        ({"qk": "fp4"}, "precision"),
        ({"pv": "int8"}, "precision"),
    ):
        with pytest.raises(ValueError, match=told):
            AttentionPlan(HD, **arguments)  # type: ignore[arg-type]


def test_a_schedule_at_720p_takes_little_memory() -> None:
    """Fifty steps of 40 layers whose heads have one of twelve windows; at most 64 MB, lists shared, dense none."""
    windows = [(t, h, w) for t in (3, 5, 7) for h in (3, 5) for w in (3, 5)]
    letters = "abcdefghijkl"
    phases = tuple(
        Phase(
            sigma=(1 - i / 12, 1 - (i + 1) / 12),
            heads=(letter + DENSE_HEAD) * 20,
            layers=(Layers(at=tuple(range(0, 40, 2)), window=windows[i]),),
        )
        for i, letter in enumerate(letters)
    )
    preset = Preset(name="many", phases=phases, windows=dict(zip(letters, windows, strict=True)))
    schedule = preset.schedule([1 - i / 50 for i in range(50)], HD, 40, 40)
    tensors, rows = {}, {}
    for plan in (plan for step in schedule for plan in step.attention):
        for window in (own.window for own in plan.key_tiles):
            if window is not None:
                lists = key_lists(HD, window)
                tensors |= {x.data_ptr(): x.nbytes for x in (lists.row_ptr, lists.cols, lists.list_of)}
                order, inverse, groups = reference.grouped(HD, window, torch.device("cpu"))
                kept = [order, inverse, *(group.keys for group in groups)]
                rows |= {x.data_ptr(): x.nbytes for x in kept}  # what the reference adds
    assert len(tensors) == 3 * 12
    assert 0 < sum(tensors.values()) <= 2**20  # a kernel needs no more
    assert sum(tensors.values()) + sum(rows.values()) <= 64 * 2**20
