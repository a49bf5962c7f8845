"""Calibration of a model of two experts: phases end at the boundary, and each step is measured on its own expert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fpsgen import experts as module
from fpsgen import machine
from fpsgen.calibrate import run
from fpsgen.calibrate.budget import Budget
from fpsgen.calibrate.candidates import EVERYTHING, Candidates
from fpsgen.calibrate.job import Job, spans
from fpsgen.calibrate.measure import Measuring
from fpsgen.calibrate.schedule import preset
from fpsgen.calibrate.solve import Schedule
from fpsgen.calibrate.trajectory import Renderer
from fpsgen.calibrate.ways import Ways
from fpsgen.errors import UsageError
from fpsgen.journal import Journal
from fpsgen.presets import file
from fpsgen.settings import DEFAULTS
from fpsgen.target import Target
from fpsgen.weights import load, models
from tests.tools.calibration import CPU, EFFORT, PROMPTS, TILES, VIDEO, clips, small_transformer, text
from tests.unit.calibrate.test_ways import Steps

OWN = replace(VIDEO, boundary=0.8, guidance_low=2.0)  # two of four steps are the high-noise expert's
TARGET = Target(CPU, torch.float32, torch.float32)


@pytest.mark.parametrize(("steps", "count"), [(4, 1), (4, 2), (10, 4), (10, 10), (40, 4), (40, 40), (3, 3), (2, 5)])
@pytest.mark.parametrize("boundary", [0.875, 0.9, 0.6])
def test_a_phase_ends_at_the_boundary(steps: int, count: int, boundary: float) -> None:
    own = replace(DEFAULTS["2.2-14b"], steps=steps, boundary=boundary)
    count = min(count, steps)
    found, levels = spans(own, count), own.noise_levels
    assert [step for span in found for step in range(span.first, span.last + 1)] == list(range(steps))
    assert not [span for span in found if span.first < own.high_steps <= span.last]
    assert [span.sigma[0] for span in found[1:]] == [span.sigma[1] for span in found[:-1]]
    for span in found:
        for step in range(span.first, span.last + 1):
            assert span.sigma[1] < levels[step] <= span.sigma[0]
    if 0 < own.high_steps < steps:
        assert boundary in [span.sigma[1] for span in found]
        assert len(found) == max(2, count)


def test_phases_that_do_the_same_are_one_but_for_those_of_two_experts() -> None:
    candidates, cut = Candidates(TILES, TILES.tokens), spans(OWN, 4)
    dense = len(candidates.choices) - 1
    solved = Schedule(
        torch.zeros(4, 2, dtype=torch.int64), torch.full((4, 2, 2), dense), torch.zeros(4, 2, dtype=torch.int64), 1, 0
    )
    for boundary, edges in ((None, [(1, 0)]), (OWN.boundary, [(1, 0.8), (0.8, 0)])):
        found = preset(solved, candidates, cut, "name", "2.2-14b", boundary)
        assert [phase.sigma for phase in found.phases] == edges


@pytest.mark.parametrize("seed", range(4))
def test_what_steps_reuse_is_chosen_for_each_expert_alone(seed: int) -> None:
    """By the same search in either half, which knows nothing of the other."""
    steps, boundary = Steps(seed, steps=6, phases=2), 3
    both = replace(steps.ways(), boundary=boundary)
    rng = torch.Generator().manual_seed(seed)
    values, errors = (torch.rand(len(both.rows), generator=rng, dtype=torch.float64) for _ in range(2))
    runs, error = both.best(values, errors, 1.0)
    assert boundary in [sum(run.reused + 1 for run in runs[:number]) for number in range(len(runs))]
    found, total = [], 0.0
    for half in (slice(0, boundary), slice(boundary, 6)):
        velocities, differences = (own[half] @ own[half].T for own in (steps.velocities, steps.differences))
        of = (steps.phase[half], steps.levels[half], steps.sensitivity, steps.conditional, velocities, differences)
        some, part = Ways(*of).best(values, errors, 1.0)
        found += some
        total += part
    assert runs == found
    assert error == pytest.approx(total, rel=1e-9, abs=1e-15)


def renderer(root: Path, high: int, low: int | None) -> Renderer:
    transformers = [None if seed is None else small_transformer(seed) for seed in (high, low)]
    journal = Journal(root / f"{high}-{low}", {})
    return Renderer(transformers[0], TILES, OWN, text(99), CPU, journal, lambda event: None, transformers[1])  # type: ignore[arg-type]


def test_each_step_is_measured_on_its_own_expert(tmp_path: Path) -> None:
    """Two phases, one of each expert: layers' errors are those of a renderer that has the one transformer alone."""
    two, (clip,), cut = renderer(tmp_path, 0, 1), clips(1), spans(OWN, 2)
    candidates = Candidates(TILES, TILES.tokens)
    assert [(span.first, span.last) for span in cut] == [(0, 1), (2, 3)]
    latents = two.denoiser(clip, 4).noise(3)
    for step, seed in ((1, 0), (2, 1)):
        alone = renderer(tmp_path, seed, None)
        found, wanted = (
            Measuring(one, candidates, cut, EFFORT)._tapped(clip, latents, step, 5) for one in (two, alone)
        )
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
        other = renderer(tmp_path, 1 - seed, None)
        assert not torch.equal(Measuring(other, candidates, cut, EFFORT)._tapped(clip, latents, step, 5)[1], found[1])


def test_a_model_of_two_experts_is_calibrated(
    experts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path))
    model = models.find(str(experts["original"]))
    own = model.defaults.override(width=96, height=64, frames=5, steps=6, shift=3.0, guidance_low=1.0)
    effort = replace(EFFORT, phases=2, steps=6)
    job = Job(model, own, effort, Budget("psnr", 15.0), PROMPTS, 0, "small", EVERYTHING)
    found = run.calibrate(job, TARGET, lambda event: None)
    assert found.preset.model == "2.2-14b"
    assert 0.875 in [phase.sigma[1] for phase in found.preset.phases]
    weights = load.fingerprint(model.checkpoint, module.load_all(model, TARGET)[0])
    assert found.preset.differences(weights, own) == []
    others = found.preset.differences(weights, own.override(guidance_low=3.0))
    assert others == ["guidance 1 of the low-noise expert"]
    assert file.parse(file.text(found.preset).encode(), "small").measured == found.preset.measured
    plans = found.preset.steps(model, own)
    assert {step.guidance for step in plans[own.high_steps :]} == {"off"}
    assert plans[own.high_steps].compute == "full"
    assert all(one.psnr >= 15 for one in found.record.clips)

    monkeypatch.setattr(machine, "free_bytes", lambda device: 1000)
    with pytest.raises(UsageError, match="both experts have to be in memory"):
        module.load_all(model, TARGET)
