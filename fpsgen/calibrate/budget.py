"""From a budget to a schedule that holds it: guess by the estimate, verify, tighten or loosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fpsgen import metrics
from fpsgen.errors import UsageError, option, plain

if TYPE_CHECKING:  # a budget that cannot be is refused before torch is loaded
    from fpsgen.calibrate.record import Checked
    from fpsgen.calibrate.solve import Problem, Schedule

Kind = Literal["psnr", "error", "cost"]

# The settings that give them.
FIELDS: dict[Kind, str] = {"psnr": "min_psnr", "error": "max_error", "cost": "target_cost"}
LEAST_SAVING = 0.01  # of denoising's cost in BF16: a schedule that saves less is not worth a file
_NEAR = 0.5  # dB above the budget, where the search ends
_AIM = 0.25  # dB above it, that a guess aims at
_NARROW = 0.02  # of a bracket, in powers of ten of the estimated error
_MOST_GUESSES = 60  # of which those that lead to a schedule that is known cost no check


@dataclass(frozen=True)
class Budget:
    """psnr: at least so many dB, mean over the clips; error: at most, mean; cost: at most, of denoising in BF16. words:
    how its user gave it, for preset and record."""

    kind: Kind
    value: float
    words: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.words or plain(option(FIELDS[self.kind], self.value))

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
    from fpsgen.calibrate import solve

    check_possible(budget, solve.within_error(problem, math.inf).cost)
    mildest = solve.within_cost(problem, budget.value if budget.kind == "cost" else 1 - LEAST_SAVING)
    assert mildest is not None
    if budget.kind == "cost":
        return [Tried(mildest, check(mildest), True)]
    cheapest = solve.within_error(problem, math.inf)
    low, high = (math.log10(max(own.error, 1e-300)) for own in (mildest, cheapest))
    # What the pocket model showed: a true error is some four times the estimate, as errors of successive phases add up,
    # and an error of 1 is a PSNR of 10 dB. The first check corrects both.
    guess = ((10 if budget.kind == "psnr" else 0) - budget.wanted - _AIM) / 10 - math.log10(4)
    tried: list[Tried] = []
    levels: list[tuple[float, float]] = []  # of each tried, the estimate's logarithm and what was reached
    for _ in range(_MOST_GUESSES):
        guess = min(max(guess, low), high)
        schedule = cheapest if guess == high else mildest if guess == low else solve.within_error(problem, 10**guess)
        if schedule.cost > mildest.cost:  # the hull has gaps, and dense BF16 on their other side
            schedule = mildest
        same = next((one for one in tried if one.schedule.same(schedule)), None)
        if same is None and len(tried) == rounds:
            break
        checked = check(schedule) if same is None else same.checked
        level = budget.level(checked)
        if same is None:
            tried.append(Tried(schedule, checked, level >= budget.wanted))
        levels.append((guess, level))
        if (schedule is mildest or guess == low) and level < budget.wanted:
            break
        if schedule is cheapest and level >= budget.wanted:
            break
        if 0 <= level - budget.wanted <= _NEAR:
            break
        above = max((one for one in levels if one[1] >= budget.wanted), default=None)
        below = min((one for one in levels if one[1] < budget.wanted), default=None)
        if above and below and below[0] - above[0] < _NARROW:
            break
        # Where three guesses in succession lie on one side of a jump, being proportional does not find the other.
        one_side = len(levels) > 2 and len({reached >= budget.wanted for _, reached in levels[-3:]}) == 1
        guess = _next(above, below, budget.wanted + _AIM, halve=same is not None or one_side)
    holding = [one for one in tried if one.holds]
    if not holding and schedule is not mildest:  # the rounds are spent, and there is still somewhere to go
        checked = check(mildest)
        tried.append(Tried(mildest, checked, budget.level(checked) >= budget.wanted))
        holding = [one for one in tried if one.holds]
    if not holding:
        told = f"only BF16 meets {budget}"
        saving = f"at least {LEAST_SAVING:.0%} of denoising's cost"
        told += f": the mildest schedule that saves {saving} reaches {budget.reached(tried[-1].checked)}"
        raise UsageError(told, hint=f"use {option('preset', 'bf16')}")
    best = min(holding, key=lambda one: one.schedule.cost)
    return [one for one in tried if one is not best] + [best]


def _next(above: tuple[float, float] | None, below: tuple[float, float] | None, aim: float, halve: bool) -> float:
    """The next guess: between the nearest on either side, or from the only one by 10 dB for a power of ten."""
    if above and below:
        proportional = not halve and math.inf > above[1] > below[1]
        share = (above[1] - aim) / (above[1] - below[1]) if proportional else 0.5
        return above[0] + min(max(share, 0.1), 0.9) * (below[0] - above[0])
    if above:
        return above[0] + max((above[1] - aim) / 10, 0.05)
    assert below is not None
    return below[0] - max((aim - below[1]) / 7, 0.05)  # tightening brought the pocket model less than 10 dB


def check_possible(budget: Budget, least: float) -> None:
    """UsageError where the cheapest that there is, whose cost is `least`, is too dear."""
    if least > 1 - LEAST_SAVING:
        told = "nothing that may be chosen costs less than BF16 here: in a video so small or short it saves nothing"
        raise UsageError(told, hint=f"use {option('preset', 'bf16')}, or calibrate a larger video")
    if budget.kind == "cost" and least > budget.value:
        enough = math.ceil(least * 1000) / 1000
        raise UsageError(f"{budget}: no schedule costs so little", hint=f"the lowest cost here is {enough:.3f}")


def _decibel(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf
