"""The cheapest schedule within a budget, from the table of what each choice costs and does.

A layer of a phase has one precision, and each of its heads a choice of key tiles. For a price of error, what minimises
cost + price times error is found one head at a time, as both are sums; the price is then found by bisection. This
reaches the lower convex hull of what is possible; what of a budget is left over goes to the single changes that gain
most for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Axis = Literal["phase", "layer", "head"]
_AXES: tuple[Axis, ...] = ("phase", "layer", "head")
_BISECTIONS = 80
_PRICES = (1e-6, 1e18)
_ROUNDING = 1e-12  # of a sum of costs


@dataclass(frozen=True, eq=False)
class Problem:
    """errors: float64 [phases, layers, heads, precisions, choices], 1 - cosine; costs: float64 [precisions, choices],
    infinite where there is no such choice; weights: float64 [phases], the share of steps that each has. tied: axes
    along which all must choose alike."""

    errors: Tensor
    costs: Tensor
    weights: Tensor
    tied: frozenset[Axis] = frozenset()

    def tables(self) -> tuple[Tensor, Tensor]:
        """Errors and costs of each free choice, of one shape: tied axes are of length 1, and sums along them."""
        shape = self.errors.shape
        per_head = self.weights[:, None, None, None, None] / (shape[1] * shape[2])
        costs = (self.costs * per_head).expand(shape)
        errors = self.errors.where(costs.isfinite(), torch.inf)
        for axis, name in enumerate(_AXES):
            if name in self.tied:
                errors, costs = errors.sum(axis, keepdim=True), costs.sum(axis, keepdim=True)
        return errors, costs


@dataclass(frozen=True, eq=False)
class Schedule:
    """precision: int64 [phases, layers]; choice: int64 [phases, layers, heads], by number; cost, error: estimates."""

    precision: Tensor
    choice: Tensor
    cost: float
    error: float

    def same(self, other: Schedule) -> bool:
        """Whether the choices are."""
        return torch.equal(self.precision, other.precision) and torch.equal(self.choice, other.choice)


def within_error(problem: Problem, error: float) -> Schedule:
    """The cheapest whose estimated error is at most `error`; bf16 everywhere, where nothing else is."""
    return _search(problem, lambda found: found.error <= error, dear_fits=True)


def within_cost(problem: Problem, cost: float) -> Schedule | None:
    """The one of least estimated error that costs at most `cost`; None where none costs so little."""
    errors, costs = problem.tables()
    cheapest = _chosen(problem, errors, costs, 0.0)
    if cheapest.cost > cost + _ROUNDING:
        return None
    found = _search(problem, lambda found: found.cost <= cost, dear_fits=False)
    return _spend(problem, found if found.cost <= cost else cheapest, cost)


def _search(problem: Problem, fits: Callable[[Schedule], bool], dear_fits: bool) -> Schedule:
    """The schedule at the last price that fits, of rising prices of error, or the first where a high price does."""
    errors, costs = problem.tables()
    low, high = (math.log(price) for price in _PRICES)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if fits(_chosen(problem, errors, costs, math.exp(middle))) is dear_fits:
            high = middle
        else:
            low = middle
    return _chosen(problem, errors, costs, math.exp(high if dear_fits else low))


def _chosen(problem: Problem, errors: Tensor, costs: Tensor, price: float) -> Schedule:
    """What minimises cost + price · error; of equals the first, so that nothing depends on chance."""
    value = torch.where(costs.isfinite(), costs + price * errors.nan_to_num(posinf=0.0), torch.inf)
    best, choice = value.min(4)  # [phases, layers, heads, precisions]
    precision = best.sum(2).argmin(2)  # [phases, layers]
    choice = choice.gather(3, precision[:, :, None, None].expand(*choice.shape[:3], 1))[..., 0]
    return _schedule(problem, precision, choice)


def _schedule(problem: Problem, precision: Tensor, choice: Tensor) -> Schedule:
    """With tied axes repeated, and what it costs and does."""
    phases, layers, heads = problem.errors.shape[:3]
    precision = precision.expand(phases, layers).contiguous()
    choice = choice.expand(phases, layers, heads).contiguous()
    each = precision[:, :, None].expand(choice.shape)
    costs = problem.costs[each, choice]
    at = [torch.arange(size).view([-1 if i == axis else 1 for i in range(3)]) for axis, size in enumerate(choice.shape)]
    errors = problem.errors[(*at, each, choice)]
    return Schedule(precision, choice, float((costs.mean((1, 2)) * problem.weights).sum()), float(errors.sum()))


def _spend(problem: Problem, found: Schedule, cost: float) -> Schedule:
    """Use what is left of `cost` for choices that err less, the best exchange first; precisions stay."""
    errors, costs = problem.tables()
    shape = errors.shape[:3]
    precision, choice = found.precision[: shape[0], : shape[1]], found.choice[: shape[0], : shape[1], : shape[2]]
    pick = precision[:, :, None, None, None].expand(*shape, 1, errors.shape[4])
    own_errors, own_costs = errors.gather(3, pick)[..., 0, :], costs.gather(3, pick)[..., 0, :]
    choice, left = choice.clone(), cost - found.cost
    while True:
        more = own_costs - own_costs.gather(3, choice[..., None])
        less = own_errors.gather(3, choice[..., None]) - own_errors
        gain = torch.where((more <= left) & (less > 0), less / more.clamp(min=1e-12), -1.0)
        best = int(gain.argmax())
        if gain.flatten()[best] <= 0:
            return _schedule(problem, precision, choice)
        left -= float(more.flatten()[best])
        choice.view(-1)[best // gain.shape[3]] = best % gain.shape[3]
