"""Signals: none is lost, the second cuts no clean-up short, the exit code is what shells expect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fpsgen.cli import errors, signals
from fpsgen.cli.output import Output
from fpsgen.cli.progress import drawn
from fpsgen.errors import RenderError, Stopped
from fpsgen.events import Step


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    hook = sys.unraisablehook
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    sys.unraisablehook = hook
    signals._came.clear()
    signals.hold(None)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_each_signal_stops_the_work_with_128_and_its_number(name: str, code: int) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        signal.raise_signal(getattr(signal, name))
    assert errors.explain(stopped.value) == ("stopped", None, code)
    assert errors.explain(Stopped("stopped; much is kept", hint="go on"))[2] == code


def test_a_signal_inside_of_an_exec_ends_with_its_own_code(tmp_path: Path) -> None:
    """As while a library defines dataclasses: Python, started with -m, would else end itself by SIGINT."""
    (tmp_path / "stopped.py").write_text(
        "import sys\n"
        "from fpsgen.cli import signals\n"
        "signals.listen()\n"
        "try:\n"
        "    exec('import signal; signal.raise_signal(signal.SIGTERM)')\n"
        "except KeyboardInterrupt:\n"
        "    signals.let_go()\n"
        "    sys.exit(signals.exit_code())\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run([sys.executable, "-m", "stopped"], env={**os.environ, "PYTHONPATH": paths})
    assert ended.returncode == 128 + signal.SIGTERM


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.listen()
    signal.raise_signal(signal.SIGHUP)
    signals.check()


def test_the_second_signal_lets_the_clean_up_end() -> None:
    done = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            done.append("cleaned")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done


def test_the_third_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    raised = []
    monkeypatch.setattr(signals.signal, "raise_signal", raised.append)
    signals._stop(signal.SIGINT, None)
    assert raised == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


class Destroyed:
    """Where an exception cannot leave."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_a_destructor_swallows_ends_the_work_at_its_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    with drawn(Output()) as watch:
        watch(Step(1, 2, 0.5))
        Destroyed()
        with pytest.raises(KeyboardInterrupt):
            watch(Step(2, 2, 0.5))
    assert "Exception ignored" not in capsys.readouterr().err


def test_after_a_signal_that_was_lost_the_second_counts_as_the_first() -> None:
    Destroyed()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_first_signal_that_is_held_ends_the_work_at_its_next_step_and_cuts_no_clean_up_short() -> None:
    told, done = [], []
    signals.hold(lambda: told.append("the step ends"))
    signal.raise_signal(signal.SIGTERM)
    assert told == ["the step ends"]

    def end() -> None:
        try:
            signals.check()
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("cleaned")

    with pytest.raises(KeyboardInterrupt):
        end()
    assert done
    assert signals.exit_code() == 143


def test_the_second_signal_does_not_wait_for_the_step() -> None:
    signals.hold(lambda: None)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_is_held_no_longer_than_was_said() -> None:
    signals.hold(lambda: pytest.fail("it was held"))
    signals.hold(None)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_a_signal_breaks_is_told_as_stopped() -> None:
    Destroyed()
    assert errors.explain(SystemError("initialization of _C raised unreported exception")) == ("stopped", None, 130)
    assert errors.explain(RenderError("the video is in b.mp4")) == ("the video is in b.mp4", None, 130)
