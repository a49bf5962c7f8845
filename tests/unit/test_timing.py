"""Where time went, by a clock that goes by hand."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from fpsgen import timing
from fpsgen.timing import STAGES, Timings


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(time, "perf_counter", own)
    return own


def test_phases_add_up_and_pauses_are_nobodys(clock: Clock) -> None:
    timings = Timings(_started=clock.now)
    with timings.stage("load"):
        clock.now += 2
    clock.now += 0.5  # between phases: the total's alone
    with timings.stage("denoise"):
        clock.now += 3
        with timings.pause():
            clock.now += 40
    with timings.pause():
        clock.now += 7
    with timings.stage("load"):
        clock.now += 1
    timings.stop()
    assert timings.seconds == dict.fromkeys(STAGES, 0.0) | {"load": 3.0, "denoise": 3.0}
    assert timings.total == 6.5


def test_a_phase_that_fails_counts(clock: Clock) -> None:
    timings = Timings(_started=clock.now)

    def decode() -> None:
        with timings.stage("decode"):
            clock.now += 2
            with timings.pause():
                clock.now += 5
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode()
    assert timings.seconds["decode"] == 2


def test_the_record_tells_the_mean_of_the_steps() -> None:
    timings = Timings()
    assert timings.as_dict()["step_mean"] is None
    timings.steps += [1.0, 2.0, 6.0]
    timings.total, timings.peak_memory = 9.12345, 7
    told = timings.as_dict()
    assert (told["step_mean"], told["steps"], told["total"]) == (3.0, [1.0, 2.0, 6.0], 9.123)
    assert told["peak_memory_bytes"] == 7
    assert set(STAGES) < set(told)


def test_a_program_s_record_begins_with_its_process() -> None:
    """It sleeps before our first line, as imports would."""
    code = """
import subprocess
import sys
import time
time.sleep(0.3)
from fpsgen import timing
timing.is_program()
found = timing.Timings.of_process()
found.stop()
print(found.seconds["load"], found.total)
"""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    whole = time.perf_counter() - begin
    load, total = map(float, done.stdout.split())
    assert 0.3 < load <= total < whole + 0.02  # the system counts in hundredths


@pytest.mark.parametrize(
    "told", ["", "1 (a) b) S", "1 (a) S" + 18 * " 0" + " 0", "1 (a) S" + 18 * " 0" + " 99999999999999"]
)
def test_where_the_system_does_not_tell_it_begins_with_the_command(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setattr(timing, "_began", None)
    monkeypatch.setattr(timing.Path, "read_text", lambda *_, **__: told)
    timing.is_program()
    assert 0 <= Timings.of_process().seconds["load"] < 1


def test_a_record_in_another_s_process_begins_when_it_is_made() -> None:
    assert Timings.of_process().seconds["load"] == 0
