"""Numbers, phases and times as a reader wants them; the same in pictures, pages and on a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

DASH, TIMES, _MINUS = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"  # named: they look like others
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3, half: float | None = None) -> str:
    """A number of any size in so many significant digits, with a power of ten where it is small; a dash for none.

    half: of its confidence interval, said with the number's decimals, under the same power of ten.
    """
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    if not value:
        return "0"
    exponent = _exponent(value, digits)
    plain = -2 <= exponent < 4
    scale, places = (1.0, max(0, digits - 1 - exponent)) if plain else (10.0**exponent, digits - 1)
    text = _minus(f"{value / scale:.{places}f}")
    if half is not None and math.isfinite(half):
        text = f"{text} ± {half / scale:.{places}f}" if plain else f"({text} ± {half / scale:.{places}f})"
    return text if plain else f"{text} {TIMES} 10{_power(exponent)}"


def power(value: float) -> str:
    """A label of a logarithmic axis: a power of ten, or a few times one."""
    if not value:
        return "0"
    exponent = _exponent(value, 1)
    lead = round(value / 10.0**exponent)
    return f"10{_power(exponent)}" if lead == 1 else f"{lead} {TIMES} 10{_power(exponent)}"


def decibels(value: float | None) -> str:
    """A PSNR: 32.1 dB; infinite where the videos are the same."""
    if value is None or math.isnan(value):
        return DASH
    return f"{_minus(f'{value:.1f}')} dB" if math.isfinite(value) else "∞ dB"


def percent(share: float | None, digits: int = 0) -> str:
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def asked(prompts: int, seeds: int) -> str:
    """What a bench of quality renders: 3 prompts, 2 seeds each."""
    return f"{counted(prompts, 'prompt')}, {counted(seeds, 'seed')}{' each' if prompts > 1 else ''}"


def span(steps: str) -> str:
    """Steps as a phase has them: step 3, steps 4 to 7, no step. steps: such as 4-7,9."""
    if not steps:
        return "no step"
    return f"step {steps}" if steps.isdecimal() else f"steps {steps.replace('-', DASH).replace(',', ', ')}"


def sigmas(sigma: Sequence[float]) -> str:
    """Noise levels, from the first to the last."""
    return DASH.join(f"{level:.2f}" for level in sigma)


def precise(value: float | None) -> str:
    """Seconds in three digits, for a column of them, which needs no powers of ten and no units."""
    if value is None:
        return DASH
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}" if value else "0"


def duration(value: float) -> str:
    """Seconds in a sentence: 45 ms, 1.23 s, 3 min 20 s, 3 h 20 min."""
    if value < 1:
        return f"{1e3 * value:.3g} ms"
    if value < 100:
        return f"{precise(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def ratio(value: float) -> str:
    """How many times: 12.3, 1.93, 0.52, 0.052."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def gigabytes(value: int | None) -> str:
    return DASH if value is None else f"{value / 1e9:.3g} GB"


def _exponent(value: float, digits: int) -> int:
    """The power of ten of the value as it will be rounded: 9.999 is 10.0."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def _power(exponent: int) -> str:
    return str(exponent).translate(_SUPERSCRIPT)


def _minus(text: str) -> str:
    return text.replace("-", _MINUS)
