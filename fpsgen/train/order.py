"""Which samples a training step takes: every sample once per round, in another order each round."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def batch_of(count: int, size: int, seed: int, step: int) -> list[int]:
    """The numbers of the `size` samples, of `count`, that a step takes, counted from 0; a batch may end one round and
    begin the next. They follow from the arguments alone."""
    places = (divmod(place, count) for place in range(step * size, (step + 1) * size))
    return [int(_order(count, seed, number)[place]) for number, place in places]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, number]).permutation(count)
