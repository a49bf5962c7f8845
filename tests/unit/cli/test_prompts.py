"""Prompts as they are typed: what holds nothing that can be seen, is no text, or looks like an option."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fpsgen.choices import check_prompts, is_blank
from fpsgen.cli.prompts import read_prompts
from fpsgen.errors import UsageError
from tests.tools.cli import invoke

BLANK = [
    "", "  \t\n", "\u200b", "\u00ad", "\ufeff", "\u2060\u200d\u200c", "\ufe0f", "\U000e0100", "\u3164", "\u115f\u1160",
    "\uffa0", "\u034f", "\u2800", "\u180e", "\u061c", "\u202e", "\x00\x07", "\x1b[31m", "\u0301", "\u2028", "\u00a0",
    "\u2065", "\U000e0041", "&nbsp;", "&amp;#8203;", "&shy;&zwnj;",
]  # fmt: skip
SEEN = ["a", "猫", "\U0001f3c4", "\u2764\ufe0f", "한", "e\u0301", "!", "5", "\U0001fae9", "\ue000", "\u200ba", "&amp;"]


@pytest.mark.parametrize("prompt", BLANK)
def test_a_prompt_in_which_nothing_can_be_seen_is_refused(prompt: str, tmp_path: Path) -> None:
    assert is_blank(prompt)
    result = invoke(prompt, "--model", "pocket", "-o", tmp_path / "a.mp4")
    assert result.exit_code == 2
    assert "the prompt is empty" in result.stderr or "that cannot be seen" in result.stderr
    assert result.stderr.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prompt", SEEN)
def test_a_prompt_of_one_sign_is_a_prompt(prompt: str) -> None:
    check_prompts(prompt, "")


def test_a_line_in_which_nothing_can_be_seen_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n# \u200b\n\u200b\u3164\na dog\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"prompts\.txt, line 4: .* cannot be seen"):
        read_prompts(file)
    file.write_text("a cat\n\n# \u200b\n\u200ba dog\n", encoding="utf-8")
    assert read_prompts(file) == ("a cat", "\u200ba dog")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_prompts_come_through_a_pipe_and_a_silent_one_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell's <(…), whose writer may be slow; nobody writes to a pipe with a name until somebody opens it."""
    monkeypatch.setattr("fpsgen.cli.prompts.PATIENCE", 2)
    reader, writer = os.pipe()
    os.write(writer, b"a cat\n")
    late = threading.Timer(0.6, lambda: (os.write(writer, b"a dog\n"), os.close(writer)))
    late.start()
    assert read_prompts(Path(f"/dev/fd/{reader}")) == ("a cat", "a dog")
    late.join()
    os.close(reader)

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr("fpsgen.cli.prompts.PATIENCE", 0.3)
    with pytest.raises(UsageError, match=r"it is a pipe, and nothing came from it in 0\.3 seconds"):
        read_prompts(pipe)
    both = os.open(pipe, os.O_RDWR)
    with pytest.raises(UsageError, match=r"nothing came from it in 0\.3 seconds"):
        read_prompts(pipe)
    os.close(both)


@pytest.mark.parametrize("texts", [("a cat \udcff", ""), ("a cat", "ugly \ud800")])
def test_bytes_that_are_no_text_are_refused(texts: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="prompt is not UTF-8 text"):
        check_prompts(*texts)


@pytest.mark.parametrize(
    "args",
    [
        ("-3 degrees in winter",),
        ("-3 degrees in winter", "--steps", "2"),
        ("--steps", "2", "-3 degrees in winter", "--negative", "-5 degrees"),
        ("--a cat-- on the sea",),
        ("-very old cat",),
        ("--", "-3"),
    ],
)
def test_a_sentence_that_begins_with_a_dash_is_a_prompt(args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | None]] = []

    def end(prompt: str, negative: str | None) -> None:
        seen.append((prompt, negative))
        raise UsageError("seen")

    monkeypatch.setattr("fpsgen.cli.prompts.check_prompts", end)
    assert "seen" in invoke(*args).stderr
    assert seen == [(next(arg for arg in args if (arg.startswith("-") and len(arg) != 2 and " " in arg) or arg == "-3"),
                     "-5 degrees" if "--negative" in args else None)]  # fmt: skip


def test_a_short_prompt_that_begins_with_a_dash_is_told_where_to_stand() -> None:
    assert 'fpsgen generate -- "-3 degrees"' in " ".join(invoke("-3").stderr.split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("a cat", "--outptu=my file.mp4"), "--outptu"),
        (("--outptu=my file.mp4",), "--outptu"),
        (("a cat", "-3 dogs"), "-3"),
        (("-3",), "-3"),
        (("-1 cat", "-2 dogs"), "-1"),
        (("a cat", "--stpes", "2"), "--stpes"),
    ],
)
def test_an_option_that_is_none_stays_one(args: tuple[str, ...], says: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "option" in result.stderr
