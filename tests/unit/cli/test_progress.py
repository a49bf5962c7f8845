"""One drawer for the events of every command: what a log keeps of them, and what a terminal shows."""

from __future__ import annotations

import re

import pytest

from fpsgen.cli.output import Output
from fpsgen.cli.progress import drawn
from fpsgen.events import Branches, Done, Event, Notice, Run, Stage, Step, TrainingStep, Work


def log(capsys: pytest.CaptureFixture[str], *events: Event, verbose: bool = False, details: bool = False) -> list[str]:
    """The lines that a log gets."""
    with drawn(Output(verbose=verbose), details) as watch:
        for event in events:
            watch(event)
    return capsys.readouterr().err.splitlines()


def numbers(line: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+(?:\.\d+)?", line)]


def test_a_log_has_a_line_for_every_tenth_of_the_steps_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    lines = log(capsys, Stage("denoise"), *(Step(done, 50, 3.0) for done in range(1, 51)))
    assert [numbers(line)[0] for line in lines] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    assert numbers(lines[0])[1:] == [50, 3, 2]  # of 50, 3 s each, 2 min left
    assert numbers(lines[-2])[-1] == 15


def test_a_log_of_training_says_the_loss_and_the_speed(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [TrainingStep(done, 20, 2.0, done / 8, 1000, skipped=False) for done in (1, 2, 3, 4)]
    lines = log(capsys, Stage("train"), *steps)
    assert [numbers(line) for line in lines[-2:]] == [[2, 20, 0.25, 500, 36], [4, 20, 0.5, 500, 32]]


def test_each_stage_counts_its_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Step(1, 2, 1.0), Step(2, 2, 1.0)]
    assert len(log(capsys, Stage("denoise"), *steps, Stage("denoise"), *steps)) == 4


def test_of_several_runs_a_log_has_their_titles_alone(capsys: pytest.CaptureFixture[str]) -> None:
    lines = log(capsys, Run("bf16, cold", 1, 2), Stage("denoise"), Step(1, 1, 1.0), Run("fast, cold", 2, 2))
    assert [numbers(line)[:2] for line in lines] == [[1, 2], [2, 2]]
    assert "bf16, cold" in lines[0]
    assert log(capsys, Run("a cat", 1, 1)) == []


def test_of_several_long_runs_a_log_says_how_far_each_is(capsys: pytest.CaptureFixture[str]) -> None:
    lines = log(capsys, Run("a cat", 1, 2), Stage("denoise"), *(Step(done, 20, 30.0) for done in (1, 2, 3, 4)))
    assert [numbers(line)[0] for line in lines[-2:]] == [2, 4]


def test_work_that_was_found_tells_nothing_of_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with drawn(Output(), log_details=True) as watch:
        watch(Work(100))
        watch(Stage("measure"))
        watch(Done(50))  # at once
        now = 40.0
        watch(Done(10))  # 4 s each; 40 of them are left
        watch(Work(200))
        watch(Done(40))
        now = 200.0
        watch(Done(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "measure"
    assert [numbers(line) for line in lines[1:]] == [[50, 0], [60, 3]]
    assert len(lines) == 3  # neither 50 % again, though there is more to do now, nor the end


def test_notices_reach_who_should_read_them(capsys: pytest.CaptureFixture[str]) -> None:
    told, detail = Notice("read this"), Notice("or this", detail=True)
    assert log(capsys, told, detail, Branches(True)) == ["note: read this"]
    assert len(log(capsys, told, detail, Branches(True), verbose=True)) == 3
    assert log(capsys, told, detail, details=True) == ["note: read this", "or this"]  # a log of hours of work


@pytest.mark.parametrize("seconds", [5, 40, 600])
def test_time_left_is_known_however_slow_the_steps(seconds: int) -> None:
    now = 0.0
    with drawn(Output()) as watch:
        watch._bar.get_time = lambda: now
        watch(Stage("denoise"))
        for step in range(3):
            now += seconds
            watch(Step(step + 1, 50, seconds))
        (task,) = watch._bar.tasks
        assert task.time_remaining == pytest.approx(47 * seconds, rel=0.5)  # of few samples
