"""What a dense model's trajectories say: the table that schedules are solved from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reused:
    """change, alone: float64 [phases], squared change of the guided velocity by the probe plan in all layers in one
    step, and where only the conditional branch has it. velocities, differences: float64 [steps, steps], inner products
    of the guided velocities of the video's steps, and of (guidance - 1) times what both branches differ by; the latter
    None without guidance."""

    change: Tensor
    alone: Tensor
    velocities: Tensor
    differences: Tensor | None

    @classmethod
    def mean(cls, every: Sequence[Reused]) -> Reused:
        """Over clips."""
        change, alone, velocities = (
            torch.stack([getattr(own, key) for own in every]).mean(0) for key in ("change", "alone", "velocities")
        )
        differences = [own.differences for own in every if own.differences is not None]
        return cls(change, alone, velocities, torch.stack(differences).mean(0) if differences else None)


@dataclass(frozen=True, eq=False)
class Measurement:
    """errors: float64 [phases, layers, heads, precisions, choices], what each choice alone, in all steps of its phase,
    is estimated to do to the final latents (1 - cosine); probed: [phases, layers], the same of the probe plan; linear:
    [phases, layers, linears], of the `LINEARS`; reused: of what steps reuse. None where it was not to be measured."""

    errors: Tensor
    probed: Tensor
    linear: Tensor | None = None
    reused: Reused | None = None
