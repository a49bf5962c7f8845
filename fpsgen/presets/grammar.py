"""The keys of a preset's file: for each the values that it may have, and what to write instead of another one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

from fpsgen.attention.plan import PVPrecision, QKPrecision, Rest
from fpsgen.errors import UsageError
from fpsgen.presets import DENSE_HEAD, Measured
from fpsgen.wan import sizes
from fpsgen.wan.plan import Compute, Guidance, LinearPrecision, Linears

FORMAT = 1
FAMILIES = ("1.3b", "14b", "2.2-14b", "5b", "pocket")
_MOST_LAYERS = 1000
_ROUNDING = 1e-6
LINEAR = (*get_args(LinearPrecision), "bf16")  # of linear layers; the last one is what older files call the first
INTERVALS = ("error_ci95", "psnr_ci95")  # which one clip does not have


def _is_line(value: Any, most: int = 500) -> bool:
    return isinstance(value, str) and len(value) <= most and value.isprintable()


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # hence no nan


def _is_share(value: Any) -> bool:
    return _is_number(value, 0, 1) and value > 0


def _is_sigma(value: Any) -> bool:
    levels = isinstance(value, list) and len(value) == 2 and all(_is_number(level, 0, 1) for level in value)
    return levels and value[1] <= value[0] - 2 * _ROUNDING


def is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(n) is int and 0 < n < 2**15 for n in value)


def _is_window(value: Any) -> bool:
    return value == "dense" or is_shape(value)


def is_letter(value: Any) -> bool:
    return is_shape(value) or _is_table(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_table, value))


def _is_size(value: Any) -> bool:
    try:
        sizes.check_model_size(*sizes.parse_resolution(value if re.match(r"\d+x", value) else ""))
    except (UsageError, TypeError):
        return False
    return True


def _is_linear(value: Any) -> bool:
    own = value if _is_table(value) else {"ffn": value}
    names = [each.name for each in fields(Linears)]
    return bool(own) and all(key in names and each in LINEAR for key, each in own.items())


def numbers(value: Any) -> tuple[int, ...]:
    """Layers by "0-1,39", ascending; none if that is not what it says, or a layer is named twice."""
    found: set[int] = set()
    for part in value.split(",") if isinstance(value, str) else ("",):
        match = re.fullmatch(r"\s*(\d{1,4})(?:\s*-\s*(\d{1,4}))?\s*", part, re.ASCII)
        layers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not layers or layers[-1] >= _MOST_LAYERS or not found.isdisjoint(layers):
            return ()
        found.update(layers)
    return tuple(sorted(found))


# The grammar: for each key its values, as all there are or as a test, and what to write instead of another one.
Key = tuple[tuple[str, ...] | Callable[[Any], object], str]
KEYS: dict[str, Key] = {
    "format": (lambda value: type(value) is int and value == FORMAT, f"write format = {FORMAT} in the first line"),
    "model": (FAMILIES, f"write one of {', '.join(FAMILIES)}, or leave the line out: then it is for any model"),
    "about": (_is_line, "write one line of at most 500 characters"),
    "tile": (is_shape, "write tile = [3, 5, 8], tokens along T, H and W, or leave it out for the model's own"),
    "windows": (
        _is_table,
        "write a = [3, 5, 5] under [windows], tiles along T, H and W, or a = { top = 0.25 }, and use a in heads",
    ),
    "phase": (_are_tables, "write [[phase]] in double brackets, and below it sigma = [1.0, 0.0]"),
    "sigma": (_is_sigma, "let phases follow one another from 1.0, all noise, to 0.0: [1.0, 0.9], then [0.9, 0.0]"),
    "layers": (
        _are_tables,
        'write [[phase.layers]] in double brackets, and below it at = "0-1" and what these layers do',
    ),
    "at": (numbers, f'name layers from 0 to {_MOST_LAYERS - 1}, each once: at = "0-1,39"'),
    "window": (_is_window, 'write window = [3, 5, 5], tiles along T, H and W, or "dense"'),
    "density": (_is_share, "write the share of token pairs, above 0 and at most 1: density = 0.25"),
    "top": (_is_share, "write the share of key tiles, above 0 and at most 1: top = 0.25"),
    "rest": (
        get_args(Rest),
        'write "drop" or "summary" beside window, density or top, or in the letter of [windows]: '
        'a = { top = 0.25, rest = "summary" }',
    ),
    "heads": (
        lambda value: isinstance(value, str) and value,
        f"write a letter of [windows] for each head, {DENSE_HEAD} for a dense one",
    ),
    "qk": (get_args(QKPrecision), f"write one of {', '.join(get_args(QKPrecision))}"),
    "pv": (get_args(PVPrecision), f"write one of {', '.join(get_args(PVPrecision))}"),
    "smooth_k": (lambda value: isinstance(value, bool), "write true or false, or leave it out"),
    "linear": (_is_linear, 'write "16bit", "fp8" or "int8" for all, or a table: linear = { ffn = "fp8" }'),
    "guidance": (
        get_args(Guidance),
        'write "full" for both branches, "reuse" for one and the last difference, "off" for one without guidance',
    ),
    "compute": (get_args(Compute), 'write "full", or "reuse" to continue the velocities of earlier steps'),
    "measured": (_is_table, "leave [measured] out: fpsgen calibrate writes it"),
}
CHOICE = ("window", "density", "top", "heads")  # a setting has one of them
SETTING = (*CHOICE, "rest", "qk", "pv", "smooth_k", "linear")
STEP = ("guidance", "compute")  # of a whole phase
HEAD = ("format", "model", "about", "tile", "windows", "phase", "measured")
_KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: _is_line(value, 200),
    "int": lambda value: type(value) is int and abs(value) < 1e9,
    "float": lambda value: _is_number(value, -1e9, 1e9),
}
MEASURED = {own.name: (_KINDS[str(own.type).removesuffix(" | None")], "") for own in fields(Measured)}
MEASURED["size"] = (_is_size, "")
