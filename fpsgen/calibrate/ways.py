"""How each step of a video is obtained: computed with both guidance branches or one, or continued from earlier steps.

What is reused is wrong by what has changed since, which the velocities of a dense trajectory say without any further
forward pass: only differences of velocities count, so that a matrix of their inner products is all that is kept.
Errors of a step that is computed return in the steps that continue from it: those of attention and linear layers are
alike in neighbouring steps, and mostly stay as they are; those of a reused difference are not, and grow with the line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fpsgen.wan.plan import MOST_REUSED, Guidance

_OLDEST = 6  # steps since both guidance branches were computed, where their difference is used again


# How alike errors of attention are in computed steps that follow each other: their cosine is 0.72 to 0.88 in the pocket
# model. What is alike, the line through both steps leaves as it is.
_ALIKE = 0.8

# A kind of step that is computed: its phase, its guidance, how many steps continue from it.
Row = tuple[int, Guidance, int]


class ComputedStep(NamedTuple):
    """A step that is computed, and how many steps after it continue from it. phase: which the step belongs to; counted:
    how often the error of its attention and linear layers counts, in all these steps."""

    phase: int
    guidance: Guidance
    reused: int
    counted: float

    @property
    def row(self) -> Row:
        """What attention and linear layers depend on."""
        return self.phase, self.guidance, self.reused

    @property
    def factor(self) -> float:
        """How often the error counts, where its row counts it once in each of these steps."""
        return self.counted / (self.reused + 1)


class _StepState(NamedTuple):
    """What decides how steps are best obtained from `at` on: the steps since the computed one before it, 0 where there
    is none; the age of the difference of both branches, 0 where none is young enough; the guidance of the step before.
    """

    at: int
    gap: int
    age: int
    last: Guidance

    def after(self, run: ComputedStep) -> _StepState:
        gap = run.reused + 1
        age = gap if run.guidance == "full" else self.age + gap if self.age else 0
        return _StepState(self.at + gap, gap, age if age <= _OLDEST else 0, run.guidance)


@dataclass(frozen=True, eq=False)
class _Graph:
    """What follows each state: its runs, their errors, and the number of the state after them, which is one more than
    there are at the video's end. of_step: the numbers of each step's states. rows (by number), errors, factors, then:
    the same, [states, ways]; an error is infinite where there is no further way."""

    ways: list[list[tuple[ComputedStep, float, int]]]
    of_step: list[slice]
    rows: Tensor
    errors: Tensor
    factors: Tensor
    then: Tensor

    @classmethod
    def of(cls, ways: list[list[tuple[ComputedStep, float, int]]], counts: list[int], rows: list[Row]) -> _Graph:
        """counts: of the states of each step."""
        ends = list(accumulate(counts, initial=0))
        shape, number = (len(ways), max(map(len, ways))), {row: index for index, row in enumerate(rows)}
        of_row, then = torch.zeros(2, *shape, dtype=torch.int64)
        errors, factors = torch.full((2, *shape), torch.inf, dtype=torch.float64)
        for state, each in enumerate(ways):
            for way, (run, error, after) in enumerate(each):
                of_row[state, way], then[state, way] = number[run.row], after
                errors[state, way], factors[state, way] = error, run.factor
        return cls(ways, [slice(*own) for own in pairwise(ends)], of_row, errors, factors, then)


@dataclass(frozen=True, eq=False)
class Ways:
    """What there is to choose from in a video's steps, and what it does.

    phase_of_step: their phases. levels: the noise level before each. sensitivity: float64 [phases], error of the final
    latents for each squared change of a velocity in one step. velocities, differences: float64 [steps, steps], inner
    products of the guided velocities of a dense trajectory, and of what both branches differ by times guidance - 1;
    None where that is not to be chosen. conditional: float64 [phases], the squared change of the conditional velocity
    by attention and linear layers, over that of the guided one, which has it where a difference is used again, too.
    boundary: the first step of the other one of two experts, which uses nothing again that the first one left.
    """

    phase_of_step: tuple[int, ...]
    levels: tuple[float, ...]
    sensitivity: Tensor
    conditional: Tensor
    velocities: Tensor | None
    differences: Tensor | None
    boundary: int | None = None

    def _end(self, at: int) -> int:
        """The step after the last one of the same expert."""
        steps = len(self.levels)
        return self.boundary if self.boundary is not None and at < self.boundary else steps

    def _after(self, state: _StepState, run: ComputedStep) -> _StepState:
        """Nothing is left where the other expert begins."""
        after = state.after(run)
        return _StepState(after.at, 0, 0, "full") if after.at == self.boundary else after

    @cached_property
    def rows(self) -> list[Row]:
        """All that there may be."""
        reused = range(1 if self.velocities is None else MOST_REUSED + 1)
        guidances: tuple[Guidance, ...] = ("full",) if self.differences is None else ("full", "reuse", "off")
        return [(phase, own, n) for phase in range(len(self.sensitivity)) for own in guidances for n in reused]

    def weights(self) -> tuple[Tensor, Tensor]:
        """float64 [rows]: what a row's costs and errors count in one step; both 1 in all steps of a phase are all."""
        steps, in_phase = len(self.phase_of_step), [self.phase_of_step.count(p) for p in range(len(self.sensitivity))]
        costs = [(1.0 if guidance == "full" else 0.5) / steps for _, guidance, _ in self.rows]
        errors = [
            (n + 1) * (float(self.conditional[phase]) if guidance == "off" else 1.0) / max(1, in_phase[phase])
            for phase, guidance, n in self.rows
        ]
        return torch.tensor(costs, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64)

    def _slope(self, gap: int, at: int, step: int) -> float:
        """By how much the line goes on, from the computed step `gap` steps before `at`, to `at`, to `step`."""
        if not gap:
            return 0.0
        return (self.levels[step] - self.levels[at]) / (self.levels[at] - self.levels[at - gap])

    @cached_property
    def _continued(self) -> list[list[list[tuple[float, float, float]]]]:
        """By the steps since the computed step before (0: there is none), the computed step, and how many steps are
        continued from it: what is wrong with these, and how often they have what was wrong in the one and the other."""
        steps = len(self.levels)
        found = []
        for gap in range(MOST_REUSED + 2):
            found.append([[(0.0, 0.0, 0.0)] for _ in range(steps)])
            for at in range(gap, steps if self.velocities is not None else 0):
                for step in range(at + 1, min(at + MOST_REUSED + 1, self._end(at))):
                    slope, (wrong, new, old) = self._slope(gap, at, step), found[gap][at][-1]
                    terms = [(at, 1 + slope), (at - gap, -slope), (step, -1.0)]
                    wrong += self._error(self.velocities, terms, step)
                    found[gap][at].append((wrong, new + (1 + slope) ** 2, old + slope**2))
        return found

    @cached_property
    def _guided(self) -> list[list[float]]:
        """By the age of the difference that is used again (0: without guidance), and the step: the error of that."""
        steps = len(self.levels)
        found = [[0.0] * steps for _ in range(_OLDEST + 1)]
        if (d := self.differences) is None:
            return found
        for age in range(_OLDEST + 1):
            for at in range(age, steps):
                terms = [(at - age, 1.0), (at, -1.0)] if age else [(at, 1.0)]
                found[age][at] = self._error(d, terms, at)
        return found

    def _error(self, products: Tensor | None, terms: Sequence[tuple[int, float]], step: int) -> float:
        """Of a sum of velocities with these factors, which is what a step is wrong by."""
        assert products is not None
        square = sum(a * b * float(products[i, j]) for i, a in terms for j, b in terms)
        return max(square, 0.0) * float(self.sensitivity[self.phase_of_step[step]])

    def best(self, values: Tensor, errors: Tensor, price: float) -> tuple[list[ComputedStep], float]:
        """The runs of least value, and the error of what is reused in them. values, errors: float64 [rows], of a step
        of each and those that continue from it; price: of error. By dynamic programming, from the last step back."""
        graph = self._graph
        least = torch.zeros(len(graph.ways) + 1, dtype=torch.float64)  # and of the video's end, where nothing is left
        picked = torch.zeros(len(graph.ways), dtype=torch.int64)
        more = (graph.factors - 1) * errors[graph.rows]
        own = torch.where(graph.errors.isfinite(), values[graph.rows] + price * (graph.errors + more), torch.inf)
        for some in reversed(graph.of_step):
            least[some], picked[some] = (own[some] + least[graph.then[some]]).min(1)
        runs, total, state = [], 0.0, 0
        while state < len(graph.ways):
            run, error, state = graph.ways[state][int(picked[state])]
            runs.append(run)
            total += error
        return runs, total

    @cached_property
    def _graph(self) -> _Graph:
        end = len(self.levels)
        of_step: list[dict[_StepState, list[tuple[ComputedStep, float]]]] = [{} for _ in range(end)]
        of_step[0][_StepState(0, 0, 0, "full")] = []
        for states in of_step:
            for state, ways in states.items():
                ways += self._ways(state)
                for run, _ in ways:
                    if (then := self._after(state, run)).at < end:
                        of_step[then.at].setdefault(then, [])
        number = {state: index for index, state in enumerate(chain(*of_step))}
        followed = [
            [(run, error, number.get(self._after(state, run), len(number))) for run, error in ways]
            for states in of_step
            for state, ways in states.items()
        ]
        return _Graph.of(followed, [len(states) for states in of_step], self.rows)

    def _ways(self, state: _StepState) -> Iterator[tuple[ComputedStep, float]]:
        """Each way to have a step, and the error of what is reused in it and in those that continue from it."""
        at, gap, age, last = state
        guidances: list[tuple[Guidance, float]] = [("full", 0.0)]
        if self.differences is not None:
            guidances.append(("off", self._guided[0][at]))
            if age:
                guidances.append(("reuse", self._guided[age][at]))
        before = 0.0  # wrong in the computed step before, as its difference was then of another age
        if last != "full":
            before = self._guided[0 if last == "off" else age - gap if age else _OLDEST][at - gap]
        for guidance, own in guidances:
            for reused, (wrong, new, old) in enumerate(self._continued[gap][at]):
                error = wrong + own + new * own + old * before
                # The step before is taken to err as much as this one, which is mostly in the same phase.
                counted = 1 + _ALIKE * reused + (1 - _ALIKE) * (new + old)
                yield ComputedStep(self.phase_of_step[at], guidance, reused, counted), error
