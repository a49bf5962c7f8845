"""The cheapest schedule within a budget, against all schedules that there are."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from fpsgen.calibrate import solve
from fpsgen.calibrate.solve import Problem, Schedule

# Three choices; BF16 is dense alone.
COSTS = torch.tensor([[math.inf, math.inf, 1.0], [0.10, 0.30, 0.55], [0.09, 0.29, 0.53]], dtype=torch.float64)
HULL = 1e-9  # relative, of sums in another order


def random_problem(seed: int, phases: int = 2, layers: int = 1, heads: int = 2) -> Problem:
    """Errors over some six powers of ten, as measured ones are; dense BF16 has none."""
    rng = torch.Generator().manual_seed(seed)
    errors = torch.rand(phases, layers, heads, 3, 3, generator=rng, dtype=torch.float64) ** 6
    errors[..., 0, 2] = 0
    weights = torch.rand(phases, generator=rng, dtype=torch.float64) + 0.2
    return Problem(errors, COSTS, weights / weights.sum())


def every(problem: Problem) -> list[tuple[float, float]]:
    """Cost and error of all schedules."""
    phases, layers, heads = problem.errors.shape[:3]
    of_layer = [
        (p, choices)
        for p in range(3)
        for choices in itertools.product(range(3), repeat=heads)
        if all(math.isfinite(COSTS[p, w]) for w in choices)
    ]
    found = []
    for choice in itertools.product(of_layer, repeat=phases * layers):
        cost = error = 0.0
        for place, (p, choices) in enumerate(choice):
            phase, layer = divmod(place, layers)
            for head, w in enumerate(choices):
                cost += float(problem.weights[phase]) * float(COSTS[p, w]) / (layers * heads)
                error += float(problem.errors[phase, layer, head, p, w])
        found.append((cost, error))
    return found


def recounted(problem: Problem, schedule: Schedule) -> tuple[float, float]:
    """Cost and error of a schedule, choice by choice."""
    phases, layers, heads = schedule.choice.shape
    cost = error = 0.0
    for phase, layer, head in itertools.product(range(phases), range(layers), range(heads)):
        p, w = int(schedule.precision[phase, layer]), int(schedule.choice[phase, layer, head])
        cost += float(problem.weights[phase]) * float(problem.costs[p, w]) / (layers * heads)
        error += float(problem.errors[phase, layer, head, p, w])
    return cost, error


def on_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull, by rising cost."""
    hull: list[tuple[float, float]] = []
    for point in sorted(points):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (point[0] - x0) < (point[1] - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append(point)
    return hull


@pytest.mark.parametrize("seed", range(6))
def test_within_error_is_the_hulls_cheapest(seed: int) -> None:
    problem = random_problem(seed)
    hull = on_hull(every(problem))
    for budget in (1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0):
        found = solve.within_error(problem, budget)
        assert found.error <= budget
        assert recounted(problem, found) == pytest.approx((found.cost, found.error), rel=HULL)
        assert found.cost == pytest.approx(min(cost for cost, error in hull if error <= budget), rel=HULL)


@pytest.mark.parametrize("seed", range(6))
def test_within_cost_spends_all_it_can(seed: int) -> None:
    problem = random_problem(seed)
    points = every(problem)
    hull = on_hull(points)
    for budget in (0.095, 0.15, 0.3, 0.5, 0.8, 1.0):
        found = solve.within_cost(problem, budget)
        assert found is not None
        assert found.cost <= budget + 1e-12
        assert recounted(problem, found) == pytest.approx((found.cost, found.error), rel=HULL)
        assert found.error <= min(error for cost, error in hull if cost <= budget) * (1 + HULL), "never above the hull"
        # The best of all may lie off the hull, but with four heads not far.
        assert found.error <= 2 * min(error for cost, error in points if cost <= budget) + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_a_budget_may_be_spent_to_its_end(seed: int) -> None:
    """An error of just the budget is within it; just below, something dearer is needed."""
    problem = random_problem(seed, phases=3, layers=2)
    found = solve.within_error(problem, 0.3)
    assert 0 < found.error < 0.3
    assert solve.within_error(problem, found.error).same(found)
    assert solve.within_error(problem, found.error * (1 - 1e-9)).cost > found.cost


def test_what_is_left_goes_to_the_exchanges_that_gain_most_for_it() -> None:
    """Four heads of one layer, by hand. The price at which anything moves lets the first head go dense, which is too
    dear, so that the hull gives the cheapest choices: cost 0.1, error 103. Of the 0.08 that are left, the second
    head's exchange for the third choice gains most, 0.5, but takes 0.075; those of the third and the fourth head for
    the second choice gain 0.4 for 0.025 each."""
    costs = torch.tensor([[0.1, 0.2, 0.4, 1.0]], dtype=torch.float64)
    of_head = [[100.0, 100.0, 100.0, 0.0], [1.0, 1.0, 0.5, 0.0], [1.0, 0.6, 0.6, 0.0], [1.0, 0.6, 0.6, 0.0]]
    errors = torch.tensor(of_head, dtype=torch.float64)[None, None, :, None]
    found = solve.within_cost(Problem(errors, costs, torch.ones(1, dtype=torch.float64)), 0.18)
    assert found is not None
    assert found.choice.tolist() == [[[0, 0, 1, 1]]]
    assert found.cost == pytest.approx(0.15)
    assert found.error == pytest.approx(102.2)


def test_schedules_are_the_same_where_every_choice_is() -> None:
    ones, none = torch.ones(1, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64)
    one = Schedule(ones, none, none[..., 0], 0.5, 0.1)
    assert one.same(replace(one, cost=0.6, error=0.2))
    assert not one.same(replace(one, precision=torch.tensor([[1, 2]])))
    assert not one.same(replace(one, choice=torch.tensor([[[0, 0], [0, 1]]])))


def test_no_choice_of_infinite_cost_is_made() -> None:
    """Were it free of error: sparse BF16 is never taken."""
    problem = random_problem(1)
    problem.errors[..., 0, :] = 0
    for budget in (0.0, 1e-6, 1e-3, 1.0):
        assert math.isfinite(solve.within_error(problem, budget).cost)
        found = solve.within_cost(problem, 0.2 + 0.8 * budget)
        assert found is not None
        assert math.isfinite(found.cost)


def test_bf16_everywhere_where_nothing_else_is_good_enough() -> None:
    problem = random_problem(2)
    problem.errors[..., 1:, :] += 0.1
    found = solve.within_error(problem, 0.01)
    assert (found.cost, found.error) == (1.0, 0.0)
    assert (found.precision == 0).all()
    assert (found.choice == 2).all()


def test_no_schedule_costs_less_than_the_cheapest_choice() -> None:
    problem = random_problem(3)
    assert solve.within_cost(problem, 0.0899) is None
    exact = solve.within_cost(problem, 0.09)
    assert exact is not None
    assert exact.cost == pytest.approx(0.09)
    assert (exact.choice == 0).all()


def test_a_least_cost_is_kept_however_large_the_errors() -> None:
    """Of errors far above 1 - they are estimates - none is worth a cost that is not there."""
    problem = random_problem(4)
    huge = replace(problem, errors=problem.errors * 1e9)
    found = solve.within_cost(huge, 0.09)
    assert found is not None
    assert found.cost <= 0.09 + 1e-12


def test_a_larger_budget_is_never_worse() -> None:
    problem = random_problem(5, phases=3, layers=3, heads=3)
    budgets = torch.logspace(-6, 0, 40).tolist()
    costs = [solve.within_error(problem, budget).cost for budget in budgets]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]


def test_equals_are_chosen_alike() -> None:
    problem = random_problem(6)
    problem.errors[..., 2, :] = problem.errors[..., 1, :]
    costs = COSTS.clone()
    costs[2] = costs[1]
    alike = replace(problem, costs=costs)
    found = solve.within_cost(alike, 0.3)
    assert found is not None
    assert (found.precision <= 1).all(), "of equals the first"


def test_one_problem_has_one_answer() -> None:
    problem = random_problem(7, phases=3, layers=2, heads=4)
    for find in (lambda: solve.within_cost(problem, 0.4), lambda: solve.within_error(problem, 0.01)):
        first, second = find(), find()
        assert first.same(second)
        assert (first.cost, first.error) == (second.cost, second.error)
    assert not solve.within_error(problem, 0.01).same(solve.within_error(problem, 1.0))


@pytest.mark.parametrize("tied", ["phase", "layer", "head"])
def test_tied_axes_choose_alike(tied: str) -> None:
    problem = replace(random_problem(8, phases=3, layers=4, heads=2), tied=frozenset({tied}))
    free = replace(problem, tied=frozenset())
    found, best = solve.within_cost(problem, 0.4), solve.within_cost(free, 0.4)
    assert found is not None
    assert best is not None
    axis = ["phase", "layer", "head"].index(tied)
    assert (found.choice == found.choice.narrow(axis, 0, 1)).all()
    if tied != "head":
        assert (found.precision == found.precision.narrow(axis, 0, 1)).all()
    assert found.cost <= 0.4 + 1e-12
    assert recounted(problem, found) == pytest.approx((found.cost, found.error), rel=HULL)
    assert best.error <= found.error
    for budget in (0.15, 0.25, 0.5):  # of each another part is left for exchanges
        within = solve.within_cost(problem, budget)
        assert within is not None
        assert within.cost <= budget + 1e-12


def test_everything_tied_is_the_best_uniform_plan() -> None:
    problem = replace(random_problem(9, phases=3, layers=2, heads=3), tied=frozenset({"phase", "layer", "head"}))
    totals = problem.errors.sum((0, 1, 2)).where(COSTS <= 0.35, torch.inf)
    found = solve.within_cost(problem, 0.35)
    assert found is not None
    # Windows alone are exchanged after the hull, so that the precision is the hull's.
    own = int(found.precision[0, 0])
    assert found.error == pytest.approx(float(totals[own].min()))
    assert found.error <= 2 * float(totals.min())
