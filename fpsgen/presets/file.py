"""A preset's file: read, refused with the line that is wrong, written. docs/presets.md explains all keys."""

from __future__ import annotations

import re
import reprlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from fpsgen import files
from fpsgen.attention.plan import PVPrecision, QKPrecision
from fpsgen.attention.tiles import Shape3
from fpsgen.errors import UsageError
from fpsgen.presets import DENSE_HEAD, Layers, Measured, Phase, Preset, Setting
from fpsgen.presets.lines import Lines, Names, too_many_dots
from fpsgen.printable import meant, printable
from fpsgen.wan import sizes

FORMAT = 1
FAMILIES = ("1.3b", "14b", "pocket")
_MOST_BYTES = 2**18
_MOST_DOTS = 20  # in a key: tomllib needs memory by the square of a key's dots
_MOST_PHASES = 100
_MOST_LAYERS = 1000
_ROUNDING = 1e-6
_ALL_KEYS = "all keys are in docs/presets.md"
_WHOLE_FILE = "give a preset's .toml file"
_INTERVALS = ("error_ci95", "psnr_ci95")  # which one clip does not have


def _is_line(value: Any, most: int = 500) -> bool:
    return isinstance(value, str) and len(value) <= most and value.isprintable()


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # hence no nan


def _is_density(value: Any) -> bool:
    return _is_number(value, 0, 1) and value > 0


def _is_sigma(value: Any) -> bool:
    levels = isinstance(value, list) and len(value) == 2 and all(_is_number(level, 0, 1) for level in value)
    return levels and value[1] <= value[0] - 2 * _ROUNDING


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(n) is int and 0 < n < 2**15 for n in value)


def _is_window(value: Any) -> bool:
    return value == "dense" or _is_shape(value)


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


def _numbers(value: Any) -> tuple[int, ...]:
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
_Key = tuple[tuple[str, ...] | Callable[[Any], object], str]
_KEYS: dict[str, _Key] = {
    "format": (lambda value: type(value) is int and value == FORMAT, f"write format = {FORMAT} in the first line"),
    "model": (FAMILIES, f"write one of {', '.join(FAMILIES)}, or leave the line out: then it is for any model"),
    "about": (_is_line, "write one line of at most 500 characters"),
    "tile": (_is_shape, "write tile = [3, 5, 8], tokens along T, H and W, or leave it out for the model's own"),
    "windows": (_is_table, "write a = [3, 5, 5] under [windows], tiles along T, H and W, and use a in heads"),
    "phase": (_are_tables, "write [[phase]] in double brackets, and below it sigma = [1.0, 0.0]"),
    "sigma": (_is_sigma, "let phases follow one another from 1.0, all noise, to 0.0: [1.0, 0.9], then [0.9, 0.0]"),
    "layers": (
        _are_tables,
        'write [[phase.layers]] in double brackets, and below it at = "0-1" and what these layers do',
    ),
    "at": (_numbers, f'name layers from 0 to {_MOST_LAYERS - 1}, each once: at = "0-1,39"'),
    "window": (_is_window, 'write window = [3, 5, 5], tiles along T, H and W, or "dense"'),
    "density": (_is_density, "write the share of token pairs, above 0 and at most 1: density = 0.25"),
    "heads": (
        lambda value: isinstance(value, str) and value,
        f"write a letter of [windows] for each head, {DENSE_HEAD} for a dense one",
    ),
    "qk": (get_args(QKPrecision), f"write one of {', '.join(get_args(QKPrecision))}"),
    "pv": (get_args(PVPrecision), f"write one of {', '.join(get_args(PVPrecision))}"),
    "smooth_k": (lambda value: isinstance(value, bool), "write true or false, or leave it out"),
    "linear": (("bf16",), "leave it out: linear layers run in bf16, other precisions are not built yet"),
    "measured": (_is_table, "leave [measured] out: fpsgen calibrate writes it"),
}
_CHOICE = ("window", "density", "heads")  # a setting has one of them
_SETTING = (*_CHOICE, "qk", "pv", "smooth_k")
_HEAD = ("format", "model", "about", "tile", "windows", "phase", "measured")
_KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: _is_line(value, 200),
    "int": lambda value: type(value) is int and abs(value) < 1e9,
    "float": lambda value: _is_number(value, -1e9, 1e9),
}
_MEASURED = {own.name: (_KINDS[str(own.type).removesuffix(" | None")], "") for own in fields(Measured)}
_MEASURED["size"] = (_is_size, "")


class _Fault(ValueError):
    """What is wrong, and the path of the key."""

    def __init__(self, told: str, *path: str | int):
        super().__init__(told)
        self.path = path

    @property
    def hint(self) -> str:
        names = [part for part in self.path if isinstance(part, str)]
        inside = names[:1] in (["measured"], ["windows"])  # whose fix is for whatever is wrong in them
        return _KEYS.get(names[0 if inside else -1] if names else "", (str, _ALL_KEYS))[1]


# ---- reading --------------------------------------------------------------------------------------------------------


def read(path: Path, name: str) -> Preset:
    """The preset in a file; UsageError that says what is wrong with it. name: as the user gave it."""
    try:
        with files.open_regular(path.expanduser()) as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as fault:  # RuntimeError: no such user; ValueError: a null character
        reason = getattr(fault, "strerror", None) or fault
        raise UsageError(f"cannot read the preset {name[:200]!r}: {reason}", _WHOLE_FILE) from None
    return parse(data, printable(path.name))


def parse(data: bytes, name: str) -> Preset:
    """A preset from the bytes of its file; UsageError that says what is wrong, and in which line."""
    if len(data) > _MOST_BYTES:
        raise UsageError(f"the preset {name} is larger than {_MOST_BYTES} bytes", _WHOLE_FILE)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"preset {name} is not UTF-8 text", hint="save it as UTF-8") from None
    if line := too_many_dots(text, _MOST_DOTS):
        raise UsageError(f"preset {name}, line {line}: a key of more than {_MOST_DOTS} dots", hint=_ALL_KEYS)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        reason = f"preset {name} is not TOML: {printable(fault)}"
        raise UsageError(reason, hint="correct it there: texts stand in quotes, lists in brackets") from None
    except (ValueError, RecursionError):  # no day, a number of thousands of digits, lists in lists without end
        reason = f"preset {name} has a date, a number or lists in lists that cannot be read"
        raise UsageError(reason, hint=f"a preset needs none of these; {_ALL_KEYS}") from None
    lines = Lines(text)
    try:
        return _preset(table, name, lines)
    except _Fault as fault:
        line = lines.of(*fault.path)
        where = f", line {line}" if line else ""
        raise UsageError(f"preset {name}{where}: {fault}", hint=fault.hint) from None


def _value(key: _Key, value: Any, *path: str | int) -> Any:
    """The value of the key at a path, a list as a tuple; _Fault if it is missing, or none of the key's."""
    if value is None:  # which no TOML says
        raise _Fault(f"{path[-1]} is missing", *path)
    values, _ = key
    if not (value in values if isinstance(values, tuple) else values(value)):
        near = meant(value, values, "; ") if isinstance(values, tuple) else ""
        raise _Fault(f"{path[-1]} = {quoted(value)} is not valid{near}", *path)
    return tuple(value) if isinstance(value, list) else value


def _values(
    table: dict[str, Any], keys: Mapping[str, _Key], required: Sequence[str], *path: str | int
) -> dict[str, Any]:
    """All that a table says; _Fault for the first key that is unknown, is missing, or has a wrong value."""
    for key in table:
        if key not in keys:
            reason = meant(key, keys) or f"known are {', '.join(keys)}"
            raise _Fault(f"there is no key {quoted(key)}; {reason}", *path, key)
    return {key: _value(keys[key], table.get(key), *path, key) for key in dict.fromkeys((*table, *required))}


def _keys(*names: str) -> dict[str, _Key]:
    return {name: _KEYS[name] for name in names}


def _preset(table: dict[str, Any], name: str, lines: Lines) -> Preset:
    _value(_KEYS["format"], table.get("format"), "format")  # another format may have other keys
    said = _values(table, _keys(*_HEAD), ["phase"])
    windows = {}
    for letter, value in said.get("windows", {}).items():
        if not re.fullmatch("[a-zA-Z0-9_]", letter):
            raise _Fault(f"the window {quoted(letter)} must be called by one letter, digit or _", "windows", letter)
        windows[letter] = _value((_is_shape, ""), value, "windows", letter)
    if not 0 < len(said["phase"]) <= _MOST_PHASES:
        raise _Fault(f"it has {len(said['phase'])} phases; 1 to {_MOST_PHASES} are read", "phase")
    phases: list[Phase] = []
    for index, entry in enumerate(said["phase"]):
        phases.append(_phase(entry, ("phase", index), phases[-1].sigma[1] if phases else 1.0, windows, lines))
    if end := phases[-1].sigma[1]:
        reason = f"the last phase ends at sigma {end:g}; let it end at 0.0, where the video is done"
        raise _Fault(reason, "phase", len(phases) - 1, "sigma")
    used = {letter for phase in phases for own in (phase, *phase.layers) for letter in own.heads}
    if unused := sorted(set(windows) - used):
        raise _Fault(f"no heads use the window {unused[0]}", "windows", unused[0])
    paths: dict[str, Names] = {"model": ("model",), **{f"windows.{letter}": ("windows", letter) for letter in windows}}
    return Preset(
        name=name,
        phases=tuple(phases),
        windows=windows,
        measured=_measured(said["measured"]) if "measured" in said else None,
        lines={key: line for key, path in paths.items() if (line := lines.of(*path))},
        **{key: said[key] for key in ("tile", "model", "about") if key in said},
    )


def _phase(entry: dict[str, Any], path: Names, begin: float, windows: Mapping[str, Shape3], lines: Lines) -> Phase:
    """One [[phase]], which must start at sigma `begin`."""
    said = _values(entry, _keys("sigma", *_SETTING, "linear", "layers"), ["sigma"], *path)
    sigma = (float(said["sigma"][0]), float(said["sigma"][1]))
    if sigma[0] != begin:
        how = "overlaps what is before it" if sigma[0] > begin else "leaves a gap"
        fault = f"the phase starts at sigma {sigma[0]!r} and {how}: it must start at {begin!r}"
        raise _Fault(fault, *path, "sigma")
    own = _setting(said, path, {}, windows, lines)
    layers: list[Layers] = []
    taken: dict[int, int | None] = {}  # the line that names a layer
    for index, each in enumerate(said.get("layers", ())):
        here = (*path, "layers", index)
        told = _values(each, _keys("at", *_SETTING, "linear"), ["at"], *here)
        at, at_line = _numbers(told["at"]), lines.of(*here, "at")
        for number in at:
            if number in taken:
                raise _Fault(f"layer {number} has its own setting already, in line {taken[number]}", *here, "at")
            taken[number] = at_line
        if len(told) == 1:
            raise _Fault("these layers say nothing of their own", *here)
        layers.append(Layers(at=at, at_line=at_line, **_setting(told, here, own, windows, lines)))
    return Phase(sigma=sigma, layers=tuple(layers), **own)


def _setting(
    said: dict[str, Any], path: Names, inherited: dict[str, Any], windows: Mapping[str, Shape3], lines: Lines
) -> dict[str, Any]:
    """The arguments of a Setting, what the table does not say from `inherited`."""
    given = [key for key in said if key in _CHOICE]
    if len(given) > 1:
        raise _Fault(f"{given[0]} and {given[1]} both say what is seen; give one of them", *path, given[1])
    for letter in said.get("heads", ""):
        if letter != DENSE_HEAD and letter not in windows:
            known = ", ".join((*sorted(windows), f"{DENSE_HEAD} for dense"))
            raise _Fault(f"heads names a window {quoted(letter)}; there are {known}", *path, "heads")
    own = inherited | ({"window": None, "density": None, "heads": ""} if given else {})
    own |= {key: said[key] for key in _SETTING if said.get(key, "dense") != "dense"}
    if "density" in said:
        own["density"] = float(said["density"])
    return own | {"line": lines.of(*path, *given[:1])}


def _measured(table: dict[str, Any]) -> Measured:
    said = _values(table, _MEASURED, [key for key in _MEASURED if key not in _INTERVALS], "measured")
    if said["clips"] == 1:  # older files say an interval of 0.0 there, but one clip has none
        said = {key: value for key, value in said.items() if key not in _INTERVALS}
    return Measured(**said)


def quoted(value: Any) -> str:
    """A value of a file, no longer than a sentence bears."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


# ---- writing --------------------------------------------------------------------------------------------------------


def as_dict(preset: Preset) -> dict[str, Any]:
    """The preset as JSON has it, lists for tuples; what is seldom used is left out if it is not used."""

    def told(own: Setting) -> dict[str, Any]:
        window = own.window and list(own.window)
        said: dict[str, Any] = {"window": window, "qk": own.qk, "pv": own.pv, "smooth_k": own.smooth_k}
        return said | {key: value for key in ("density", "heads") if (value := getattr(own, key))}

    phases = []
    for phase in preset.phases:
        layers = [{"at": ranges(own.at), **told(own)} for own in phase.layers]
        phases.append({"sigma": list(phase.sigma), **told(phase), **({"layers": layers} if layers else {})})
    measured = preset.measured.as_dict() if preset.measured else None
    rest = {"windows": {name: list(window) for name, window in preset.windows.items()}, "measured": measured}
    tile = preset.tile and list(preset.tile)
    return {"name": preset.name, "tile": tile, "phases": phases, **{k: v for k, v in rest.items() if v}}


def from_dict(told: Mapping[str, Any]) -> Preset:
    """The preset that `as_dict` told of, but for its model and its author's sentence; UsageError where it is none."""

    def entry(said: Mapping[str, Any]) -> dict[str, Any]:
        """A phase or layers of one, as the file has them."""
        found = {key: value for key, value in said.items() if value is not None}
        found |= {"layers": [*map(entry, found["layers"])]} if "layers" in found else {}
        return found if set(_CHOICE) & found.keys() else found | {"window": "dense"}

    phases = [*map(entry, told["phases"])]
    rest = {key: told[key] for key in ("tile", "windows", "measured") if told.get(key)}
    try:
        return _preset({"format": FORMAT, "phase": phases, **rest}, told["name"], Lines(""))
    except _Fault as fault:
        raise UsageError(f"preset {told['name']}: {fault}", fault.hint) from None


def text(preset: Preset) -> str:
    """The file that `parse` reads as `preset`."""
    head = {"model": preset.model, "about": preset.about, "tile": preset.tile}
    tables: list[tuple[str, dict[str, Any]]] = [
        ("", {"format": FORMAT, **{key: value for key, value in head.items() if value}})
    ]
    if preset.windows:
        tables.append(("[windows]", dict(preset.windows)))
    for phase in preset.phases:
        tables.append(("[[phase]]", {"sigma": phase.sigma, **_said(phase, Setting())}))
        for own in phase.layers:  # `parse` wants that they say something, even if it is what the phase says
            tables.append(("[[phase.layers]]", {"at": ranges(own.at), **(_said(own, phase) or {"qk": own.qk})}))
    if preset.measured:
        tables.append(("[measured]", preset.measured.as_dict()))
    blocks = ([title, *(f"{key} = {_toml(value)}" for key, value in said.items())] for title, said in tables)
    return "\n\n".join("\n".join(block) for block in blocks).lstrip() + "\n"


def _said(own: Setting, inherited: Setting) -> dict[str, Any]:
    """What a setting says, except for what is inherited."""
    said: dict[str, Any] = {}
    if any(getattr(own, key) != getattr(inherited, key) for key in _CHOICE):
        if own.heads:
            said["heads"] = own.heads
        elif own.density is not None:
            said["density"] = own.density
        else:
            said["window"] = own.window or "dense"
    rest = ("qk", "pv", "smooth_k")
    return said | {key: getattr(own, key) for key in rest if getattr(own, key) != getattr(inherited, key)}


def _toml(value: Any) -> str:
    """A value as TOML has it; printable text needs only two escapes."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value).lower() if isinstance(value, bool) else repr(list(value) if isinstance(value, tuple) else value)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `at` has them: 0-1,39."""
    runs = ([number for _, number in run] for _, run in groupby(enumerate(numbers), lambda each: each[1] - each[0]))
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
