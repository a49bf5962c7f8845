"""What is printed, where it can be, and how long is left."""

from __future__ import annotations

import errno
import io
import os
import re
import sys

import pytest

from fpsgen.cli import output, streams
from fpsgen.cli.output import Output
from fpsgen.cli.progress import drawn
from fpsgen.events import Stage, Step


def test_letters_that_the_console_lacks_do_not_undo_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # which is guarded, too, and comes back
    for encoding in ("ascii", "latin-1", "utf-8"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        streams.guard()
        Output().result("猫-1.mp4", {})
        expected = "猫-1.mp4" if encoding == "utf-8" else "\\u732b-1.mp4"
        assert raw.getvalue().decode(encoding).strip() == expected


@pytest.mark.parametrize(("encoding", "letter"), [("ascii", b"\\u732b"), ("utf-8", "猫".encode())])
def test_a_files_name_comes_out_as_the_bytes_that_it_is(
    monkeypatch: pytest.MonkeyPatch, encoding: str, letter: bytes
) -> None:
    """So that `mpv "$(fpsgen generate …)"` finds it, whatever the locale has letters for."""
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    streams.guard()
    Output().result("猫" + b"caf\xe9-\xd0\xba.mp4".decode("ascii", "surrogateescape"), {})
    assert raw.getvalue().rstrip() == letter + b"caf\xe9-\xd0\xba.mp4"


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF])
def test_streams_that_cannot_be_written_do_not_undo_the_work(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

        def isatty(self) -> bool:
            return True

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken())
    out = streams.guard()
    Output().result("a.mp4", {})
    Output(json=True).error("no", None, 1)
    Output().note("yes")
    Output().loading()
    with drawn(Output()) as watch:
        watch(Stage("denoise"))
        watch(Step(1, 1, 0.5))
    assert isinstance(out.fault, OSError)
    assert out.fault.errno == number


def test_a_spinner_names_what_loads_and_gives_way_to_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    err, out = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    shown = Output()
    shown.loading()
    assert "loading " in err.getvalue()
    shown.loading("asking the hub")
    shown.note("it is large")
    shown.result("a.mp4", {})
    told = err.getvalue()
    assert told.index("asking the hub") < told.index("it is large") < told.rindex("asking the hub")
    assert out.getvalue() == "a.mp4\n"
    assert not output._waiting


def test_a_result_is_broken_between_words_on_a_terminal_and_what_is_copied_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    prose, path = "    as long as it takes to be broken, 猫猫猫 too", "/a folder/with blanks/in its name.mp4"
    monkeypatch.setenv("COLUMNS", "22")
    monkeypatch.setenv("TERM", "xterm")
    for stream, lines in (
        (
            Terminal(),
            [
                "    as long as it",
                "    takes to be",
                "    broken, 猫猫猫 too",
                "",
                "/a-folder/with-no-blanks",
                "end",
                path,
            ],
        ),
        (io.StringIO(), [prose, "", "/a-folder/with-no-blanks end", path]),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        Output().line(f"{prose}\n")
        Output().line("/a-folder/with-no-blanks end")
        Output().result(path, {}, copied=True)
        assert stream.getvalue().splitlines() == lines


def test_no_spinner_where_nobody_looks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Output().loading()
    monkeypatch.setattr(Output, "shows_progress", property(lambda self: not self.json))
    Output(json=True).loading()
    assert capsys.readouterr() == ("", "")


def test_words_from_outside_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    Output(verbose=True).note("a\x1b[2J\rb\nerror: c")
    assert capsys.readouterr().err == "note: a\\x1b[2J\\rb\\nerror: c\n"


def test_a_note_is_broken_between_words_on_a_terminal_and_a_hint_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hint may be a command, which is copied whole."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "30")
    drawn = io.StringIO()
    monkeypatch.setattr("sys.stderr", drawn)
    Output().error("words that take more than a line of it", "fpsgen models pull somebody/a-model", 2)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", drawn.getvalue()).splitlines()
    assert [line.rstrip() for line in lines] == [
        "error: words that take more",
        "than a line of it",
        "hint:  fpsgen models pull somebody/a-model",
    ]
