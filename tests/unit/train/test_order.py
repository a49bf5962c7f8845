"""The samples of a step: every one once per round, in another order each round."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fpsgen.train.order import batch_of


@pytest.mark.parametrize(("count", "size"), [(10, 5), (7, 3), (3, 8), (1, 1)])
def test_every_sample_once_per_round(count: int, size: int) -> None:
    steps = count * 6
    taken = [sample for step in range(steps) for sample in batch_of(count, size, 5, step)]
    assert len(taken) == steps * size
    rounds = [taken[first : first + count] for first in range(0, len(taken), count)]
    assert all(sorted(one) == [*range(count)] for one in rounds)
    if count > 5:
        assert all(one != other for one, other in pairwise(rounds))


def test_it_depends_on_seed_and_step_alone() -> None:
    later = batch_of(100, 4, 2**63, 7)
    assert batch_of(100, 4, 1, 7) != later
    assert [batch_of(100, 4, 2**63, step) for step in range(8)][7] == later
