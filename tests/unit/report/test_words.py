"""Numbers as reports say them."""

from __future__ import annotations

import math

from fpsgen.report import words

TIMES = words.TIMES


def test_numbers_are_said_at_any_size() -> None:
    said = [words.number(value) for value in (0, 0.0123, 9.999e-5, 1.234e-17, 12345.0, None, math.nan, math.inf)]
    assert said == [
        "0",
        "0.0123",
        f"1.00 {TIMES} 10⁻⁴",
        f"1.23 {TIMES} 10⁻¹⁷",
        f"1.23 {TIMES} 10⁴",
        words.DASH,
        words.DASH,
        "∞",
    ]
    assert words.number(0.0123, half=0.0004) == "0.0123 ± 0.0004"
    assert words.number(9.999e-5, half=1e-5) == f"(1.00 ± 0.10) {TIMES} 10⁻⁴"
    assert words.number(32.0, half=None) == "32.0"
    told = [words.duration(value) for value in (0.045, 42.41, 200, 12000)]
    assert told == ["45 ms", "42.4 s", "3 min 20 s", "3 h 20 min"]
