"""A schedule's clips against BF16's, from the same noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fpsgen import metrics
from fpsgen.attention.plan import AttentionPlan
from fpsgen.calibrate.verify import Checker
from fpsgen.wan.plan import StepPlan
from tests.tools.calibration import TILES, clips, forwards, small_renderer


@pytest.mark.parametrize(("steps", "computed"), [(4, 4 + 2), (2, 4 + 2)])
def test_an_error_is_that_of_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, computed: int
) -> None:
    """Dense steps before the first that differs are not computed again; of a video of fewer steps all are, because its
    noise levels are others."""
    renderer = small_renderer(tmp_path)
    monkeypatch.setattr(Checker, "decode", lambda self, latents: np.zeros((1, 2, 2, 3), np.uint8))
    rounded = StepPlan((AttentionPlan(TILES, ((1, 1, 1),), qk="int8", pv="fp8"),) * 2)
    plans = (renderer.dense,) * (steps // 2) + (rounded,) * (steps // 2)
    with torch.inference_mode():
        calls = forwards(monkeypatch)
        (checked,) = Checker(renderer, clips(1), None, 0).check(plans)  # type: ignore[arg-type]
        assert len(calls) == computed
        _, exact = renderer.render(clips(1)[0], "exact", [renderer.dense] * 4)
        _, ours = renderer.render(clips(1)[0], "ours", plans)
    assert checked.error == metrics.latent_error(ours, exact) > 0
