"""What a calibration hands to its report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fpsgen.calibrate import run
from fpsgen.calibrate.budget import Tried
from fpsgen.calibrate.record import Checked


class Frames:
    """Stands for a checker: every clip is as grey as its number."""

    def frames(self, plans: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((1, 2, 2, 3), number, np.uint8), np.full((1, 2, 2, 3), number + 100, np.uint8)


@pytest.mark.parametrize(
    ("psnr", "shown", "worst"),
    [((30.0,), [0], None), ((31.0, 30.0, 32.0), [0, 1], 1), ((30.0, 31.0, 32.0, 20.0, 33.0), [0, 1, 3], 3)],
)
def test_the_first_clips_and_the_worst_are_shown(psnr: tuple[float, ...], shown: list[int], worst: int | None) -> None:
    checked = [Checked(f"prompt {number}", number, 1e-3, value) for number, value in enumerate(psnr)]
    tried: Any = Tried(None, checked, True)  # type: ignore[arg-type]
    pairs = run._pairs(tried, Frames(), [], "bf16 (float32)")  # type: ignore[arg-type]
    assert [pair.prompt for pair in pairs] == [f"prompt {number}" for number in shown]
    assert [int(pair.exact[0, 0, 0, 0]) for pair in pairs] == shown
    assert [int(pair.ours[0, 0, 0, 0]) for pair in pairs] == [number + 100 for number in shown]
    assert all(f"clip {number + 1} of {len(psnr)}" in pair.which for number, pair in zip(shown, pairs, strict=True))
    assert [number for number, pair in zip(shown, pairs, strict=True) if "furthest from bf16" in pair.which] == (
        [] if worst is None else [worst]
    )
    assert {pair.names for pair in pairs} == {("bf16 (float32)", "this schedule")}
