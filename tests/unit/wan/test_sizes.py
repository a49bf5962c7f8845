"""Sizes and defaults."""

from __future__ import annotations

import pytest

from fpsgen.errors import UsageError
from fpsgen.wan import sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("480p", (832, 480)),
        ("720P", (1280, 720)),
        ("640x368", (640, 368)),
        ("832*480", (832, 480)),
        ("16X16", (16, 16)),
    ],
)
def test_resolutions(text: str, size: tuple[int, int]) -> None:
    assert sizes.parse_resolution(text) == size


@pytest.mark.parametrize("text", ["1080", "x", "0x0", "-16x16", "8x16", "99999x16", "480px", "16x16x16", ""])
def test_nonsense_resolutions(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        sizes.parse_resolution(text)
    assert caught.value.hint


def test_sizes_off_the_grid_name_the_nearest() -> None:
    sizes.check_model_size(1280, 720)
    with pytest.raises(UsageError) as caught:
        sizes.check_model_size(1920, 1080)
    assert caught.value.hint == "try --res 1920x1088"
    with pytest.raises(UsageError) as caught:
        sizes.check_scaled_size(101, 64)
    assert caught.value.hint == "try --res 102x64"


@pytest.mark.parametrize("frames", [1, 5, 25, 81])
def test_legal_frames(frames: int) -> None:
    sizes.check_frames(frames)


@pytest.mark.parametrize(("frames", "near"), [(0, "1"), (-3, "1"), (2, "1 or 5"), (80, "77 or 81"), (83, "81 or 85")])
def test_illegal_frames_name_the_nearest(frames: int, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        sizes.check_frames(frames)
    assert caught.value.hint == f"try --frames {near}"


def test_wan_defaults() -> None:
    """Wan2.1 `generate.py` and README, stated here a second time on purpose."""
    small, large = sizes.DEFAULTS["1.3b"], sizes.DEFAULTS["14b"]
    assert (small.width, small.height, small.frames, small.fps, small.steps) == (832, 480, 81, 16, 50)
    assert (large.width, large.height, large.frames, large.fps, large.steps) == (1280, 720, 81, 16, 50)
    assert (small.guidance, small.shift) == (6, 8)
    assert (large.guidance, large.shift) == (5, 5)
    assert small.negative == large.negative
    assert small.negative.startswith("色调艳丽")
    assert small.negative.endswith("倒着走")
    assert len(small.negative.split("，")) == 28  # noqa: RUF001 (phrases in the original's list)
