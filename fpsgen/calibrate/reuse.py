"""What steps reuse, measured on a dense trajectory: velocities, the difference of both guidance branches, and how much
less attention's errors are where guidance does not multiply them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fpsgen.calibrate.measurement import Reused
from fpsgen.calibrate.trajectory import Clip, Renderer
from fpsgen.events import Done
from fpsgen.sampling import Carried, Denoiser
from fpsgen.wan.plan import StepPlan


def measured(
    renderer: Renderer, clip: Clip, name: str, velocities: Sequence[Tensor], taps: Mapping[int, int], probe: StepPlan
) -> Reused:
    """Of one clip. name: of its pieces; velocities: of the measured trajectory; taps: its steps that are looked into,
    and their phases; probe: the probe plan in all layers."""
    changes = torch.zeros(len(taps), 2, dtype=torch.float64)
    denoiser = renderer.denoiser(clip, len(velocities))
    for step, latents in renderer.replay(clip, velocities):
        if step not in taps:
            continue
        if (kept := renderer.journal.get(f"{name}-reuse-whole-{step}")) is None:
            exact, probed = (_both(renderer, denoiser, latents, step, plan) for plan in (renderer.dense, probe))
            change = torch.stack([(a - b).double().square().sum() for a, b in zip(probed, exact, strict=True)])
            kept = renderer.journal.put(f"{name}-reuse-whole-{step}", change=change.cpu())
        else:
            renderer.watch(Done(2))
        changes[taps[step]] = kept["change"]
    return Reused(changes[:, 0], changes[:, 1], *_products(renderer, clip, f"{name}-reuse"))


def _both(renderer: Renderer, denoiser: Denoiser, latents: Tensor, step: int, plan: StepPlan) -> tuple[Tensor, Tensor]:
    """The guided velocity, and the conditional one."""
    carried = Carried()
    velocity = renderer.velocity(denoiser, latents, step, plan, carried)
    if carried.difference is None:
        return velocity, velocity
    return velocity, velocity - (denoiser.settings.guidance_at(step) - 1) * carried.difference


def _products(renderer: Renderer, clip: Clip, name: str) -> tuple[Tensor, Tensor | None]:
    """Inner products of a dense trajectory in the video's steps; the trajectory itself is not kept."""
    journal, steps, guided = renderer.journal, renderer.settings.steps, renderer.settings.branches > 1
    if (kept := journal.get(f"{name}-products")) is None:
        denoiser = renderer.denoiser(clip, steps)

        def look(step: int, latents: Tensor) -> Tensor:
            carried = Carried()
            velocity = renderer.velocity(denoiser, latents, step, renderer.dense, carried)
            if guided:  # if not at this step, for this expert has none, nothing is lost where it is left out
                nothing = torch.zeros_like(velocity)
                difference = nothing if carried.difference is None else carried.difference
                scaled = (renderer.settings.guidance_at(step) - 1) * difference
                journal.put(f"{name}-difference{step}", difference=scaled)
            return velocity

        velocities, _ = renderer.render(clip, name, [renderer.dense] * steps, look=look)
        differences = [journal.get(f"{name}-difference{step}") for step in range(steps if guided else 0)]
        if None in differences:  # a piece was lost, whose step was not
            journal.drop(f"{name}-step")
            return _products(renderer, clip, name)
        found = {"velocities": _inner(velocities)}
        if guided:
            found["differences"] = _inner([own["difference"] for own in differences if own is not None])
        kept = journal.put(f"{name}-products", **found)
    else:
        renderer.watch(Done(steps))
    journal.drop(f"{name}-step")
    journal.drop(f"{name}-difference")
    return kept["velocities"], kept.get("differences")


def _inner(values: Sequence[Tensor]) -> Tensor:
    """float64 [values, values]."""
    found = torch.zeros(len(values), len(values), dtype=torch.float64)
    for i, one in enumerate(values):
        wide = one.double().flatten()
        for j in range(i + 1):
            found[i, j] = found[j, i] = wide @ values[j].double().flatten()
    return found
