"""docs/cli.md is what the helps say."""

from __future__ import annotations

import pytest

from tests.tools import cli_page


def test_the_page_is_that_of_the_helps() -> None:
    made, kept = cli_page.page(), cli_page.PAGE.read_text(encoding="utf-8")
    assert made == kept, "python -m tests.tools.cli_page makes the page anew"


def test_the_page_is_the_same_on_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    once = cli_page.page()
    for name, value in {"COLUMNS": "40", "TERM": "xterm-256color", "FORCE_COLOR": "1", "FPSGEN_MODEL": "14b"}.items():
        monkeypatch.setenv(name, value)
    assert cli_page.page() == once
