"""What is printed, where it can be, and how long is left."""

from __future__ import annotations

import io
import sys

import pytest

from fpsgen.cli.output import Output


def test_letters_that_the_console_lacks_do_not_undo_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        Output().result("猫-1.mp4", {})
        expected = "猫-1.mp4" if encoding == "utf-8" else "\\u732b-1.mp4"
        assert raw.getvalue().decode(encoding).strip() == expected


def test_a_reader_who_left_does_not_undo_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        encoding = "utf-8"

        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    Output().result("a.mp4", {})
    Output(json=True).error("no", None)


@pytest.mark.parametrize("seconds", [5, 40, 600])
def test_time_left_is_known_however_slow_the_steps(seconds: int) -> None:
    now = 0.0
    progress = Output().progress()
    progress.get_time = lambda: now
    task = progress.add_task("denoise", total=50, rate="")
    for step in range(3):
        now += seconds
        progress.update(task, completed=step + 1)
    assert progress.tasks[0].time_remaining == pytest.approx(47 * seconds, rel=0.5)  # of few samples
