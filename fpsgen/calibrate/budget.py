"""From a budget to a schedule that holds it: guess by the estimate, verify, tighten or loosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fpsgen import metrics
from fpsgen.calibrate import solve
from fpsgen.calibrate.solve import Problem, Schedule
from fpsgen.calibrate.verify import Checked
from fpsgen.errors import UsageError

Kind = Literal["psnr", "error", "cost"]

LEAST_SAVING = 0.01  # of dense BF16 attention's cost: a schedule that saves less is not worth a file
_NEAR = 0.5  # dB above the budget, where the search ends
_AIM = 0.25  # dB above it, that a guess aims at
_NARROW = 0.02  # of a bracket, in powers of ten of the estimated error


@dataclass(frozen=True)
class Budget:
    """psnr: at least so many dB, mean over the clips; error: at most, mean; cost: at most, in BF16 attention's."""

    kind: Kind
    value: float

    def __str__(self) -> str:
        option = {"psnr": "--min-psnr", "error": "--max-error", "cost": "--target-cost"}[self.kind]
        return f"{option} {self.value:g}"

    def level(self, checked: list[Checked]) -> float:
        """What was reached, in dB, of which more is better."""
        if self.kind == "psnr":
            return metrics.mean_ci95([one.psnr for one in checked])[0]
        return _decibel(metrics.mean_ci95([one.error for one in checked])[0])

    @property
    def wanted(self) -> float:
        return self.value if self.kind == "psnr" else _decibel(self.value)

    def reached(self, checked: list[Checked]) -> str:
        mean = self.level(checked)
        return f"{mean:.1f} dB" if self.kind == "psnr" else f"an error of {10 ** (-mean / 10):.2g}"


@dataclass(frozen=True, eq=False)
class Tried:
    """A schedule, what its clips came to, and whether the budget holds."""

    schedule: Schedule
    checked: list[Checked]
    holds: bool


def search(problem: Problem, budget: Budget, rounds: int, check: Callable[[Schedule], list[Checked]]) -> list[Tried]:
    """All that was tried, the one to take last: the cheapest that holds. UsageError where only dense BF16 holds."""
    if budget.kind == "cost":
        return [_within_cost(problem, budget, check)]
    mildest = solve.within_cost(problem, 1 - LEAST_SAVING)
    if mildest is None:
        raise UsageError("every schedule here costs as much as dense BF16 attention", hint="use --preset bf16")
    low, high = math.log10(max(mildest.error, 1e-300)), math.log10(_cheapest(problem).error)
    # What the pocket model showed: a true error is some four times the estimate, as errors of successive phases add up,
    # and an error of 1 is a PSNR of 10 dB. The first check corrects both.
    guess = ((10 if budget.kind == "psnr" else 0) - budget.wanted - _AIM) / 10 - math.log10(4)
    tried: list[Tried] = []
    levels: list[tuple[float, float]] = []  # of each tried, the estimate's logarithm and what was reached
    while len(tried) < rounds:
        guess = min(max(guess, low), high)
        schedule = mildest if guess == low else solve.within_error(problem, 10**guess)
        if any(schedule.cost == one.schedule.cost for one in tried):  # nothing lies between
            break
        checked = check(schedule)
        level = budget.level(checked)
        tried.append(Tried(schedule, checked, level >= budget.wanted))
        levels.append((guess, level))
        if (guess == low and level < budget.wanted) or (guess == high and level >= budget.wanted):
            break
        if 0 <= level - budget.wanted <= _NEAR:
            break
        above = max((one for one in levels if one[1] >= budget.wanted), default=None)
        below = min((one for one in levels if one[1] < budget.wanted), default=None)
        if above and below and below[0] - above[0] < _NARROW:
            break
        guess = _next(above, below, budget.wanted + _AIM, low)
    holding = [one for one in tried if one.holds]
    if not holding and schedule is not mildest:  # the rounds are spent, and there is still somewhere to go
        checked = check(mildest)
        tried.append(Tried(mildest, checked, budget.level(checked) >= budget.wanted))
        holding = [one for one in tried if one.holds]
    if not holding:
        told = f"only dense BF16 attention meets {budget}"
        saving = f"{LEAST_SAVING:.0%} of attention's cost"
        reached = budget.reached(tried[-1].checked)
        raise UsageError(f"{told}: the mildest schedule that saves {saving} reaches {reached}", "use --preset bf16")
    best = min(holding, key=lambda one: one.schedule.cost)
    return [one for one in tried if one is not best] + [best]


def _next(above: tuple[float, float] | None, below: tuple[float, float] | None, aim: float, low: float) -> float:
    """The next guess: between the nearest on either side, or from the only one by 10 dB for a power of ten."""
    if above and below:
        share = (above[1] - aim) / (above[1] - below[1]) if above[1] > below[1] else 0.5
        return above[0] + min(max(share, 0.1), 0.9) * (below[0] - above[0])
    if above:
        return above[0] + max((above[1] - aim) / 10, 0.05)
    assert below is not None
    return below[0] - max((aim - below[1]) / 10, 0.05)


def _within_cost(problem: Problem, budget: Budget, check: Callable[[Schedule], list[Checked]]) -> Tried:
    schedule = solve.within_cost(problem, budget.value)
    if schedule is None:
        least = _cheapest(problem).cost
        raise UsageError(f"{budget}: no schedule costs so little", hint=f"the least here is {least:.3f}")
    return Tried(schedule, check(schedule), True)


def _cheapest(problem: Problem) -> Schedule:
    return solve.within_error(problem, math.inf)


def _decibel(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf
