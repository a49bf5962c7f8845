"""Sizes and defaults."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fpsgen import settings
from fpsgen.errors import UsageError, option
from fpsgen.wan import config, sizes


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
    assert caught.value.marked_hint == f"try {option('res', '1920x1088')}"
    with pytest.raises(UsageError) as caught:
        sizes.check_scaled_size(101, 64)
    assert caught.value.marked_hint == f"try {option('res', '102x64')}"


@pytest.mark.parametrize("frames", [1, 5, 25, 81])
def test_legal_frames(frames: int) -> None:
    sizes.check_frames(frames)


@pytest.mark.parametrize(("frames", "near"), [(0, "1"), (-3, "1"), (2, "1 or 5"), (80, "77 or 81"), (83, "81 or 85")])
def test_illegal_frames_name_the_nearest(frames: int, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        sizes.check_frames(frames)
    assert caught.value.marked_hint == f"try {option('frames', near)}"


@pytest.mark.parametrize("text", ["4112x16", "16x4112", "15x16", "16x15"])
def test_sides_end_at_the_smallest_and_largest(text: str) -> None:
    assert sizes.parse_resolution("4096x16") == (4096, 16)
    with pytest.raises(UsageError, match="each side must be 16 to 4096 pixels"):
        sizes.parse_resolution(text)


@pytest.mark.parametrize(("width", "height"), [(840, 480), (832, 488)])
def test_both_sides_are_multiples_of_16(width: int, height: int) -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        sizes.check_model_size(width, height)


@pytest.mark.parametrize(("width", "height", "near"), [(101, 64, "102x64"), (64, 33, "64x34")])
def test_both_sides_of_a_file_are_even(width: int, height: int, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        sizes.check_scaled_size(width, height)
    assert caught.value.marked_hint == f"try {option('res', near)}"


def test_frames_end_where_positions_do() -> None:
    """1024 positions in time: 1 frame, then 4 for each further one."""
    sizes.check_frames(1 + 4 * 1023)
    with pytest.raises(UsageError, match="at most 4093"):
        sizes.check_frames(1 + 4 * 1024)


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        ("steps", (1, 1000), (0, 1001)),
        ("guidance", (0, 1, 100), (-0.1, 100.1, float("nan"))),
        ("shift", (0.01, 100), (0.009, 100.1, float("nan"))),
        ("frames", (1, 81), (0, 80)),
    ],
)
def test_settings_end_where_they_mean_nothing(setting: str, good: tuple, bad: tuple) -> None:
    nothing = {"frames": None, "steps": None, "guidance": None, "shift": None}
    for value in good:
        settings.check_settings(**nothing | {setting: value})
    for value in bad:
        with pytest.raises(UsageError, match=f"^{setting}"):
            settings.check_settings(**nothing | {setting: value})


def test_a_named_size_is_what_the_model_renders() -> None:
    assert sizes.of_model(1280, 720, 16) == (1280, 704)
    assert sizes.of_model(832, 480, 16) == (832, 480)
    assert sizes.of_model(1280, 720, 8) == (1280, 720)
    with pytest.raises(UsageError, match="multiples of 32"):
        sizes.check_model_size(*sizes.of_model(1280, 752, 16), stride=16)
    assert sizes.latent_shape(121, 704, 1280, stride=16) == (31, 44, 80)


def test_latents_of_a_video() -> None:
    """4 frames of 8 x 8 pixels each, but the first, which stands alone."""
    assert sizes.latent_shape(81, 480, 832) == (21, 60, 104)
    assert sizes.latent_shape(1, 720, 1280) == (1, 90, 160)


@pytest.mark.parametrize(("dim", "kind"), [(192, "1.3b"), (1536, "1.3b"), (1664, "14b"), (5120, "14b")])
def test_a_model_is_taken_for_the_one_of_its_width(dim: int, kind: str) -> None:
    assert config.kind_of(replace(config.WAN_14B, dim=dim, num_heads=dim // 32)) == kind


def test_models_are_told_by_their_inputs_and_experts() -> None:
    for kind, shapes in config.SHAPES.items():
        assert config.kind_of(shapes, experts=1 + kind.startswith("2.2")) == kind
    assert {config.family_of(kind) for kind in config.SHAPES} == {"1.3b", "14b", "2.2-14b", "5b"}


def test_steps_of_two_experts_are_counted_from_the_noise_levels() -> None:
    """Wan2.2's 40 steps at shift 12: the original's timesteps that are 875 and more; then LightX2V's 4 steps."""
    own = settings.DEFAULTS["2.2-14b"]
    levels = [12 * s / (1 + 11 * s) for s in (0.999 * (1 - n / 40) for n in range(40))]
    assert own.high_steps == sum(int(1000 * level) >= 875 for level in levels) == 26
    assert (
        own.override(solver="lightx2v").high_steps
        == settings.DEFAULTS["2.2-i2v"].override(solver="lightx2v").high_steps
        == 2
    )
    assert (own.guidance_at(0), own.guidance_at(25), own.guidance_at(26)) == (4, 4, 3)
    assert own.override(guidance=6.0).guidance_at(39) == 6
    assert settings.DEFAULTS["14b"].high_steps == 50


@pytest.mark.parametrize(
    ("width", "height", "name"), [(832, 480, "480p"), (480, 832, "480p"), (832, 496, "720p"), (1280, 720, "720p")]
)
def test_a_size_takes_the_settings_of_the_named_one_that_holds_it(width: int, height: int, name: str) -> None:
    assert sizes.named_size(width, height) == name


def test_what_is_given_overrides_a_default() -> None:
    own = settings.DEFAULTS["14b"].override(guidance=0.0, steps=None, negative="")
    assert (own.guidance, own.steps, own.negative) == (0.0, 50, "")


def test_wan_defaults() -> None:
    """Wan2.1 `generate.py` and README, stated here a second time on purpose."""
    small, large = settings.DEFAULTS["1.3b"], settings.DEFAULTS["14b"]
    assert (small.width, small.height, small.frames, small.fps, small.steps) == (832, 480, 81, 16, 50)
    assert (large.width, large.height, large.frames, large.fps, large.steps) == (1280, 720, 81, 16, 50)
    assert (small.guidance, small.shift) == (6, 8)
    assert (large.guidance, large.shift) == (5, 5)
    assert small.negative == large.negative
    assert small.negative.startswith("色调艳丽")
    assert small.negative.endswith("倒着走")
    assert len(small.negative.split("，")) == 28  # noqa: RUF001 (phrases in the original's list)
