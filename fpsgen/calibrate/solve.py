"""The cheapest schedule within a budget, from the table of what each choice costs and does.

A layer of a phase has one precision, and each of its heads a choice of key tiles; its linear layers have a precision of
their own. For a price of error, what minimises cost + price times error is found one head at a time, as both are sums.
How steps are had (`ways`) is chosen at that price, too, each kind of step with what is best in it. The price is then
found by bisection. This reaches the lower convex hull of what is possible; what of a budget is left over goes to the
single changes of heads that gain most for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fpsgen.calibrate.ways import ComputedStep, Ways

Axis = Literal["phase", "layer", "head"]
_AXES: tuple[Axis, ...] = ("phase", "layer", "head")
_BISECTIONS = 50
_PRICES = (1e-6, 1e18)
_ROUNDING = 1e-12  # of a sum of costs


@dataclass(frozen=True, eq=False)
class Problem:
    """errors: float64 [phases, layers, heads, precisions, choices], 1 - cosine; costs: float64 [precisions, choices],
    infinite where there is no such choice; weights: float64 [phases], the share of steps that each has. tied: axes
    along which all must choose alike. linear_errors: float64 [phases, layers, linears], linear_costs: float64
    [linears], of linear layers, alike. attention: the share that dense attention has in a step's cost, in which all
    costs are summed; the rest is linear layers'. ways: of steps, None where all are computed whole.
    """

    errors: Tensor
    costs: Tensor
    weights: Tensor
    tied: frozenset[Axis] = frozenset()
    linear_errors: Tensor | None = None
    linear_costs: Tensor | None = None
    attention: float = 1.0
    ways: Ways | None = None

    @cached_property
    def tables(self) -> Tables:
        """Of every row of which a schedule may be made: of phases, or of kinds of steps in them."""
        if self.ways is None:
            return Tables.of(self, torch.arange(len(self.weights)), self.weights, torch.ones_like(self.weights))
        phases = torch.tensor([phase for phase, *_ in self.ways.rows])
        return Tables.of(self, phases, *self.ways.weights())


@dataclass(frozen=True, eq=False)
class Tables:
    """Errors and costs of each choice in each row, as they count in a video: [rows, layers, heads, precisions, choices]
    and, of linear layers, [rows, layers, linears]. Tied axes are of length 1, and sums along them."""

    errors: Tensor
    costs: Tensor
    linear_errors: Tensor
    linear_costs: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, problem: Problem, phases: Tensor, costs: Tensor, errors: Tensor) -> Tables:
        """phases: int64 [rows]; costs, errors: float64 [rows], what those of a whole phase count."""
        _, layers, heads, *_ = problem.errors.shape
        rows = problem.errors[phases] * errors[:, None, None, None, None]
        each = problem.costs * (costs * problem.attention / (layers * heads))[:, None, None, None, None]
        each = each.expand(rows.shape)
        rows = rows.where(each.isfinite(), torch.inf)
        for axis, name in enumerate(_AXES):
            if name in problem.tied:
                rows, each = rows.sum(axis, keepdim=True), each.sum(axis, keepdim=True)
        none = torch.zeros(len(problem.weights), layers, 1, dtype=torch.float64)
        linear = none if problem.linear_errors is None else problem.linear_errors
        of_linear = none[0, 0] + 1 if problem.linear_costs is None else problem.linear_costs
        return cls(
            rows, each, linear[phases] * errors[:, None, None],
            (of_linear * (costs * (1 - problem.attention) / layers)[:, None, None]).expand(-1, layers, -1),
            (len(phases), layers, heads),
        )  # fmt: skip

    def at(self, rows: Tensor, costs: Tensor, errors: Tensor) -> Tables:
        """Of some rows, whose costs and errors count so many times; where nothing is tied."""

        def own(values: Tensor, times: Tensor) -> Tensor:
            return values[rows] * times.view(-1, *[1] * (values.ndim - 1))

        shape = (len(rows), *self.shape[1:])
        return Tables(
            own(self.errors, errors), own(self.costs, costs),
            own(self.linear_errors, errors), own(self.linear_costs, costs), shape,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Schedule:
    """precision, linear: int64 [rows, layers]; choice: int64 [rows, layers, heads], by number; cost, error: estimates,
    reused: the part of the error that is by what steps reuse. A row is a phase or, where there are runs, one of
    these."""

    precision: Tensor
    choice: Tensor
    linear: Tensor
    cost: float
    error: float
    runs: tuple[ComputedStep, ...] = ()
    reused: float = 0.0

    def same(self, other: Schedule) -> bool:
        """Whether the choices are."""
        mine, theirs = ((own.precision, own.choice, own.linear) for own in (self, other))
        return self.runs == other.runs and all(map(torch.equal, mine, theirs))


def within_error(problem: Problem, error: float) -> Schedule:
    """The cheapest whose estimated error is at most `error`; bf16 everywhere, where nothing else is."""
    return _search(problem, lambda found: found.error <= error, dear_fits=True)


def within_cost(problem: Problem, cost: float) -> Schedule | None:
    """The one of least estimated error that costs at most `cost`; None where none costs so little."""
    cheapest = at_price(problem, 0.0)
    if cheapest.cost > cost + _ROUNDING:
        return None
    found = _search(problem, lambda found: found.cost <= cost, dear_fits=False)
    return _spend(problem, found if found.cost <= cost else cheapest, cost)


def _search(problem: Problem, fits: Callable[[Schedule], bool], dear_fits: bool) -> Schedule:
    """The schedule at the last price that fits, of rising prices of error, or the first where a high price does."""
    low, high = (math.log(price) for price in _PRICES)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if fits(at_price(problem, math.exp(middle))) is dear_fits:
            high = middle
        else:
            low = middle
    return at_price(problem, math.exp(high if dear_fits else low))


def at_price(problem: Problem, price: float) -> Schedule:
    """What minimises cost + price · error; of equals the first, so that nothing depends on chance."""
    tables = problem.tables
    value = torch.where(tables.costs.isfinite(), tables.costs + price * tables.errors.nan_to_num(posinf=0.0), torch.inf)
    best, choice = value.min(4)  # [rows, layers, heads, precisions]
    best, precision = best.sum(2).min(2)  # [rows, layers]
    choice = choice.gather(3, precision[:, :, None, None].expand(*choice.shape[:3], 1))[..., 0]
    of_linear, linear = (tables.linear_costs + price * tables.linear_errors).min(2)
    picks = Picks(precision, choice, linear)
    if problem.ways is None:
        return picks.schedule(tables)
    _, errors = picks.totals(tables)
    runs, reused = problem.ways.best(best.sum(1) + of_linear.sum(1), errors, price)
    return picks.schedule(tables, [problem.ways.rows.index(run.row) for run in runs], tuple(runs), reused)


@dataclass(frozen=True, eq=False)
class Picks:
    """What is chosen in each row of tables: precision, linear: int64 [rows, layers]; choice: int64 [rows, layers,
    heads]."""

    precision: Tensor
    choice: Tensor
    linear: Tensor

    def of_heads(self, tables: Tables) -> tuple[Tensor, Tensor]:
        """Costs and errors of each choice of a head, float64 [rows, layers, heads, choices], with the precisions."""
        shape = (*tables.errors.shape[:3], 1, tables.errors.shape[4])
        pick = self.precision[:, :, None, None, None].expand(shape)
        return tables.costs.gather(3, pick)[..., 0, :], tables.errors.gather(3, pick)[..., 0, :]

    def totals(self, tables: Tables) -> tuple[Tensor, Tensor]:
        """Costs and errors, float64 [rows]. Of tied phases, all in one row."""
        found = []
        for heads, layers in zip(self.of_heads(tables), (tables.linear_costs, tables.linear_errors), strict=True):
            own = heads.gather(3, self.choice[..., None])[..., 0].sum((1, 2))
            of_linear = layers.gather(2, self.linear[..., None])[..., 0].sum(1)
            found.append(own + of_linear if len(own) == len(of_linear) else own + of_linear.sum())
        return found[0], found[1]

    def schedule(
        self,
        tables: Tables,
        rows: Sequence[int] | None = None,
        runs: tuple[ComputedStep, ...] = (),
        reused: float = 0.0,
    ) -> Schedule:
        """With tied axes repeated, and what it costs and does. rows: that of each run."""
        every = [self.precision.expand(tables.shape[:2]), self.choice.expand(tables.shape), self.linear]
        costs, errors = self.totals(tables)
        if rows is None:
            precision, choice, linear = (own.contiguous() for own in every)
            return Schedule(precision, choice, linear, float(costs.sum()), float(errors.sum()))
        precision, choice, linear = (own[rows] for own in every)
        counted = torch.tensor([run.factor for run in runs], dtype=torch.float64)
        error = float((errors[rows] * counted).sum()) + reused
        return Schedule(precision, choice, linear, float(costs[rows].sum()), error, runs, reused)


def _spend(problem: Problem, found: Schedule, cost: float) -> Schedule:
    """Use what is left of `cost` for choices that err less, the best exchange first; all else stays."""
    tables, rows = problem.tables, None
    own, first = tables, torch.arange(tables.errors.shape[0])
    if problem.ways is not None:  # of runs alike, the choices of the first
        each = [run.row for run in found.runs]
        alike = list(dict.fromkeys(each))
        rows, first = [alike.index(row) for row in each], torch.tensor([each.index(row) for row in alike])
        numbers = torch.tensor([problem.ways.rows.index(row) for row in alike])
        once, times = torch.ones(len(alike), dtype=torch.float64), torch.tensor(rows).bincount().double()
        counted = torch.tensor([run.factor for run in found.runs], dtype=torch.float64)
        errors = torch.zeros(len(alike), dtype=torch.float64).index_add(0, torch.tensor(rows), counted)
        tables, own = tables.at(numbers, once, once), tables.at(numbers, times, errors)
    layers, heads = own.errors.shape[1:3]
    picks = Picks(
        found.precision[first, :layers], found.choice[first, :layers, :heads].clone(),
        found.linear if rows is None else found.linear[first],
    )  # fmt: skip
    (costs, errors), choice, left = picks.of_heads(own), picks.choice, cost - found.cost
    while True:
        more = costs - costs.gather(3, choice[..., None])
        less = errors.gather(3, choice[..., None]) - errors
        gain = torch.where((more <= left) & (less > 0), less / more.clamp(min=1e-12), -1.0)
        best = int(gain.argmax())
        if gain.flatten()[best] <= 0:
            return picks.schedule(tables, rows, found.runs, found.reused)
        left -= float(more.flatten()[best])
        choice.view(-1)[best // gain.shape[3]] = best % gain.shape[3]
