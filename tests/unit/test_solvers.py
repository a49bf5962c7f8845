"""The noise levels, by the formula of the original; the steps, by diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fpsgen.solvers import FEW_STEPS, Sigmas, Solver, SolverName, guide, noise, noise_levels

ANY_STEPS = [name for name in get_args(SolverName) if name not in FEW_STEPS]  # the others have tests of their own


def shifted(points: list[float], shift: float) -> np.ndarray:
    return np.array([shift * s / (1 + (shift - 1) * s) for s in points] + [0.0])


@pytest.mark.parametrize(("name", "first"), [("unipc", 0.999), ("dpm++", 1.0), ("euler", 0.999)])
@pytest.mark.parametrize("shift", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("steps", range(10, 51))
def test_original_sigmas(steps: int, shift: float, name: SolverName, first: float) -> None:
    points = [first * (1 - i / steps) for i in range(steps)]  # steps + 1 points down to 0, the last dropped
    expected = shifted(points, shift)
    solver = Solver(steps, shift, name)
    np.testing.assert_allclose(solver.sigmas.numpy(), expected, rtol=0, atol=1e-6)  # the solver keeps float32
    # A timestep is cut, not rounded; where 1000 sigma is a whole number but for rounding, either side is right.
    exact = 1000 * expected[:-1]
    assert len(solver.timesteps) == steps
    assert (
        (solver.timesteps.numpy() == np.floor(exact + 1e-6)) | (solver.timesteps.numpy() == np.floor(exact - 1e-6))
    ).all()


def test_known_values_of_both() -> None:
    """50 steps, shift 5: computed from the original's and diffusers' own code."""
    original, other = Solver(50, 5.0), Solver(50, 5.0, sigmas="diffusers")
    assert original.timesteps[[0, 1, -1]].tolist() == [999, 995, 92]
    assert other.timesteps[[0, 1, -1]].tolist() == [999, 995, 96]
    np.testing.assert_allclose(original.sigmas[[0, 1, 49]], [0.99980, 0.99573, 0.09251], atol=1e-5)
    np.testing.assert_allclose(other.sigmas[[0, 1, 49]], [1.0, 0.99594, 0.09678], atol=1e-5)


@pytest.mark.parametrize("shift", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("steps", [10, 33, 50])
def test_diffusers_sigmas(steps: int, shift: float) -> None:
    """What each of diffusers' classes visits by itself, by formula."""
    unipc = shifted([1 - 0.999 * i / steps for i in range(steps)], shift)
    dpm = shifted([0.999 * (1 - i / steps) for i in range(steps)], shift)
    least = shift * 0.001 / (1 + (shift - 1) * 0.001)  # Euler's class shifts the ends of its range, then the range
    euler = shifted([1 - (1 - least) * i / (steps - 1) for i in range(steps)], shift)
    for name, expected in (("unipc", unipc), ("dpm++", dpm), ("euler", euler)):
        np.testing.assert_allclose(Solver(steps, shift, name, "diffusers").sigmas, expected, rtol=0, atol=2e-6)


# In all but the first and fourth, several steps share one integer timestep.
@pytest.mark.parametrize("sigmas", get_args(Sigmas))
@pytest.mark.parametrize("name", ANY_STEPS)
@pytest.mark.parametrize(("steps", "shift"), [(12, 5.0), (150, 8.0), (300, 5.0), (50, 12.0), (50, 30.0), (20, 100.0)])
def test_solver_reaches_the_data_along_a_straight_flow(
    steps: int, shift: float, name: SolverName, sigmas: Sigmas
) -> None:
    """With the true velocity of a single data point, any consistent solver ends on it."""
    generator = torch.Generator().manual_seed(1)
    data, start = torch.randn(2, 1, 4, 1, 2, 2, generator=generator)
    solver = Solver(steps, shift, name, sigmas)
    sigma = solver.sigmas[0]
    latents = (1 - sigma) * data + sigma * start
    for index in range(steps):
        latents = solver.step((latents - data) / solver.sigmas[index], latents)
    torch.testing.assert_close(latents, data, rtol=0, atol=1e-4)


def error_on_a_bell_curve(name: SolverName, steps: int) -> float:
    """How far a solver ends from the exact flow of data that are normal, with a deviation of a half.

    There the velocity of x at noise level s is x (s - (1 - s) / 4) / v(s), with the variance v(s) = (1 - s)² / 4 + s²,
    and x / √v(s) stays what it is.
    """
    solver = Solver(steps, 1.0, name)
    variances = ((1 - solver.sigmas.double()) ** 2 / 4 + solver.sigmas.double() ** 2).tolist()
    latents = torch.full((1, 1, 1, 1, 1), variances[0] ** 0.5, dtype=torch.float64)
    for level, variance in zip(solver.sigmas[:-1].tolist(), variances[:-1], strict=True):
        latents = solver.step(latents * (level - (1 - level) / 4) / variance, latents)
    return abs(float(latents) - 0.5)


@pytest.mark.parametrize(("name", "order"), [("unipc", 2), ("dpm++", 2), ("euler", 1)])
def test_solvers_are_of_their_order_on_a_curved_flow(name: SolverName, order: int) -> None:
    """Four times the steps leave about a quarter of the error in order 1, a sixteenth in order 2."""
    gain = error_on_a_bell_curve(name, 40) / error_on_a_bell_curve(name, 160)
    assert 4**order / 2 < gain < 4**order * 2


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2, "lower_order_final": True}
THEIRS: dict[SolverName, Callable[[float], Any]] = {
    # Set as the original's `fm_solvers_unipc.py` and `fm_solvers.py` are.
    "unipc": lambda shift: UniPCMultistepScheduler(**FLOW, flow_shift=shift, predict_x0=True, solver_type="bh2"),
    "dpm++": lambda shift: DPMSolverMultistepScheduler(**FLOW, flow_shift=shift, algorithm_type="dpmsolver++"),
    "euler": lambda shift: FlowMatchEulerDiscreteScheduler(shift=shift),
}


@pytest.mark.parametrize("sigmas", get_args(Sigmas))
@pytest.mark.parametrize("name", ANY_STEPS)
@pytest.mark.parametrize(
    ("steps", "shift"), [(1, 5.0), (2, 5.0), (3, 0.37), (14, 3.0), (20, 3.0), (50, 5.0), (50, 100.0)]
)
def test_solvers_are_diffusers_bit_for_bit(steps: int, shift: float, name: SolverName, sigmas: Sigmas) -> None:
    generator = torch.Generator().manual_seed(1)
    solver, scheduler = Solver(steps, shift, name, sigmas), THEIRS[name](shift)
    scheduler.set_timesteps(steps)
    if sigmas == "diffusers":
        assert torch.equal(solver.sigmas, scheduler.sigmas)
        assert torch.equal(solver.timesteps, scheduler.timesteps)
    scheduler.sigmas = solver.sigmas
    scheduler.set_begin_index(0)
    latents = expected = torch.randn(2, 16, 2, 4, 6, generator=generator)
    for _ in range(steps):
        velocity = torch.randn(latents.shape, generator=generator)
        expected = scheduler.step(velocity, 0.0, expected, return_dict=False)[0]
        latents = solver.step(velocity, latents)
        assert torch.equal(latents, expected)


def test_noise_follows_the_seed() -> None:
    assert torch.equal(noise(16, (2, 4, 6), 5), noise(16, (2, 4, 6), 5))
    assert not torch.equal(noise(16, (2, 4, 6), 5), noise(16, (2, 4, 6), 6))
    assert noise(16, (2, 4, 6), 5).shape == (1, 16, 2, 4, 6)


def test_noise_is_what_other_tools_draw_for_a_seed() -> None:
    """A CPU generator of its own: nothing that was drawn before it counts, and nothing after it is changed."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    theirs = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator("cpu").manual_seed(5))
    found = noise(16, (2, 4, 6), 5)
    assert found.dtype == torch.float32
    assert torch.equal(found, theirs)
    assert torch.equal(torch.get_rng_state(), before)


def test_guidance_extrapolates() -> None:
    assert guide(torch.tensor(3.0), torch.tensor(1.0), 5.0) == 11
    assert guide(torch.tensor(3.0), torch.tensor(1.0), 1.0) == 3


@pytest.mark.parametrize("solver", ANY_STEPS)
@pytest.mark.parametrize("sigmas", get_args(Sigmas))
def test_noise_levels_are_those_that_the_solver_visits(solver: SolverName, sigmas: Sigmas) -> None:
    """To the last bit: a level beside the end of a phase is in one phase or in the other."""
    for steps, shift in ((1, 5.0), (7, 1.0), (20, 3.0), (50, 8.0), (33, 0.37)):
        assert noise_levels(steps, shift, solver, sigmas) == Solver(steps, shift, solver, sigmas).sigmas[:-1].tolist()
