"""The solvers of models that were distilled for few steps, against what their authors publish, by formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fpsgen.attention.plan import AttentionPlan
from fpsgen.errors import UsageError
from fpsgen.presets import Phase, Preset
from fpsgen.sampling import Denoiser
from fpsgen.settings import DEFAULTS
from fpsgen.solvers import FEW_STEPS, SolverName, noise
from fpsgen.wan.plan import StepPlan
from fpsgen.weights.models import find
from tests.tools.calibration import CPU, TILES, VIDEO, small_transformer, text

SEED = 7
PLAN = StepPlan((AttentionPlan(TILES),) * 2)
EVERY: list[tuple[SolverName, int]] = [("lightx2v", 4), ("fastwan", 3), *(("turbowan", n) for n in (1, 2, 3, 4))]


def table(shift: float) -> Tensor:
    """The noise levels that models are trained at, 1 to 0.001, shifted."""
    points = torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1]
    return shift * points / (1 + (shift - 1) * points)


def lightx2v(steps: int) -> tuple[Tensor, Tensor]:
    """Noise levels and timesteps, as its authors look them up."""
    sigmas = table(5)[[1000 - t for t in (1000, 750, 500, 250)]]
    return sigmas, 1000 * sigmas


def fastwan(steps: int) -> tuple[Tensor, Tensor]:
    timesteps = torch.tensor([1000, 757, 522], dtype=torch.float64)
    sigmas = table(8)
    return sigmas[(1000 * sigmas[None] - timesteps[:, None]).abs().argmin(1)], timesteps


def turbowan(steps: int) -> tuple[Tensor, Tensor]:
    angles = torch.tensor([math.atan(80), *[1.5, 1.4, 1.0][: steps - 1]], dtype=torch.float64)
    sigmas = angles.sin() / (angles.sin() + angles.cos())
    return sigmas, (1000 * sigmas).bfloat16()


SCHEDULES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "lightx2v": lightx2v, "fastwan": fastwan, "turbowan": turbowan,
}  # fmt: skip


@pytest.mark.parametrize(("name", "steps"), EVERY)
def test_noise_levels_and_timesteps_are_their_authors(name: SolverName, steps: int) -> None:
    settings, (sigmas, timesteps) = VIDEO.override(solver=name, steps=steps), SCHEDULES[name](steps)
    solver = settings.new_solver()
    torch.testing.assert_close(solver.sigmas.double(), torch.cat([sigmas, torch.zeros(1)]).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(solver.timesteps.double(), timesteps.double(), rtol=0, atol=1e-4)  # float32 of 1000
    assert settings.noise_levels == solver.sigmas[:-1].tolist()  # presets go by these


def test_known_values() -> None:
    """As published, to the digits that their authors write, or that follow by hand."""
    found = {name: VIDEO.override(solver=name).new_solver() for name in FEW_STEPS}
    assert {name: [round(own, 4) for own in solver.sigmas.tolist()] for name, solver in found.items()} == {
        "lightx2v": [1.0, 0.9375, 0.8333, 0.625, 0.0],
        "fastwan": [1.0, 0.7568, 0.5217, 0.0],
        "turbowan": [0.9877, 0.9338, 0.8529, 0.6090, 0.0],
    }
    assert {name: [round(own, 2) for own in solver.timesteps.tolist()] for name, solver in found.items()} == {
        "lightx2v": [1000, 937.5, 833.33, 625],
        "fastwan": [1000, 757, 522],
        "turbowan": [988, 932, 852, 608],
    }


def denoiser(name: str, **given: Any) -> Denoiser:
    return Denoiser(small_transformer(), VIDEO.override(solver=name, **given), [text(1)], CPU)


def rendered(own: Denoiser, seed: int = SEED, **more: Any) -> list[Tensor]:
    """The latents after each step."""
    fresh = partial(own.noise, seed)
    return [each.latents for each in own.run(own.noise(seed), [PLAN] * own.settings.steps, fresh=fresh, **more)]


@pytest.mark.parametrize(("name", "steps"), EVERY)
def test_latents_are_those_of_a_loop_written_by_hand(name: SolverName, steps: int) -> None:
    """In float64 beside the model, one generator drawn on as the originals do."""
    transformer = small_transformer()
    sigmas, timesteps = SCHEDULES[name](steps)
    sigmas = torch.cat([sigmas, torch.zeros(1)])
    generator = torch.Generator().manual_seed(SEED)

    def draw() -> Tensor:
        return torch.randn(1, 16, 3, 8, 12, generator=generator).double()

    with torch.inference_mode():
        context, x = transformer.embed_text(text(1)), sigmas[0] * draw()
        for step in range(steps):
            velocity = transformer(x.float(), timesteps[step].float()[None], context, PLAN).double()
            now, after = sigmas[step], sigmas[step + 1]
            x0 = x - now * velocity
            x = x + (after - now) * velocity if name == "lightx2v" or after == 0 else (1 - after) * x0 + after * draw()
    torch.testing.assert_close(rendered(denoiser(name, steps=steps))[-1].double(), x, rtol=0, atol=1e-5)


class Kept(dict[int, Tensor]):
    """Velocities in memory."""

    def put(self, step: int, velocity: Tensor) -> Tensor:
        self[step] = velocity
        return velocity


@pytest.mark.parametrize("name", FEW_STEPS)
def test_a_stopped_run_goes_on_with_the_noise_it_would_have_had(name: str) -> None:
    own = denoiser(name)
    whole, kept = rendered(own), Kept()
    stopped = own.run(own.noise(SEED), [PLAN] * own.settings.steps, kept, fresh=partial(own.noise, SEED))
    next(stopped), next(stopped)
    stopped.close()
    torch.randn(5)  # whatever else draws
    assert all(map(torch.equal, rendered(own, kept=kept), whole))


@pytest.mark.parametrize("name", [name for name, few in FEW_STEPS.items() if few.renoises])
def test_fresh_noise_counts_and_is_the_seed_s(name: str) -> None:
    own = denoiser(name)
    whole, again, other = rendered(own), rendered(own), rendered(own, seed=8)
    assert all(map(torch.equal, whole, again))
    assert not any(map(torch.equal, whole, other))
    same = own.run(own.noise(SEED), [PLAN] * own.settings.steps, fresh=lambda done: own.noise(SEED))
    assert not torch.equal(next(same).latents, whole[0])  # not what it began with


def test_noise_after_each_step_is_another() -> None:
    drawn = [noise(16, (2, 4, 6), 5, done) for done in range(4)]
    assert torch.equal(drawn[0], noise(16, (2, 4, 6), 5))
    flat = torch.stack([each.flatten() for each in drawn])
    assert (flat.corrcoef() - torch.eye(4)).abs().max() < 0.15  # of 768 numbers, each with a deviation of 0.036


@pytest.mark.parametrize(("name", "steps", "shift"), [("lightx2v", 4, 5), ("fastwan", 3, 8), ("turbowan", 4, 1)])
def test_a_solver_for_few_steps_brings_its_settings(name: SolverName, steps: int, shift: float) -> None:
    for own in DEFAULTS.values():
        found = own.override(solver=name)
        found.check()
        assert (found.steps, found.shift, found.guidance, found.branches) == (steps, shift, 1, 1)
        assert own.override(solver=name, guidance=3.0).guidance == 3
        assert (found.size, found.frames, found.negative) == (own.size, own.frames, own.negative)
    assert DEFAULTS["14b"].override(solver="unipc") == DEFAULTS["14b"]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"solver": "lightx2v", "steps": 3}, "steps"),
        ({"solver": "lightx2v", "steps": 5}, "steps"),
        ({"solver": "fastwan", "steps": 4}, "steps"),
        ({"solver": "turbowan", "steps": 5}, "steps"),
        ({"solver": "lightx2v", "shift": 3.0}, "shift"),
        ({"solver": "turbowan", "shift": 5.0}, "shift"),
        ({"solver": "fastwan", "sigmas": "diffusers"}, "sigmas"),
    ],
)
def test_what_contradicts_a_solver_for_few_steps_is_refused(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=f"^{field}=") as told:
        VIDEO.override(**wrong).check()
    assert told.value.hint


@pytest.mark.parametrize(("name", "dense"), [("lightx2v", 3), ("fastwan", 1), ("turbowan", 3)])
def test_a_preset_has_its_phases_at_their_noise_levels(name: SolverName, dense: int) -> None:
    phases = Phase(sigma=(1.0, 0.8)), Phase(sigma=(0.8, 0.0), density=0.3)
    plans = Preset(name="p", phases=phases).schedule(VIDEO.override(solver=name).noise_levels, TILES, 2, 2)
    assert [plan.density == 1 for plan in plans] == [step < dense for step in range(len(plans))]


def test_velocities_are_not_continued_through_fresh_noise(wan_folder: Path) -> None:
    """They point to the noise that was there before."""
    model, preset = find(str(wan_folder)), Preset(name="p", phases=(Phase(sigma=(1.0, 0.0), compute="reuse"),))
    for name, few in FEW_STEPS.items():
        if few.renoises:
            with pytest.raises(UsageError, match=f"^preset p: .* the solver {name} "):
                preset.steps(model, VIDEO.override(solver=name))
        else:
            assert preset.steps(model, VIDEO.override(solver=name))[1].compute == "reuse"
    assert len(preset.steps(model, VIDEO.override(solver="turbowan", steps=1))) == 1  # which is computed
