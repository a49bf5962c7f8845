"""A solved schedule as a preset: what `generate` will run is what was solved."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import Shape3, TileGrid
from fpsgen.calibrate import schedule
from fpsgen.calibrate.candidates import PRECISIONS, Candidates
from fpsgen.calibrate.job import spans
from fpsgen.calibrate.solve import Schedule
from fpsgen.presets import Preset, file
from fpsgen.solvers import Solver
from fpsgen.wan.plan import StepPlan, StepSpan
from tests.tools.calibration import VIDEO

SHIFT = 5.0


def solved(seed: int, candidates: Candidates, phases: int, layers: int, heads: int) -> Schedule:
    """Choices at random: some layers mixed, some alike, some dense, some phases as the one before."""
    rng = random.Random(seed)
    count = len(candidates.choices)
    precision, window = torch.zeros(phases, layers, dtype=torch.int64), torch.zeros(phases, layers, heads).long()
    for phase in range(phases):
        if phase and rng.random() < 0.4:
            precision[phase], window[phase] = precision[phase - 1], window[phase - 1]
            continue
        for layer in range(layers):
            precision[phase, layer] = rng.randrange(3)
            one = rng.randrange(count)
            of_heads = [rng.randrange(count) for _ in range(heads)] if rng.random() < 0.6 else [one] * heads
            window[phase, layer] = torch.tensor(of_heads if precision[phase, layer] else [count - 1] * heads)
    return Schedule(precision, window, torch.zeros_like(precision), 0.5, 0.1)


def check(made: Preset, found: Schedule, candidates: Candidates, phases: list[StepSpan], steps: int) -> None:
    """Through the file and back, step by step, every head does as it was solved."""
    layers, heads = found.choice.shape[1:]
    read = file.parse(file.text(made).encode(), made.name)
    assert read == made
    sigmas = Solver(steps, SHIFT).sigmas[:-1].tolist()
    plans: list[StepPlan] = read.schedule(sigmas, candidates.tiles, layers, heads)
    assert len(plans) == steps
    for phase, span in enumerate(phases):
        for step in range(span.first, span.last + 1):
            for layer in range(layers):
                check_layer(
                    plans[step].attention[layer],
                    candidates,
                    int(found.precision[phase, layer]),
                    found.choice[phase, layer],
                )


def check_layer(plan: AttentionPlan, candidates: Candidates, precision: int, windows: torch.Tensor) -> None:
    assert plan.qk == PRECISIONS[precision]
    assert plan.pv == ("bf16" if plan.qk == "bf16" else "fp8")
    assert plan.smooth_k
    for head, number in enumerate(windows.tolist()):
        assert plan.key_tiles[plan.heads[head] if plan.heads else 0] == candidates.choices[number]


@pytest.mark.parametrize("seed", range(12))
def test_a_preset_does_what_was_solved(seed: int) -> None:
    candidates = Candidates(TileGrid((7, 6, 10), (2, 2, 2)), 75_600)
    phases = spans(replace(VIDEO, steps=20, shift=SHIFT), 5)
    found = solved(seed, candidates, phases=5, layers=6, heads=6)
    made = schedule.preset(found, candidates, phases, "made.toml", "pocket")
    assert made.tile == (2, 2, 2)
    assert made.model == "pocket"
    check(made, found, candidates, phases, 20)


@pytest.mark.parametrize(
    ("grid", "layers", "heads"),
    [((7, 6, 10), 1, 1), ((7, 6, 10), 1, 6), ((7, 6, 10), 4, 1), ((1, 1, 1), 3, 2), ((1, 2, 20), 3, 2)],
)
def test_single_layers_heads_and_tiles(grid: Shape3, layers: int, heads: int) -> None:
    candidates = Candidates(TileGrid(grid, (2, 2, 2)), 75_600)
    phases = spans(replace(VIDEO, steps=6, shift=SHIFT), 3)
    for seed in range(4):
        found = solved(seed, candidates, 3, layers, heads)
        check(schedule.preset(found, candidates, phases, "made.toml", "1.3b"), found, candidates, phases, 6)


def test_more_choices_than_letters_of_the_alphabet() -> None:
    """63 windows and 16 shares, each with and without a summary: letters of other alphabets have to help."""
    candidates = Candidates(TileGrid((20, 20, 20), (2, 2, 2)), 75_600)
    count = len(candidates.choices)
    assert count == 2 * (63 + 16) + 1
    phases = spans(replace(VIDEO, steps=4, shift=SHIFT), 2)
    choice = torch.arange(160).clamp(max=count - 1).repeat(2, 1).view(2, 2, 80)
    found = Schedule(torch.full((2, 2), 1), choice, torch.zeros(2, 2).long(), 0.5, 0.1)
    made = schedule.preset(found, candidates, phases, "made.toml", "14b")
    assert len(made.windows) == count - 1
    check(made, found, candidates, phases, 4)


def test_phases_that_do_the_same_become_one() -> None:
    candidates = Candidates(TileGrid((7, 6, 10), (2, 2, 2)), 75_600)
    phases = spans(replace(VIDEO, steps=8, shift=SHIFT), 4)
    found = solved(1, candidates, phases=4, layers=3, heads=2)
    found.precision[1:3], found.choice[1:3] = found.precision[0], found.choice[0]
    found.precision[3], found.choice[3] = 1, 0
    made = schedule.preset(found, candidates, phases, "made.toml", "pocket")
    assert [phase.sigma for phase in made.phases] == [(1.0, phases[2].sigma[1]), phases[3].sigma]
    check(made, found, candidates, phases, 8)


def test_what_most_layers_do_is_said_once() -> None:
    candidates = Candidates(TileGrid((7, 6, 10), (2, 2, 2)), 75_600)
    precision, window = torch.ones(1, 6, dtype=torch.int64), torch.zeros(1, 6, 2, dtype=torch.int64)
    window[0, 4] = len(candidates.choices) - 1
    phases = spans(replace(VIDEO, steps=2, shift=SHIFT), 1)
    found = Schedule(precision, window, torch.zeros_like(precision), 0.5, 0.1)
    made = schedule.preset(found, candidates, phases, "made.toml", "pocket")
    (phase,) = made.phases
    assert phase.window == candidates.choices[0].window
    assert [own.at for own in phase.layers] == [(4,)]
    check(made, found, candidates, phases, 2)


def test_a_window_that_spans_its_axis_spans_a_longer_one_as_far_as_odd_lengths_go() -> None:
    """4 tiles along T are all there are here: as such they may be even, and would fit no video of more frames."""
    short, longer = TileGrid((7, 6, 10), (2, 2, 2)), TileGrid((15, 6, 10), (2, 2, 2))
    candidates = Candidates(short, 75_600)
    one, other = (candidates.choices.index(KeyTiles(window)) for window in ((4, 1, 1), (4, 1, 3)))
    ones = torch.ones(1, 2, dtype=torch.int64)
    found = Schedule(ones, torch.tensor([[[one, one], [one, other]]]), torch.zeros_like(ones), 0.5, 0.1)
    phases = spans(replace(VIDEO, steps=2, shift=SHIFT), 1)
    made = schedule.preset(found, candidates, phases, "made.toml", "pocket")
    check(made, found, candidates, phases, 2)
    (step,) = made.plans(longer, 2, 2).values()
    assert [plan.seen for plan in step.attention] == [((5, 1, 1),), ((5, 1, 1), (5, 1, 3))]
