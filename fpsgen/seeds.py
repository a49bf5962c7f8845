"""Seeds of noise: what torch takes, and other tools of the field, 0 to 2^64 - 1.

On a CPU, where all noise is made, torch's generator reads the lower 32 bits: seeds 2^32 apart make the same video.
"""

from __future__ import annotations

from fpsgen.errors import UsageError, option

COUNT = 2**64


def check_seed(seed: int) -> None:
    """UsageError for one that is none."""
    if not 0 <= seed < COUNT:
        told = f"{option('seed', str(seed)[:40])}: must be 0 to {COUNT - 1}"
        raise UsageError(told, hint=f"leave {option('seed')} out, and fpsgen chooses one")


def next_seed(first: int, number: int) -> int:
    """The seed `number` clips after the first; behind the last comes 0."""
    return (first + number) % COUNT
