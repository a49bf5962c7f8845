"""What the bench of attention does around its measurements, without a card: time, the record, tables."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fpsgen import machine
from fpsgen.attention.tiles import TileGrid
from fpsgen.bench import roofline
from fpsgen.bench.attention import run
from fpsgen.bench.attention.contenders import Trial
from fpsgen.bench.attention.record import AttentionRecord
from fpsgen.bench.attention.run import rounds
from fpsgen.bench.attention.shapes import Shape
from fpsgen.report import attention as report
from fpsgen.values import from_dict
from tests.tools.attention import CARD, Silent, derived, fake, line, made_up

CPU = torch.device("cpu")

# ---- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "end", "share", "expected", "why"),
    [
        (1.0, 100, 50, 20, None),
        (10.0, 100, 45, 4, "share"),  # a fifth would end after it
        (10.0, 100, 15, 3, "share"),  # three at least,
        (10.0, 25, 15, 2, "budget"),  # while there is time at all
        (10.0, 0, 0, 0, "budget"),
    ],
)
def test_rounds_end_in_time(seconds: float, end: float, share: float, expected: int, why: str | None) -> None:
    """At least three rounds until the end, and more until the shape's share of the time is spent."""
    done: list[float] = []
    told = rounds(lambda: done.append(seconds), 20, 100 + share, 100 + end, lambda: 100 + sum(done))
    assert len(done) == expected
    assert told is None if why is None else why in (told or "")


# ---- the record, and what is made of it -----------------------------------------------------------------------------


def test_what_follows_from_the_samples() -> None:
    cudnn, _, _, prologue, kernel, together, flex = derived(made_up()).cases[0].lines
    assert (cudnn.median_ms, cudnn.min_ms) == (200.0, 199.0)
    assert cudnn.tflops == pytest.approx(585.3, rel=1e-3)
    assert kernel.tflops == pytest.approx(1463, rel=1e-3)
    assert kernel.datasheet_share == pytest.approx(1463 / 1979, rel=1e-3)
    peak = 8192 * 132 * 1.98e9
    assert (kernel.share, kernel.bound) == (pytest.approx(1.1705e13 / peak / 8e-3, rel=1e-3), "tensor cores")
    assert kernel.intensity == pytest.approx(1.1705e13 / 2e9, rel=1e-3)
    assert together.intensity == pytest.approx(1.1705e13 / 5e9, rel=1e-3)
    assert (prologue.share, prologue.bound) == (0.5, "memory")  # 3 GB at 3 TB/s is 1 ms
    assert (prologue.tflops, prologue.intensity, prologue.speedup) == (None, None, None)
    assert together.roofline_ms == pytest.approx(1 + (kernel.roofline_ms or 0))
    assert kernel.speedup == {"sdpa-cudnn": {"alone": 25.0, "prepared": 26.25}}
    assert together.speedup == {"sdpa-cudnn": {"alone": 20.0, "prepared": 21.0}}
    assert flex.median_ms is None
    assert roofline.has_datasheet(CARD)
    assert not roofline.has_datasheet(replace(CARD, multiprocessors=114))  # a PCIe card


def test_json_has_what_there_is_and_can_be_read_again() -> None:
    record = derived(made_up())
    told = json.loads(json.dumps(record.as_json()))
    assert next(iter(told)) == "kind"  # by which a later bench knows that it may replace the file
    assert told["cases"][0]["lines"][0]["window"] is None  # all tiles
    assert told["cut"] is None
    assert not {"speedup", "fault", "variant"} & set(told["cases"][0]["lines"][0])
    again = from_dict(AttentionRecord, told)
    assert json.loads(json.dumps(again.as_json())) == told
    assert report.tables(again.cases[0]) == report.tables(record.cases[0])


def test_the_tables() -> None:
    [case] = derived(made_up()).cases
    assert all(told in report.heading(case) for told in ("14b 720p", "75600 tokens", "21x45x80", "630", "3x5x8"))
    rows = [[str(cell) for cell in row] for table in report.tables(case) for row in table.rows]
    for cells in (
        ["sdpa-cudnn", "200", "199", "585", "55 %", "tensor cores", "0.40 %"],
        ["sdpa-math", "not run", "", "", "", "", ""],
        ["fp8-fp16", "0.1", "window 7x3x3", "8", "8", "1463", "68 %", "tensor cores", "74 %"],
        ["fp8-fp16", "0.1", "2 (50 %)", "10 (65 %)", "0.10 %", "5.50 %"],
        ["fp8-fp16", "0.1", "25.00 / 20.00 / 21.00"],
    ):
        assert cells in rows, cells
    remarks = report.remarks(case)
    assert remarks[:3] == ["sdpa-math: left out", "flex at density 0.1: FAULT: it broke", "no time"]
    assert [one for one in remarks if "1980.0 MHz" in one] == remarks[3:]


def test_the_tables_of_a_card_without_hopper() -> None:
    """No line of ours, and no clock."""
    record = made_up()
    lines = (
        record.cases[0].lines[0],
        line("prologue", name="fp8-fp16", variant="fp8-fp16", why_not="it is for Hopper"),
    )
    [case] = derived(replace(record, cases=(replace(record.cases[0], lines=lines, before=None, after=None),))).cases
    [table] = report.tables(case)
    assert [str(row[0]) for row in table.rows] == ["sdpa-cudnn"]
    assert "fp8-fp16: it is for Hopper" in report.remarks(case)


# ---- a run ----------------------------------------------------------------------------------------------------------


def measurer(path: Path, *sizes: str, end: float = 60, watch: Silent | None = None, **job: Any) -> run.Measurer:
    """Of tiny shapes, called by `sizes`, for so many seconds."""
    shapes = tuple(Shape("tiny", res, TileGrid((5, 6, 7), (2, 2, 3)), 3) for res in sizes)
    empty = replace(made_up(), cases=())
    return run.Measurer(run.AttentionJob(shapes, **job), CPU, path, watch or Silent(), empty, time.monotonic() + end)


def test_a_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written after each shape; one that fails says where, and the next one runs."""
    path, seen = tmp_path / "found.json", []

    def contenders(what: Shape) -> list[Trial]:
        seen.append(json.loads(path.read_text())["cases"] if seen else None)
        if what.res == "bad":
            raise MemoryError("no more")
        return [Trial(line("sdpa", name="a", density=1.0), lambda: 0), Trial(line("sdpa", name="b"), lambda: 1)]

    fake(monkeypatch, contenders)
    silent = Silent()
    made = measurer(path, "good", "bad", "last", watch=silent, repeats=4)
    made.run()
    good, bad, last = json.loads(path.read_text())["cases"]
    assert seen[1:] == [[good], [good, bad]]
    assert [one["samples_ms"] for one in good["lines"]] == [[1.0] * 4, [2.0] * 4]
    assert bad["fault"] == "MemoryError while making the inputs: no more"
    assert not {"doing"} & {*good, *bad, *last}
    assert [case.failed for case in made.record.cases] == [False, True, False]
    assert not replace(made.record.cases[0], cut="the budget", rounds=3).failed
    assert replace(made.record.cases[0], cut="the budget", rounds=2).failed
    assert [one.name for one in tmp_path.iterdir()] == ["found.json"]
    assert {"tiny good", "checking a", "tiny good: checking a: runs"} <= set(silent.heard)
    assert silent.rounds == [(done, 4) for done in (0, 1, 2, 3, 4)] * 2


def test_each_shape_has_an_equal_share_of_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one does not use falls to the others."""
    shares: list[float] = []
    made = measurer(tmp_path / "found.json", "first", "second", end=100 + run.RESERVE)
    monkeypatch.setattr(made, "fill", lambda shape, share: shares.append(share - time.monotonic()))
    made.run()
    assert shares == pytest.approx([50, 100], abs=2)  # seconds; both calls are within the same two


def test_a_card_that_does_nothing_any_more_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows would fail, too, and seem to be at fault."""
    alive = True

    def broken() -> dict:
        nonlocal alive
        alive = False
        raise RuntimeError("an illegal address")

    def contenders(what: Shape) -> list[Trial]:
        return [Trial(line("sdpa", name="a", density=1.0), lambda: 0), Trial(line(name="b"), check=broken)]

    fake(monkeypatch, contenders)
    monkeypatch.setattr(machine, "is_alive", lambda device: alive)
    measurer(tmp_path / "found.json", "first", "second").run()
    found = json.loads((tmp_path / "found.json").read_text())
    (case,) = found["cases"]
    assert case["fault"] == "RuntimeError while checking b: b ended it: RuntimeError: an illegal address"
    assert "nothing runs on the GPU any more" in found["cut"]


def test_time_that_is_up_leaves_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However stuck the process is: the file says what it was doing."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    path = tmp_path / "found.json"
    silent = Silent()
    made = measurer(path, watch=silent)
    made.record = replace(made.record, cases=(replace(made_up().cases[0], doing="checking fp8-fp16, kernel 1/4"),))
    made.leave()
    found = json.loads(path.read_text())
    assert codes == [1]
    assert (found["cut"], found["cases"][0]["doing"]) == ("the budget of seconds was spent", made.case.doing)
    [heard] = silent.heard
    assert "checking fp8-fp16, kernel 1/4" in heard
    assert str(path) in heard


def test_a_kernel_that_hangs_is_left_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: left.set())
    fake(monkeypatch, lambda _: [Trial(line(), lambda: left.wait(10))])
    path, job = tmp_path / "found.json", measurer(tmp_path / "found.json", "only", seconds=0.5).job
    record = run.measure(job, CPU, path, ["fpsgen"], Silent())
    assert left.is_set()
    assert record.cases[0].lines[0].name == "kernel"


def test_every_key_of_the_record_is_documented() -> None:
    """docs/bench.md names them, in the section of this record or in that of all records."""
    text = (Path(__file__).parents[3] / "docs" / "bench.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    own = [part for part in parts if part.startswith(("All of them", "`fpsgen bench attention`: the record"))]
    named = set(re.findall(r"`([^`]+)`", "".join(own)))
    assert len(own) == 2
    every = keys(derived(made_up()).as_json()) | {"doing", "fault"}  # which only a record has that was cut short
    assert every <= named, every - named


def keys(value: object) -> set[str]:
    """All of a record, of objects inside of objects, too; but speedup's, which are names of contenders."""
    if isinstance(value, dict):
        inside = (keys(list(own.values()) if name == "speedup" else own) for name, own in value.items())
        return set(value).union(*inside)
    return set().union(*map(keys, value)) if isinstance(value, list | tuple) else set()
