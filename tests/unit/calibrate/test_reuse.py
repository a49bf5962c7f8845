"""What steps reuse, and linear layers in 8 bits: what is kept of trajectories says what they would be wrong by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fpsgen import metrics
from fpsgen.attention.plan import AttentionPlan
from fpsgen.calibrate.candidates import EVERYTHING, LINEARS, Candidates
from fpsgen.calibrate.job import spans
from fpsgen.calibrate.measure import Measuring
from fpsgen.calibrate.measurement import Measurement
from fpsgen.calibrate.trajectory import Clip, Renderer
from fpsgen.sampling import Carried
from fpsgen.wan.plan import UNROUNDED, StepPlan
from tests.tools.calibration import EFFORT, TILES, VIDEO, clips, forwards, small_renderer

CANDIDATES = Candidates(TILES, 75_600)
PHASES = spans(replace(VIDEO, steps=EFFORT.steps), EFFORT.phases)
SUMS = {"rtol": 1e-4, "atol": 0.0}  # float32 velocities, of batches that are added up in another order


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def taken(renderer: Renderer) -> Measurement:
    return Measuring(renderer, CANDIDATES, PHASES, EFFORT, EVERYTHING).measure(clips(1), 0)


def trajectory(renderer: Renderer, clip: Clip, steps: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Latents before each step of a dense clip, guided velocities, and what both branches differ by."""
    denoiser = renderer.denoiser(clip, steps)
    solver, latents = denoiser.settings.new_solver(), denoiser.noise(clip.seed)
    before, velocities, differences = [], [], []
    for step in range(steps):
        carried = Carried()
        velocity = denoiser.velocity(latents, step, renderer.dense, carried)
        assert carried.difference is not None
        before.append(latents)
        velocities.append(velocity)
        differences.append(carried.difference)
        latents = solver.step(velocity, latents)
    return before, velocities, differences


def test_products_say_how_far_velocities_are_apart(tmp_path: Path) -> None:
    """Of the steps of the video, which may be others than those of the measured trajectory."""
    renderer = small_renderer(tmp_path)
    renderer.settings = replace(VIDEO, steps=6)
    found = taken(renderer).reused
    assert found is not None
    assert found.differences is not None
    (clip,) = clips(1)
    _, velocities, differences = trajectory(renderer, clip, 6)
    for ours, exact, factor in ((found.velocities, velocities, 1.0), (found.differences, differences, 3.0 - 1)):
        assert ours.shape == (6, 6)
        for i in range(6):
            for j in range(6):
                apart = (factor * (exact[i] - exact[j])).double().square().sum()
                own = ours[i, i] + ours[j, j] - 2 * ours[i, j]
                torch.testing.assert_close(own, apart, rtol=1e-3, atol=1e-6 * float(ours[i, i]))


def test_attention_errs_less_without_guidance(tmp_path: Path) -> None:
    """By the probe plan in all layers, at the step of each phase that is looked into."""
    renderer = small_renderer(tmp_path)
    found = taken(renderer).reused
    assert found is not None
    (clip,) = clips(1)
    before, velocities, differences = trajectory(renderer, clip, 4)
    denoiser, probe = renderer.denoiser(clip, 4), StepPlan((CANDIDATES.probe_plan(2),) * 2)
    for phase, step in enumerate((0, 2)):
        carried = Carried()
        guided = denoiser.velocity(before[step], step, probe, carried)
        assert carried.difference is not None
        alone = [v - 2 * d for v, d in ((guided, carried.difference), (velocities[step], differences[step]))]
        for ours, pair in ((found.change, (guided, velocities[step])), (found.alone, alone)):
            torch.testing.assert_close(ours[phase], (pair[0] - pair[1]).double().square().sum(), rtol=1e-3, atol=0)
    assert (found.alone < found.change).all()


def test_without_guidance_there_is_no_difference(tmp_path: Path) -> None:
    renderer = small_renderer(tmp_path)
    renderer.settings = replace(VIDEO, guidance=1.0)
    found = taken(renderer).reused
    assert found is not None
    assert found.differences is None
    assert found.alone.equal(found.change)


def test_linear_layers_have_their_share_of_a_phase(tmp_path: Path) -> None:
    """By the squared change of the velocity, over that of the probe plan, one layer at a time."""
    renderer = small_renderer(tmp_path)
    found = taken(renderer)
    assert found.linear is not None
    assert found.linear.shape == (2, 2, len(LINEARS))
    assert (found.linear[..., 0] == 0).all()
    torch.testing.assert_close(found.linear[..., 3], found.linear[..., 1] + found.linear[..., 2])
    (clip,) = clips(1)
    before, velocities, _ = trajectory(renderer, clip, 4)
    denoiser, dense = renderer.denoiser(clip, 4), AttentionPlan(TILES)

    def change(step: int, plan: StepPlan) -> float:
        moved = denoiser.velocity(before[step], step, plan).double() - velocities[step].double()
        return float(moved.square().sum())

    for phase, step in enumerate((0, 2)):
        probe = CANDIDATES.probe_plan(2)
        total = sum(change(step, StepPlan(own)) for own in ((probe, dense), (dense, probe)))
        for number in (1, 2):
            for layer in (0, 1):
                own = tuple(LINEARS[number] if other == layer else UNROUNDED for other in (0, 1))
                share = change(step, StepPlan((dense, dense), own)) / total
                expected = share * float(found.probed[phase].sum())
                assert float(found.linear[phase, layer, number]) == pytest.approx(expected, rel=1e-3)


def test_the_same_again_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, calls = taken(small_renderer(tmp_path)), forwards(monkeypatch)
    again = taken(small_renderer(tmp_path))
    assert not calls
    assert first.linear is not None
    assert first.reused is not None
    assert again.linear is not None
    assert again.reused is not None
    assert again.linear.equal(first.linear)
    assert again.reused.velocities.equal(first.reused.velocities)
    assert not list(tmp_path.glob("*/measure0-reuse-step*")), "of a trajectory its products are kept"


@pytest.mark.parametrize(("lost", "most"), [("*products", 4), ("*-whole-2", 2), ("*-ffn1-0", 1), ("*-attention0-2", 1)])
def test_a_lost_piece_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str, most: int) -> None:
    first = taken(small_renderer(tmp_path))
    calls = forwards(monkeypatch)
    (path,) = tmp_path.glob(f"*/{lost}.piece")
    path.unlink()
    again = taken(small_renderer(tmp_path))
    assert len(calls) == most
    assert again.reused is not None
    assert first.reused is not None
    assert again.reused.change.equal(first.reused.change)
    assert again.reused.velocities.equal(first.reused.velocities)


def test_stopped_between_a_step_and_its_difference(tmp_path: Path) -> None:
    """The step was kept, and its difference is not there: the trajectory is computed anew."""
    renderer = small_renderer(tmp_path)
    first = taken(renderer)
    (clip,) = clips(1)
    (path,) = tmp_path.glob("*/*products.piece")
    path.unlink()
    velocities, final = renderer.render(clip, "measure0-reuse", [renderer.dense] * 4)
    assert metrics.latent_error(final, final) == pytest.approx(0, abs=1e-6)
    assert len(velocities) == 4
    again = taken(small_renderer(tmp_path))
    assert first.reused is not None
    assert again.reused is not None
    assert again.reused.velocities.equal(first.reused.velocities)
