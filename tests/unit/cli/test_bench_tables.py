"""What `fpsgen bench` says on a terminal."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from fpsgen.cli.bench_tables import of_time
from tests.tools import bench_records


@pytest.mark.parametrize(
    ("ratios", "told"),
    [
        ((1.9, 1.96), "1.93 (1.90 to 1.96)"),
        ((0.7,), "0.70"),
        ((1.02, 0.97), "too close to call (0.97 to 1.02)"),
        ((0.97,), "too close to call (0.97)"),
    ],
)
def test_a_speed_up_that_may_be_none_is_not_claimed(ratios: tuple[float, ...], told: str) -> None:
    """As the page has it, which tests/unit/report holds to more cases."""
    record = bench_records.compare(passes=len(ratios))
    record["contenders"][0]["speedup"]["total"] = {"median": float(np.median(ratios)), "each": list(ratios)}
    file = io.StringIO()
    Console(file=file, width=200).print(of_time(record))
    row = next(line for line in file.getvalue().splitlines() if line.startswith("speed-up "))
    assert told in row
    assert ("too close" in row) == ("too close" in told)
