"""How steps are obtained: the best way of all, and schedules of which it is a part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fpsgen.calibrate import solve
from fpsgen.calibrate.solve import Problem, Schedule
from fpsgen.calibrate.ways import ComputedStep, Ways
from fpsgen.wan.plan import MOST_REUSED
from tests.unit.calibrate.test_solve import COSTS, random_problem

SMALL = 1e-9  # relative, of sums in another order


class Steps:
    """A trajectory of random velocities that change slowly, and what reuse in it does, by hand."""

    def __init__(self, seed: int, steps: int = 5, phases: int = 2):
        rng = torch.Generator().manual_seed(seed)
        self.phase = tuple(step * phases // steps for step in range(steps))
        self.levels = tuple(1 - step / (steps + 1) for step in range(steps))
        self.velocities, self.differences = (
            torch.randn(steps, 8, generator=rng, dtype=torch.float64).cumsum(0) * scale for scale in (0.05, 0.02)
        )
        self.sensitivity = torch.rand(phases, generator=rng, dtype=torch.float64) + 0.5
        self.conditional = torch.rand(phases, generator=rng, dtype=torch.float64)

    def ways(self, compute: bool = True, guidance: bool = True) -> Ways:
        v, d = (own @ own.T for own in (self.velocities, self.differences))
        some = v if compute else None, d if guidance else None
        return Ways(self.phase, self.levels, self.sensitivity, self.conditional, *some)

    def error(self, runs: Sequence[ComputedStep]) -> float | None:
        """Of what the runs reuse; None where they reuse what is not there, or what is too old."""
        total, at, both = 0.0, 0, None
        computed: list[int] = []
        errors: list[float] = []
        for run in runs:
            wrong = torch.zeros(8, dtype=torch.float64)
            if run.guidance == "off":
                wrong = self.differences[at]
            elif run.guidance == "reuse":
                if both is None or at - both > 6:
                    return None
                wrong = self.differences[both] - self.differences[at]
            else:
                both = at
            computed.append(at)
            errors.append(self.square(wrong, at))
            total += errors[-1]
            for step in range(at + 1, at + 1 + run.reused):
                new, old = self.line(computed, step)
                total += new**2 * errors[-1] + (old**2 * errors[-2] if old else 0)
                line = new * self.velocities[at] + (old * self.velocities[computed[-2]] if old else 0)
                total += self.square(line - self.velocities[step], step)
            at += run.reused + 1
        return total

    def square(self, wrong: Tensor, step: int) -> float:
        return float(wrong.square().sum() * self.sensitivity[self.phase[step]])

    def line(self, computed: Sequence[int], step: int) -> tuple[float, float]:
        """What the latest computed step, and the one before, count in the line through both."""
        if len(computed) == 1:
            return 1.0, 0.0
        old, new = (self.levels[at] for at in computed[-2:])
        share = (self.levels[step] - old) / (new - old)
        return share, 1 - share

    def every(self, compute: bool, guidance: bool) -> Iterator[tuple[ComputedStep, ...]]:
        """All runs that there may be."""

        def after(at: int, *before: int) -> Iterator[tuple[ComputedStep, ...]]:
            if at == len(self.levels):
                yield ()
                return
            computed = (*before[-1:], at)
            most = min(MOST_REUSED, len(self.levels) - 1 - at) if compute else 0
            for how, n in itertools.product(("full", "reuse", "off") if guidance else ("full",), range(most + 1)):
                # Of errors 0.8 is alike in both ends of the line, and stays as it is.
                lines = [self.line(computed, step) for step in range(at + 1, at + n + 1)]
                counted = 1 + sum(0.8 + 0.2 * (new**2 + old**2) for new, old in lines)
                for rest in after(at + n + 1, *computed):
                    yield (ComputedStep(self.phase[at], how, n, counted), *rest)  # type: ignore[arg-type]

        return (runs for runs in after(0) if self.error(runs) is not None)


@pytest.mark.parametrize(("compute", "guidance"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_better_than_the_best(seed: int, compute: bool, guidance: bool) -> None:
    steps = Steps(seed)
    ways = steps.ways(compute, guidance)
    rng = torch.Generator().manual_seed(seed)
    values, errors = torch.rand(2, len(ways.rows), generator=rng, dtype=torch.float64)
    of_row, by_row = (dict(zip(ways.rows, own.tolist(), strict=True)) for own in (values, errors))
    every = [(runs, steps.error(runs) or 0.0) for runs in steps.every(compute, guidance)]
    for price in (0.0, 0.3, 3.0, 30.0, 1e6):

        def value(runs: Sequence[ComputedStep], wrong: float, price: float = price) -> float:
            """An error counts once for each step in a row's value, and as often as it is there altogether."""
            more = sum(by_row[run.row] * (run.counted / (run.reused + 1) - 1) for run in runs)
            return sum(of_row[run.row] for run in runs) + price * (wrong + more)

        runs, error = ways.best(values, errors, price)
        assert error == pytest.approx(steps.error(runs), rel=SMALL, abs=1e-12)
        assert value(runs, error) == pytest.approx(min(value(*each) for each in every), rel=SMALL)


def joint(seed: int, **chosen: bool) -> Problem:
    """Attention, linear layers and the ways of five steps, in a step of which attention is 0.8."""
    problem, steps = random_problem(seed), Steps(seed)
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    linear = torch.tensor([0.0, 1e-3, 2e-3, 3e-3], dtype=torch.float64).expand(2, 1, 4) * (seed + 1)
    costs = torch.tensor([1.0, 0.8, 0.9, 0.7], dtype=torch.float64)
    return replace(
        problem, weights=weights, linear_errors=linear, linear_costs=costs, attention=0.8, ways=steps.ways(**chosen)
    )


def recounted(problem: Problem, found: Schedule, steps: Steps) -> tuple[float, float]:
    """Cost and error, run by run."""
    assert problem.linear_costs is not None
    assert problem.linear_errors is not None
    count, cost, error = len(steps.levels), 0.0, steps.error(found.runs) or 0.0
    for run, precisions, choices, linears in zip(found.runs, found.precision, found.choice, found.linear, strict=True):
        alone = run.guidance != "full"
        heads = choices.numel()
        seen = precisions[:, None].expand_as(choices)
        attention = float(COSTS[seen, choices].sum()) / heads
        layers = float(problem.linear_costs[linears].mean())
        cost += (0.8 * attention + 0.2 * layers) * (0.5 if alone else 1.0) / count
        wrong = sum(
            float(problem.errors[run.phase, layer, head, precisions[layer], choice])
            for layer, of_heads in enumerate(choices.tolist())
            for head, choice in enumerate(of_heads)
        ) + sum(float(problem.linear_errors[run.phase, layer, own]) for layer, own in enumerate(linears.tolist()))
        share = float(steps.conditional[run.phase]) if run.guidance == "off" else 1.0
        error += wrong * share * run.counted / steps.phase.count(run.phase)
    return cost, error


@pytest.mark.parametrize("seed", range(4))
def test_a_schedule_costs_and_errs_as_it_says(seed: int) -> None:
    problem, steps = joint(seed), Steps(seed)
    for budget in (0.1, 0.2, 0.4, 0.7):
        found = solve.within_cost(problem, budget)
        assert found is not None
        assert found.cost <= budget + 1e-12
        assert recounted(problem, found, steps) == pytest.approx((found.cost, found.error), rel=SMALL)
        same = solve.within_error(problem, found.error)
        assert same.error <= found.error
        assert recounted(problem, same, steps) == pytest.approx((same.cost, same.error), rel=SMALL)


def test_where_nothing_may_err_nothing_is_saved() -> None:
    found = solve.within_error(joint(1), 0.0)
    assert found.cost == pytest.approx(1.0)
    assert found.error == 0
    assert {(run.guidance, run.reused) for run in found.runs} == {("full", 0)}
    assert found.linear.sum() == 0


def test_the_cheapest_computes_as_little_as_there_is() -> None:
    """Of five steps two, of one branch, and no difference of both is there to be used again."""
    found = solve.within_error(joint(2), math.inf)
    assert len(found.runs) == 2
    assert [run.guidance for run in found.runs] == ["off", "off"]
    assert found.cost == pytest.approx((0.8 * 0.09 + 0.2 * 0.7) / 5)
