"""What runs on a card, as far as none is needed: order and limits of the steps, rules of sums, the page."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import tables
from benchmarks.card import __main__ as card
from benchmarks.card import rules, steps, sums
from benchmarks.card.ablations import ABLATIONS
from benchmarks.card.page import document
from benchmarks.card.pipes import PIPES
from benchmarks.card.steps import LOG, RECORD, Step, plan, run_all
from benchmarks.record import RESULTS
from tests.tools import bench_records


def python(name: str, code: str, limit: float = 60.0, tool: str | None = None) -> Step:
    return Step(name, "", limit, (sys.executable, "-c", code), tool)


def recorded(folder: Path) -> list[dict]:
    return json.loads((folder / RECORD).read_text())["steps"]


def test_whatever_a_step_does_the_next_one_runs(tmp_path: Path) -> None:
    some = [
        python("works", "print('well')"),
        python("fails", "import sys; print('badly'); sys.exit(3)"),
        python("crashes", "import os; print('on', flush=True); os.kill(os.getpid(), 11)"),
        python("absent", "", tool="a-tool-that-nobody-has"),
        python("last", "print('end')"),
    ]
    run_all(some, tmp_path, 60, {"kind": "card"}, lambda _: None)
    found = recorded(tmp_path)
    outcomes = ["done", "failed", "failed", "a-tool-that-nobody-has is not installed", "done"]
    assert [one["outcome"] for one in found] == outcomes
    assert [one.get("code") for one in found] == [0, 3, -11, None, 0]
    assert [one.get("tail", "").strip() for one in found] == ["well", "badly", "on", "", "end"]
    assert (tmp_path / LOG).read_text().count("====") == 4  # what was said, whole


@pytest.mark.parametrize("stubborn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, stubborn: bool) -> None:
    left = tmp_path / "left"
    code = "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); " if stubborn else ""
    grow = f"import time\nwhile True: open({str(left)!r}, 'a').write('.'); time.sleep(0.05)"
    code += f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {grow!r}]); "
    code += "print('so far', flush=True); time.sleep(60)"
    run_all([python("hangs", code, limit=3), python("next", "")], tmp_path, 60, {}, lambda _: None)
    hung, following = recorded(tmp_path)
    assert (hung["outcome"], following["outcome"]) == ("out of time", "done")
    assert "so far" in hung["tail"]
    grown = left.stat().st_size
    time.sleep(0.5)
    assert left.stat().st_size == grown


def test_a_step_runs_this_tree_and_finds_what_its_caller_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "carried.py").write_text("where = 'beside'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run_all([python("look", "import carried, fpsgen; print(carried.where, fpsgen.__file__)")], tmp_path, 60, {}, print)
    assert recorded(tmp_path)[0]["tail"].split() == ["beside", str(Path(steps.ROOT, "fpsgen", "__init__.py"))]


def test_each_step_is_on_disk_before_the_next_one_begins(tmp_path: Path) -> None:
    look = f"import json; print([one['outcome'] for one in json.load(open({str(tmp_path / RECORD)!r}))['steps']])"
    run_all([python("one", ""), python("two", look)], tmp_path, 60, {}, lambda _: None)
    assert recorded(tmp_path)[1]["tail"].strip() == "['done', 'running']"


def test_no_step_begins_when_the_seconds_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LEAST", 1.0)
    run_all([python("long", "import time; time.sleep(30)"), python("late", "")], tmp_path, 2, {}, lambda _: None)
    assert [one["outcome"] for one in recorded(tmp_path)] == ["out of time", "no time left"]


def test_dry_run_shows_every_step_in_its_order_and_needs_no_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert card.main(["--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == [step.name for step in plan(Path())]
    assert card.main(["--dry-run", "--steps", "sizes,pipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[::2]] == ["pipes", "sizes"]


def test_a_card_is_looked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for says, expected in ((None, "finds none"), ("exit 9", "finds none"), ("echo NVIDIA T4, 7.5", "T4")):
        if says:
            tool = tmp_path / "nvidia-smi"
            tool.write_text(f"#!/bin/sh\n{says}\n")
            tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert card.main(["--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr()
        assert expected in told.err
        assert told.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_leaves_a_record_of_where_it_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H100 80GB HBM3, 9.0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    some = [python("good", ""), python("absent", "", tool="a-tool-that-nobody-has"), python("bad", "import nothing")]
    for count, code in ((2, 0), (3, 1)):
        monkeypatch.setattr(card, "plan", lambda _, count=count: tuple(some[:count]))
        assert card.main(["--out", str(tmp_path / "out")]) == code
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["kind"] == "card"
    assert record.keys() >= {"date", "commit", "machine", "seconds"}
    assert "ModuleNotFoundError" in document(tmp_path / "out")


def test_a_step_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        card.main(["--steps", "sums,nonsense"])
    assert ended.value.code == 2
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["nan", "inf", "-5", "0", "1", "x"])
def test_seconds_in_which_nothing_could_run(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        card.main(["--dry-run", f"--seconds={seconds}"])
    assert ended.value.code == 2
    assert "--seconds" in capsys.readouterr().err


def test_a_folder_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(SystemExit) as ended:
            card.main(["--dry-run", "--out", str(tmp_path / place)])
        assert ended.value.code == 2
        assert "file" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whoever_ends_a_run_ends_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A step has a group of its own: on a card it would go on, without a limit."""
    left = tmp_path / "left"
    for name, says in (
        ("nvidia-smi", "echo NVIDIA H100 80GB HBM3, 9.0"),
        ("ncu", f"while sleep 0.05; do echo >> {shlex.quote(str(left))}; done"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command = [sys.executable, "-m", "benchmarks.card", "--steps", "counters", "--out", str(tmp_path)]
    run = subprocess.Popen(command, cwd=steps.ROOT, stderr=subprocess.PIPE)
    while not left.exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode
    grown = left.stat().st_size
    time.sleep(0.5)
    assert left.stat().st_size == grown
    assert [one["outcome"] for one in recorded(tmp_path)] == ["running"]


@pytest.mark.parametrize(
    "step", [step for step in plan(Path()) if "pytest" in step.command], ids=lambda step: step.name
)
def test_chosen_tests_exist(step: Step) -> None:
    found = subprocess.run([*step.command, "--collect-only", "-q"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout  # 5 where none is chosen


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in sums.ACCUMULATORS for name in rules.rules(kind)])
def test_results_by_a_rule_are_said_to_obey_it_alone(kind: str, name: str) -> None:
    """All operands' patterns are needed for that, and an accumulator."""
    pairs = [sums.operands(block, kind) for block in range(4)]
    a, b = (torch.stack(x)[..., :32] for x in zip(*pairs, strict=True))
    c = sums.accumulators(kind, 1)
    rule = rules.rules(kind)[name]
    made = torch.stack([rule(*(x.float() for x in (c[i], a[i], b[i].T))) for i in range(4)])
    shares = rules.equal_shares(kind, a, b, c, made.to(sums.ACCUMULATORS[kind]))
    assert shares.pop(name) == 1
    assert max(shares.values()) < 0.99


def left_by_a_card(folder: Path) -> None:
    """Made up, in the form of what the steps write."""
    ran = [
        {"name": "versions", "outcome": "done", "took_s": 3.2, "tail": "{}\n"},
        {"name": "sizes", "outcome": "no time left"},
    ]
    folder.mkdir()
    (folder / RECORD).write_text(json.dumps({"kind": "card", "date": "2030-01-01", "commit": "0" * 40, "steps": ran}))
    (folder / "sums.json").write_text(json.dumps({"shares": {"f32, zero": dict.fromkeys(rules.rules("f32"), 0.125)}}))
    clocks = {what: {pipe.name: 2.5 for pipe in PIPES if what in pipe.entries} for what in ("intervals", "latencies")}
    (folder / "pipes.json").write_text(json.dumps({"device": "A card", "versions": {}, **clocks}))
    rows = [{"name": one.name, "variant": "fp8-fp16", "fault": None, "median_ms": 4.0} for one in ABLATIONS[:2]]
    rows.append({"name": "another", "variant": "fp8-fp16", "fault": "does not compile", "median_ms": None})
    (folder / "attention.json").write_text(json.dumps(bench_records.attention()))
    (folder / "ablations.json").write_text(json.dumps({"shape": ["14b", "720p"], "density": "1/6", "rows": rows}))


def test_tables_make_a_page_of_what_a_card_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "PAGES", [])
    tables.main()
    assert not list(tmp_path.iterdir())  # without results there is no page
    left_by_a_card(tmp_path / "card")
    tables.main()
    text = (tmp_path / "card" / "README.md").read_text()
    for part in (
        "no time left",
        "12.5000%",
        "| QGMMA.64x128x32.F16.SS | 2.5 | 2.5 |",
        "4.00 ms | 1.000",
        "does not compile",
    ):
        assert part in text
    for record in RESULTS.glob(f"*/{RECORD}"):
        assert (record.parent / "README.md").read_text(encoding="utf-8") == document(record.parent)
    assert bench_records.attention()["card"]["gpu"] in tables.attention()
    (tmp_path / "card" / "pipes.json").unlink()
    assert "QGMMA" not in document(tmp_path / "card")
