"""What `fpsgen bench` says on a terminal."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from fpsgen.cli.bench import remark
from fpsgen.cli.tables import Fitted
from fpsgen.report import words
from fpsgen.report.compare import of_steps, of_time
from tests.tools import bench_records
from tests.tools.reports import read


@pytest.mark.parametrize(
    ("ratios", "told"),
    [
        ((1.9, 1.96), "1.93 (1.90, 1.96)"),
        ((0.7,), "0.70"),
        ((1.02, 0.965), "too close to call (0.99; 0.96, 1.02)"),
        ((0.97,), "too close to call (0.97)"),
    ],
)
def test_a_speed_up_that_may_be_none_is_not_claimed(ratios: tuple[float, ...], told: str) -> None:
    """As the page has it, which tests/unit/report holds to more cases."""
    record = bench_records.compare(passes=len(ratios))
    record["contenders"][0]["speedup"]["total"] = {"median": float(np.median(ratios)), "each": list(ratios)}
    file = io.StringIO()
    Console(file=file, width=200).print(Fitted(of_time(read(record))))
    row = next(line for line in file.getvalue().splitlines() if line.startswith("speed-up "))
    assert told in row
    assert ("too close" in row) == ("too close" in told)


def test_every_phase_of_every_contender_has_its_seconds_of_a_step_and_its_density() -> None:
    record = bench_records.compare("quality", "bf16")
    table = of_steps(read(record))
    heads = [column.head for column in table.columns]
    rows = [dict(zip(heads, row, strict=True)) for row in table.rows]
    phases = [(one["label"], phase) for one in record["contenders"] for phase in one["phases"]]
    for row, (label, phase) in zip(rows, phases, strict=True):
        assert row[""].text.startswith(f"{label}, step")
        assert row["seconds a step"].text == words.precise(phase["step"])
        assert row["density"].text == f"{phase['density']:.2f}"
        assert row["attention"].notes == (f"{words.precise(phase['split']['attention'])} s",)


@pytest.mark.parametrize(
    ("ratios", "told"),
    [((0.84, 0.98), "only 2 pairs"), ((0.97,), "only 1 pair of runs"), ((1.02, 0.97), None), ((1.9, 1.96), None)],
)
def test_few_pairs_on_one_side_of_1_are_said_to_be_too_few(ratios: tuple[float, ...], told: str | None) -> None:
    record = bench_records.compare("quality", "bf16", passes=len(ratios))
    for name in ("total", "denoise"):
        record["contenders"][0]["speedup"][name] = {"median": float(np.median(ratios)), "each": list(ratios)}
    found = remark(read(record))
    assert (found is None) == (told is None)
    assert (told or "") in (found or "")
    assert found is None or "--pairs 5 tells more" in found
