"""Which parts of a model are in a device's memory together: the memory policy, by what is free and what each needs."""

from __future__ import annotations

from fpsgen import machine
from fpsgen.request import VideoPlan
from fpsgen.weights import needs


def vae_fits_beside(plan: VideoPlan, copies: int = 1) -> bool:
    """Whether the VAE, and what it needs to decode this video, fits into the memory that is free now, while the
    transformer is in it. copies: of its weights."""
    settings, words = plan.request.settings, plan.model.checkpoint.words("vae")
    own = needs.memory(plan.model.checkpoint, (settings.width, settings.height, settings.frames), plan.target)[words]
    weights = needs.weights(plan.model.checkpoint, plan.target)[words]
    return own + (copies - 1) * weights < 0.8 * machine.free_bytes(plan.target.device)
