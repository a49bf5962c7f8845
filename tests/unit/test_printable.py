from __future__ import annotations

import pytest

from fpsgen.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("blocks.0.ffn", "blocks.0.ffn"),
        ("Katze 猫 é", "Katze 猫 é"),
        ("a\nerror: b", "a\\nerror: b"),
        ("\x1b[31mred\x9b", "\\x1b[31mred\\x9b"),
        ("left\u202eright\u2028", "left\\u202eright\\u2028"),
        ("lone \ud800", "lone \\ud800"),
        (ValueError("a\rb"), "a\\rb"),
    ],
)
def test_what_a_terminal_would_obey_is_written_as_its_escape(text: object, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("most", [9, 10, 200])
def test_a_long_name_keeps_its_two_ends(most: int) -> None:
    shown = printable("a" * 10**6 + "z", most)
    assert len(shown) == most
    assert shown[0] == "a"
    assert shown[-1] == "z"
    assert "…" in shown
