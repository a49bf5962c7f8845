"""From a budget to a schedule: how many checks it takes, what is returned, and what is said where nothing holds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache

import pytest
import torch

from fpsgen.calibrate import budget as budgets
from fpsgen.calibrate import solve
from fpsgen.calibrate.budget import Budget, Tried, search
from fpsgen.calibrate.record import Checked
from fpsgen.calibrate.solve import Problem, Schedule
from fpsgen.errors import UsageError, option

ROUNDS = 6
COSTS = torch.tensor([[math.inf, math.inf, 1.0], [0.10, 0.30, 0.55], [0.09, 0.29, 0.53]], dtype=torch.float64)


def problem(seed: int = 0, phases: int = 3, layers: int = 4, heads: int = 3) -> Problem:
    """Fine enough that there is a schedule for nearly every error."""
    rng = torch.Generator().manual_seed(seed)
    errors = 0.01 * torch.rand(phases, layers, heads, 3, 3, generator=rng, dtype=torch.float64) ** 4
    errors[..., 0, 2] = 0
    return Problem(errors, COSTS, torch.full((phases,), 1 / phases, dtype=torch.float64))


class Truth:
    """What a schedule's clip comes to: a multiple of the estimate, and noise; counts how often it is asked."""

    def __init__(self, factor: float = 4.0, noise: float = 0.0, worst: float = 100.0, level: float | None = None):
        self.factor, self.noise, self.worst, self.level, self.asked = factor, noise, worst, level, 0

    def of(self, schedule: Schedule) -> float:
        """dB."""
        if self.level is not None:
            return self.level
        rng = random.Random(repr((schedule.precision.tolist(), schedule.choice.tolist())))
        db = 10 - 10 * math.log10(max(self.factor * schedule.error, 1e-12)) + self.noise * rng.uniform(-1, 1)
        return min(db, self.worst)

    def __call__(self, schedule: Schedule) -> list[Checked]:
        self.asked += 1
        db = self.of(schedule)
        return [Checked("a cat", seed, 10 ** ((10 - db) / 10), db) for seed in range(2)]


@cache
def frontier(seed: int = 0, **shape: int) -> list[Schedule]:
    """Of `problem(seed, …)`: an eighth of a power of ten apart."""
    task = problem(seed, **shape)
    return [solve.within_error(task, 10**at) for at in torch.arange(-7, 0.6, 0.125).tolist()]


def cheapest_that_holds(holds: Callable[[Schedule], bool], seed: int = 0) -> float:
    return min(one.cost for one in frontier(seed) if holds(one))


def check_last(tried: list[Tried], truth: Truth) -> None:
    assert truth.asked == len(tried) <= ROUNDS + 1
    assert tried[-1].holds
    assert tried[-1].schedule.cost == min(one.schedule.cost for one in tried if one.holds)
    assert tried[-1].schedule.cost <= 1 - budgets.LEAST_SAVING


@pytest.mark.parametrize("wanted", [15.0, 30.0, 40.0])
@pytest.mark.parametrize("factor", [0.01, 4.0, 300.0])
def test_finds_the_cheapest_that_holds(wanted: float, factor: float) -> None:
    """However wrong the estimates are, by a constant factor."""
    task, truth = problem(), Truth(factor)
    try:
        tried = search(task, Budget("psnr", wanted), ROUNDS, truth)
    except UsageError:
        mildest = solve.within_cost(task, 1 - budgets.LEAST_SAVING)
        assert mildest is not None
        assert truth.of(mildest) < wanted
        return
    check_last(tried, truth)
    assert truth.of(tried[-1].schedule) >= wanted
    # 0.5 dB too good is near enough, and a schedule that is 0.5 dB worse costs some hundredths less.
    best = cheapest_that_holds(lambda one: truth.of(one) >= wanted)
    assert tried[-1].schedule.cost <= best + 0.05


@pytest.mark.parametrize("seed", range(4))
def test_noise_does_not_confuse_it(seed: int) -> None:
    """Two dB of noise from schedule to schedule: what is returned held, and it ends."""
    task, truth = problem(seed), Truth(noise=2.0)
    tried = search(task, Budget("psnr", 30.0), ROUNDS, truth)
    check_last(tried, truth)
    assert truth.of(tried[-1].schedule) >= 30
    best = cheapest_that_holds(lambda one: truth.of(one) >= 33, seed)
    assert tried[-1].schedule.cost <= best + 0.05


def test_saturation() -> None:
    """Levels that are all alike, above the budget or below it, end the search quickly."""
    task = problem()
    good = Truth(level=42.0)
    tried = search(task, Budget("psnr", 30.0), ROUNDS, good)
    check_last(tried, good)
    cheapest = solve.within_error(task, math.inf)
    assert tried[-1].schedule.cost == cheapest.cost, "all hold, so that the cheapest does"
    bad = Truth(level=12.0)
    with pytest.raises(UsageError, match="only BF16 meets min_psnr=30"):
        search(task, Budget("psnr", 30.0), ROUNDS, bad)
    assert bad.asked <= ROUNDS + 1


def test_an_impossible_budget() -> None:
    truth = Truth(worst=88.0)
    with pytest.raises(UsageError) as told:
        search(problem(), Budget("psnr", 99.0), ROUNDS, truth)
    assert str(told.value).startswith("only BF16 meets min_psnr=99: the mildest schedule")
    assert "dB" in str(told.value)
    assert told.value.marked_hint == f"use {option('preset', 'bf16')}"
    assert truth.asked <= ROUNDS + 1


@pytest.mark.parametrize("wanted", [1e-4, 1e-3, 1e-2, 0.1])
def test_max_error(wanted: float) -> None:
    task, truth = problem(), Truth()
    tried = search(task, Budget("error", wanted), ROUNDS, truth)
    check_last(tried, truth)
    assert tried[-1].checked[0].error <= wanted
    best = cheapest_that_holds(lambda one: truth.factor * one.error <= wanted)
    assert tried[-1].schedule.cost <= best + 0.05


def test_schedules_that_err_nothing() -> None:
    """--max-error where some checks come to exactly 0, whose dB are infinite."""

    def check(schedule: Schedule) -> list[Checked]:
        error = 0.0 if schedule.cost > 0.4 else 0.02
        return [Checked("a cat", 0, error, 50.0)]

    tried = search(problem(), Budget("error", 0.001), ROUNDS, check)
    assert tried[-1].holds
    assert 0.4 < tried[-1].schedule.cost < 0.6


def test_estimates_that_are_all_zero() -> None:
    task = problem()
    task.errors.zero_()
    truth = Truth(level=50.0)
    tried = search(task, Budget("psnr", 30.0), ROUNDS, truth)
    check_last(tried, truth)
    assert tried[-1].schedule.cost == pytest.approx(0.09)
    with pytest.raises(UsageError, match="only BF16"):
        search(task, Budget("psnr", 30.0), ROUNDS, Truth(level=20.0))


@pytest.mark.parametrize("wanted", [20.0, 30.0, 40.0])
@pytest.mark.parametrize("seed", [3, 7, 11])
def test_few_schedules(wanted: float, seed: int) -> None:
    """One layer of one head: most guesses lead to a schedule that is known. That must neither end the search, as there
    may be a better one, nor cost a check; and where the hull has nothing between, dense BF16 itself is no result."""
    task = problem(seed, phases=3, layers=1, heads=1)
    truth = Truth()
    try:
        tried = search(task, Budget("psnr", wanted), 10, truth)
    except UsageError:
        pytest.fail("the mildest holds here")
    assert truth.asked == len(tried)
    assert all(one.schedule.cost <= 1 - budgets.LEAST_SAVING for one in tried)
    every = frontier(seed, phases=3, layers=1, heads=1)
    savers = [one for one in every if one.cost <= 1 - budgets.LEAST_SAVING and truth.of(one) >= wanted + 0.5]
    best = min((one.cost for one in savers), default=1.0)
    assert tried[-1].schedule.cost <= best


def test_dense_on_the_other_side_of_a_gap_is_no_result() -> None:
    """One head, by hand: both larger windows lie above the line from the smallest to dense BF16, so that whatever may
    err a little less than the smallest is dense for the estimate. The mildest, the largest window, holds."""
    errors = torch.tensor([[0.0, 0.0, 0.0], [0.10, 0.095, 0.09], [1.0, 1.0, 1.0]], dtype=torch.float64)
    task = Problem(errors[None, None, None], COSTS, torch.ones(1, dtype=torch.float64))
    assert solve.within_error(task, 0.092).cost == 1
    truth = Truth()  # 14.4 dB for the mildest, 14.0 for the cheapest
    tried = search(task, Budget("psnr", 14.1), ROUNDS, truth)
    check_last(tried, truth)
    assert tried[-1].schedule.cost == pytest.approx(0.55)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_are_bounded(rounds: int) -> None:
    """One more at most, of the mildest, where none held."""
    truth = Truth(factor=300.0)
    tried = search(problem(), Budget("psnr", 30.0), rounds, truth)
    assert len(tried) <= rounds + 1
    assert tried[-1].holds


def test_target_cost() -> None:
    truth = Truth(level=3.0)
    (tried,) = search(problem(), Budget("cost", 0.3), ROUNDS, truth)
    assert truth.asked == 1
    assert tried.holds
    assert 0.29 <= tried.schedule.cost <= 0.3 + 1e-12


@pytest.mark.parametrize("value", [0.0123, 0.0899])
def test_a_target_below_the_least(value: float) -> None:
    """Told before anything is checked, with a figure that does work."""
    truth = Truth()
    with pytest.raises(UsageError, match=f"target_cost={value:g}: no schedule costs so little") as told:
        search(problem(), Budget("cost", value), ROUNDS, truth)
    assert told.value.hint == "the lowest cost here is 0.090"
    assert truth.asked == 0
    (tried,) = search(problem(), Budget("cost", 0.090), ROUNDS, truth)
    assert tried.schedule.cost == pytest.approx(0.09)


def test_the_least_is_rounded_up() -> None:
    """To a target that can be met."""
    with pytest.raises(UsageError) as told:
        budgets.check_possible(Budget("cost", 0.01), 0.01231)
    assert told.value.hint == "the lowest cost here is 0.013"


def test_nothing_is_cheaper_than_dense() -> None:
    """Of a video so small that rounding costs more than it saves."""
    task = problem()
    dear = Problem(task.errors, COSTS + torch.tensor([[0.0], [2.0], [2.0]]), task.weights)
    truth = Truth()
    for budget in (Budget("psnr", 30.0), Budget("cost", 0.5)):
        with pytest.raises(UsageError, match="nothing that may be chosen costs less than BF16 here"):
            search(dear, budget, ROUNDS, truth)
    assert truth.asked == 0


def test_it_is_the_mean_that_counts() -> None:
    def check(schedule: Schedule) -> list[Checked]:
        return [Checked("a cat", 0, 0.1, 25.0), Checked("a dog", 1, 0.3, 36.0)]

    assert Budget("psnr", 30.0).level(check(None)) == pytest.approx(30.5)  # type: ignore[arg-type]
    assert Budget("error", 0.2).reached(check(None)) == "an error of 0.2"  # type: ignore[arg-type]
    (just,) = search(problem(), Budget("psnr", 30.5), ROUNDS, check)  # what just holds, holds: the first guess
    assert just.holds
    with pytest.raises(UsageError, match=r"reaches 30\.5 dB"):
        search(problem(), Budget("psnr", 30.6), ROUNDS, check)
