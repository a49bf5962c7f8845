"""What `fpsgen bench` says on a terminal."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console

from fpsgen.cli.bench_tables import of_steps, of_time, remark
from fpsgen.cli.tables import Fitted
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
    Console(file=file, width=200).print(Fitted(of_time(record)))
    row = next(line for line in file.getvalue().splitlines() if line.startswith("speed-up "))
    assert told in row
    assert ("too close" in row) == ("too close" in told)


def test_the_seconds_of_a_step_have_their_unit_and_the_density_its_own_column() -> None:
    record = bench_records.compare("quality", "bf16")
    file = io.StringIO()
    Console(file=file, width=200).print(Fitted(of_steps(record)))
    _, heads, *rows = file.getvalue().splitlines()
    preset, base = (one["label"] for one in record["contenders"])
    assert re.split(r"\s{2,}", heads.strip()) == [preset, f"density, {preset}", base]
    last, told = record["contenders"][0]["phases"][-1], [one["phases"][-1] for one in record["contenders"]]
    seconds = [f"{phase['step']:.3f} s" for phase in told]
    row = next(line for line in reversed(rows) if line.startswith("step"))
    assert re.split(r"\s{2,}", row.strip())[1:] == [seconds[0], f"{last['density']:.2f}", seconds[1]]


@pytest.mark.parametrize(
    ("ratios", "told"),
    [((0.84, 0.98), "only 2 pairs"), ((0.97,), "only 1 pair of runs"), ((1.02, 0.97), None), ((1.9, 1.96), None)],
)
def test_few_pairs_on_one_side_of_1_are_said_to_be_too_few(ratios: tuple[float, ...], told: str | None) -> None:
    record = bench_records.compare("quality", "bf16", passes=len(ratios))
    for name in ("total", "denoise"):
        record["contenders"][0]["speedup"][name] = {"median": float(np.median(ratios)), "each": list(ratios)}
    found = remark(record)
    assert (found is None) == (told is None)
    assert (told or "") in (found or "")
    assert found is None or "--pairs 5 tells more" in found
