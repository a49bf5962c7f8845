"""The rival of every preset, which needs no preset: dense attention and fewer steps."""

from __future__ import annotations

from collections.abc import Sequence

from fpsgen.presets import BF16, DENSE_INT8, Preset
from fpsgen.wan.plan import StepPlan, distinct


def of(steps: Sequence[StepPlan]) -> Preset:
    """Dense attention in the precision of a preset whose steps these are: INT8 if the preset rounds anything to 8 bits,
    else BF16. FP8 costs the same as INT8 and is less exact (benchmarks/results/numerics.md), so that a preset in FP8
    meets INT8, too."""
    return DENSE_INT8 if any(plan.is_8bit for plan in distinct(steps)) else BF16
