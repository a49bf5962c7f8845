"""What the bench of attention does around its measurements, without a card: time, the record, tables."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fpsgen import machine
from fpsgen.attention.tiles import TileGrid
from fpsgen.bench.attention import report, run
from fpsgen.bench.attention.contenders import Contender
from fpsgen.bench.attention.shapes import Deadline, Shape, rounds
from tests.tools.attention import CARD, Silent, fake, line, made_up

# ---- time -----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now += seconds

        return work


def test_rounds_end_in_time() -> None:
    for seconds, of_total, of_own, expected in [
        (1.0, 100, 50, (20, None)),
        (10.0, 100, 45, (4, "this shape's share of the budget was spent")),  # a fifth would end after it
        (10.0, 100, 15, (3, "this shape's share of the budget was spent")),  # three at least,
        (10.0, 25, 15, (2, "the budget of seconds was spent")),  # while there is time at all
        (10.0, 0, 0, (0, "the budget of seconds was spent")),
    ]:
        clock = Clock()
        work = clock.spend(seconds)
        assert rounds(work, 20, 3, Deadline(of_total, clock), Deadline(of_own, clock)) == expected


def test_what_a_share_leaves_falls_to_the_others() -> None:
    clock = Clock()
    total = Deadline(100, clock)
    assert total.share(4).left == 25
    clock.spend(10)()
    assert total.share(3).left == 30
    assert Deadline(-5, clock).share(2).left < 0


# ---- the record, and what is made of it -----------------------------------------------------------------------------


def test_what_follows_from_the_samples() -> None:
    made = made_up()
    lines = made["cases"][0]["lines"]
    report.derive(lines, CARD)
    cudnn, _, _, prologue, kernel, together, flex = lines
    assert (cudnn["median_ms"], cudnn["min_ms"]) == (200.0, 199.0)
    assert cudnn["tflops"] == pytest.approx(585.3, rel=1e-3)
    assert kernel["tflops"] == pytest.approx(1463, rel=1e-3)
    assert kernel["datasheet_share"] == pytest.approx(1463 / 1979, rel=1e-3)
    peak = 8192 * 132 * 1.98e9
    assert (kernel["share"], kernel["bound"]) == (pytest.approx(1.1705e13 / peak / 8e-3, rel=1e-3), "tensor cores")
    assert kernel["intensity"] == pytest.approx(1.1705e13 / 2e9, rel=1e-3)
    assert together["intensity"] == pytest.approx(1.1705e13 / 5e9, rel=1e-3)
    assert (prologue["share"], prologue["bound"]) == (0.5, "memory")  # 3 GB at 3 TB/s is 1 ms
    assert not {"tflops", "intensity"} & set(prologue)
    assert together["roofline_ms"] == pytest.approx(1 + kernel["roofline_ms"])
    assert kernel["speedup"] == {"sdpa-cudnn": {"alone": 25.0, "prepared": 26.25}}
    assert together["speedup"] == {"sdpa-cudnn": {"alone": 20.0, "prepared": 21.0}}
    assert "median_ms" not in flex
    assert not report.of_datasheet({**CARD, "multiprocessors": 114})  # a PCIe card


def test_the_page() -> None:
    made = made_up()
    report.derive(made["cases"][0]["lines"], CARD)
    text = report.document(json.loads(json.dumps(made)))  # of what was written, too
    for told in (
        "# Attention on one NVIDIA H100 made up",
        "## 14b 720p: 75600 tokens (21x45x80 in 630 tiles of 3x5x8), 40 heads of 128",
        "| sdpa-cudnn | 200 | 199 | 585 | 55 % | tensor cores | 0.40 % |",
        "| sdpa-math | not run |",
        "- sdpa-math: left out",
        "- flex at density 0.1: FAULT: it broke",
        "- no time",
        "- before: SM clock 1980.0 MHz, 120.5 W, 40.0 °C",
        "| fp8-fp16 | 0.1 | 7x3x3 | 8 | 8 | 1463 | 68 % | tensor cores | 74 % |",
        "| fp8-fp16 | 0.1 | 2 (50 %) | 10 (65 %) | 0.10 % | 5.50 % |",
        "| fp8-fp16 | 0.1 | 25.00 / 20.00 / 21.00 |",
    ):
        assert told in text, told
    assert max(len(one) for one in text.split("\n") if one[:1] not in ("|", "-")) <= 118


def test_the_page_of_a_card_without_hopper() -> None:
    """No line of ours, and no clock: the page says so, and nothing breaks."""
    made = made_up()
    case = made["cases"][0]
    case["lines"] = [
        case["lines"][0],
        line("prologue", name="fp8-fp16", variant="fp8-fp16", why_not="it is for Hopper"),
    ]
    case["before"] = None
    report.derive(case["lines"], CARD)
    text = report.document(made)
    assert "- fp8-fp16: it is for Hopper" in text
    assert "Times as fast as" not in text
    assert "sdpa-cudnn" in text


def test_a_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written after each shape; one that fails says where, and the next one runs."""
    seen = []

    def contenders(what: Shape) -> list[Contender]:
        seen.append(json.loads((tmp_path / "found.json").read_text())["cases"] if len(seen) else None)
        if what.res == "bad":
            raise MemoryError("no more")
        return [Contender(line("sdpa", name="a", density=1.0), lambda: 0), Contender(line("sdpa", name="b"), lambda: 1)]

    fake(monkeypatch, contenders)
    shapes = tuple(Shape("tiny", res, TileGrid((5, 6, 7), (2, 2, 3)), 3) for res in ("good", "bad", "last"))
    settings = run.Settings(shapes, repeats=4)
    made, path, watcher = {**made_up(), "cases": []}, tmp_path / "found.json", Silent()
    run.run(settings, torch.device("cpu"), Deadline(60), path, made, watcher)
    good, bad, last = json.loads(path.read_text())["cases"]
    assert seen[1:] == [[good], [good, bad]]
    assert [one["samples_ms"] for one in good["lines"]] == [[1.0] * 4, [2.0] * 4]
    assert bad["fault"] == "MemoryError while making the inputs: no more"
    assert [run.troubled(case) for case in (good, bad, last)] == [False, True, False]
    assert not run.troubled({**good, "cut": "the budget", "rounds": 3})
    assert run.troubled({**good, "cut": "the budget", "rounds": 2})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["found.json", "found.md"]
    assert "tiny good: checking a" in watcher.heard
    assert "tiny good: checking a: runs" in watcher.heard
    assert watcher.rounds == [(done, 4) for done in (1, 2, 3, 4)] * 2


def test_a_card_that_does_nothing_any_more_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows would fail, too, and seem to be at fault."""
    alive = True

    def broken() -> dict:
        nonlocal alive
        alive = False
        raise RuntimeError("an illegal address")

    def contenders(what: Shape) -> list[Contender]:
        return [Contender(line("sdpa", name="a", density=1.0), lambda: 0), Contender(line(name="b"), check=broken)]

    fake(monkeypatch, contenders)
    monkeypatch.setattr(machine, "is_alive", lambda device: alive)
    shapes = tuple(Shape("tiny", res, TileGrid((5, 6, 7), (2, 2, 3)), 3) for res in ("first", "second"))
    made = {**made_up(), "cases": []}
    run.run(run.Settings(shapes), torch.device("cpu"), Deadline(60), tmp_path / "found.json", made, Silent())
    found = json.loads((tmp_path / "found.json").read_text())
    (case,) = found["cases"]
    assert case["fault"] == "RuntimeError while checking b: b ended it: RuntimeError: an illegal address"
    assert found["cut"] == "nothing runs on the GPU any more in this process"
    assert f"It ended early: {found['cut']}." in (tmp_path / "found.md").read_text()


def test_time_that_is_up_leaves_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However stuck the process is: the file says what it was doing."""
    left = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: left.set() if code == 1 else None)
    made, watcher = {**made_up(), "cases": [{"doing": "checking C, kernel 1/4"}]}, Silent()
    run.end_at(Deadline(0.01), tmp_path / "found.json", made, watcher)
    assert left.wait(10)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["cut"], found["cases"]) == ("the budget of seconds was spent", made["cases"])
    kept = f"what was measured is in {tmp_path / 'found.json'}"
    assert watcher.heard == [f"stopped after 500 s while checking C, kernel 1/4; {kept}"]


def test_it_leaves_though_the_record_is_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, tries = threading.Event(), iter(range(3))
    monkeypatch.setattr(os, "_exit", lambda code: left.set())
    write = run.files.write_json

    def growing(path: Path, record: dict) -> None:
        if next(tries) < 2:
            raise RuntimeError("dictionary changed size during iteration")
        write(path, record)

    monkeypatch.setattr(run.files, "write_json", growing)
    run.end_at(Deadline(0.01), tmp_path / "found.json", {**made_up(), "cases": []}, Silent())
    assert left.wait(10)
    assert json.loads((tmp_path / "found.json").read_text())["cut"] == "the budget of seconds was spent"


def test_every_key_of_the_record_is_documented() -> None:
    """docs/bench.md names them, in the section of this record or in that of all records."""
    made = made_up()
    report.derive(made["cases"][0]["lines"], CARD)
    text = (Path(__file__).parents[3] / "docs" / "bench.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    own = [part for part in parts if part.startswith(("All of them", "`fpsgen bench attention`: the record"))]
    named = set(re.findall(r"`([^`]+)`", "".join(own)))
    assert len(own) == 2
    every = keys(made) | {"doing", "fault"}  # which only a record has that was cut short
    assert every <= named, every - named


def keys(value: object) -> set[str]:
    """All of a record, of objects inside of objects, too; but speedup's, which are names of contenders."""
    if isinstance(value, dict):
        inside = (keys(list(own.values()) if name == "speedup" else own) for name, own in value.items())
        return set(value).union(*inside)
    return set().union(*map(keys, value)) if isinstance(value, list | tuple) else set()
