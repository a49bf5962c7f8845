"""A preset's file: read, refused with the line that is wrong, written. docs/presets.md explains all keys."""

from __future__ import annotations

import re
import reprlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from fpsgen import files
from fpsgen.attention.plan import KeyTiles, Seen, as_key_tiles
from fpsgen.attention.tiles import Shape3
from fpsgen.errors import UsageError
from fpsgen.presets import DENSE_HEAD, Layers, Measured, Phase, Preset, Setting
from fpsgen.presets.grammar import (
    CHOICE,
    FORMAT,
    HEAD,
    INTERVALS,
    KEYS,
    MEASURED,
    SETTING,
    STEP,
    Key,
    is_letter,
    is_shape,
    numbers,
)
from fpsgen.presets.lines import Lines, Names, too_many_dots
from fpsgen.printable import meant, printable
from fpsgen.wan.plan import UNROUNDED, Linears

_MOST_BYTES = 2**18
_MOST_DOTS = 20  # in a key: tomllib needs memory by the square of a key's dots
_MOST_PHASES = 1000  # calibration may write one for each step
_ALL_KEYS = "all keys are in docs/presets.md"
_WHOLE_FILE = "give a preset's .toml file"


class _Fault(ValueError):
    """What is wrong, and the path of the key."""

    def __init__(self, told: str, *path: str | int):
        super().__init__(told)
        self.path = path

    @property
    def hint(self) -> str:
        names = [part for part in self.path if isinstance(part, str)]
        inside = names[:1] in (["measured"], ["windows"])  # whose fix is for whatever is wrong in them
        return KEYS.get(names[0 if inside else -1] if names else "", (str, _ALL_KEYS))[1]


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


def _value(key: Key, value: Any, *path: str | int) -> Any:
    """The value of the key at a path, a list as a tuple; _Fault if it is missing, or none of the key's."""
    if value is None:  # which no TOML says
        raise _Fault(f"{path[-1]} is missing", *path)
    values, _ = key
    if not (value in values if isinstance(values, tuple) else values(value)):
        near = meant(value, values, "; ") if isinstance(values, tuple) else ""
        raise _Fault(f"{path[-1]} = {quoted(value)} is not valid{near}", *path)
    return tuple(value) if isinstance(value, list) else value


def _values(
    table: dict[str, Any], keys: Mapping[str, Key], required: Sequence[str], *path: str | int
) -> dict[str, Any]:
    """All that a table says; _Fault for the first key that is unknown, is missing, or has a wrong value."""
    for key in table:
        if key not in keys:
            reason = meant(key, keys) or f"known are {', '.join(keys)}"
            raise _Fault(f"there is no key {quoted(key)}; {reason}", *path, key)
    return {key: _value(keys[key], table.get(key), *path, key) for key in dict.fromkeys((*table, *required))}


def _keys(*names: str) -> dict[str, Key]:
    return {name: KEYS[name] for name in names}


def _preset(table: dict[str, Any], name: str, lines: Lines) -> Preset:
    _value(KEYS["format"], table.get("format"), "format")  # another format may have other keys
    said = _values(table, _keys(*HEAD), ["phase"])
    windows = {}
    for letter, value in said.get("windows", {}).items():
        if not re.fullmatch(r"\w", letter):  # of any alphabet: calibration may need more than 63
            raise _Fault(f"{quoted(letter)} must be one letter, digit or _", "windows", letter)
        windows[letter] = _letter(_value((is_letter, ""), value, "windows", letter), "windows", letter)
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
        raise _Fault(f"no heads use the letter {unused[0]}", "windows", unused[0])
    paths: dict[str, Names] = {"model": ("model",), **{f"windows.{letter}": ("windows", letter) for letter in windows}}
    return Preset(
        name=name,
        phases=tuple(phases),
        windows=windows,
        measured=_measured(said["measured"]) if "measured" in said else None,
        lines={key: line for key, path in paths.items() if (line := lines.of(*path))},
        **{key: said[key] for key in ("tile", "model", "about") if key in said},
    )


def _letter(value: Any, *path: str) -> Shape3 | KeyTiles:
    """What a letter of [windows] stands for: three lengths, or a table of window or top, and rest."""
    if isinstance(value, tuple):
        return value
    said = _values(value, {**_keys("top", "rest"), "window": (is_shape, "")}, [], *path)
    if ("window" in said) == ("top" in said):
        told = (
            "window and top both say what is seen; give one of them" if said.get("top") else "it has no window or top"
        )
        raise _Fault(told, *path)
    if "window" in said and said.get("rest", "drop") == "drop":
        return said["window"]
    top = float(said["top"]) if "top" in said else None
    return KeyTiles(said.get("window"), top, said.get("rest", "drop"))


def _phase(entry: dict[str, Any], path: Names, begin: float, windows: Mapping[str, Seen], lines: Lines) -> Phase:
    """One [[phase]], which must start at sigma `begin`."""
    said = _values(entry, _keys("sigma", *SETTING, *STEP, "layers"), ["sigma"], *path)
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
        told = _values(each, _keys("at", *SETTING), ["at"], *here)
        at, at_line = numbers(told["at"]), lines.of(*here, "at")
        for number in at:
            if number in taken:
                raise _Fault(f"layer {number} has its own setting already, in line {taken[number]}", *here, "at")
            taken[number] = at_line
        if len(told) == 1:
            raise _Fault("these layers say nothing of their own", *here)
        layers.append(Layers(at=at, at_line=at_line, **_setting(told, here, own, windows, lines)))
    return Phase(sigma=sigma, layers=tuple(layers), **own, **{key: said[key] for key in STEP if key in said})


def _setting(
    said: dict[str, Any], path: Names, inherited: dict[str, Any], windows: Mapping[str, Seen], lines: Lines
) -> dict[str, Any]:
    """The arguments of a Setting, what the table does not say from `inherited`."""
    given = [key for key in said if key in CHOICE]
    if len(given) > 1:
        raise _Fault(f"{given[0]} and {given[1]} both say what is seen; give one of them", *path, given[1])
    for letter in said.get("heads", ""):
        if letter != DENSE_HEAD and letter not in windows:
            known = ", ".join((*sorted(windows), f"{DENSE_HEAD} for dense"))
            raise _Fault(f"heads has a letter {quoted(letter)}; there are {known}", *path, "heads")
    own = inherited | ({"window": None, "density": None, "top": None, "heads": ""} if given else {})
    own |= {key: said[key] for key in SETTING if said.get(key, "dense") != "dense"}
    own |= {key: float(said[key]) for key in ("density", "top") if key in said}
    own |= {"linear": _linear(said["linear"])} if "linear" in said else {}
    if all(own.get(key) is None for key in ("window", "density", "top")):  # dense, or each head has a letter
        if "rest" in said:
            where = "each letter of [windows] has its own rest" if own.get("heads") else "nothing is skipped here"
            raise _Fault(f"rest says what becomes of skipped tiles, and {where}", *path, "rest")
        own["rest"] = "drop"
    return own | {"line": lines.of(*path, *given[:1])}


def _linear(value: Any) -> Linears:
    """From one precision for all, or a table of those that are not 16-bit."""
    own = value if isinstance(value, dict) else {"attention": value, "ffn": value}
    return Linears(**{key: "16bit" if each == "bf16" else each for key, each in own.items()})


_MAY_LACK = ("denoising", "solver", "guidance_low")


def _measured(table: dict[str, Any]) -> Measured:
    said = _values(table, MEASURED, [key for key in MEASURED if key not in (*INTERVALS, *_MAY_LACK)], "measured")
    if said["clips"] == 1:  # older files say an interval of 0.0 there, but one clip has none
        said = {key: value for key, value in said.items() if key not in INTERVALS}
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

    rounds = any(own.linear != UNROUNDED for phase in preset.phases for own in (phase, *phase.layers))

    def told(own: Setting) -> dict[str, Any]:
        window = own.window and list(own.window)
        said: dict[str, Any] = {"window": window, "qk": own.qk, "pv": own.pv, "smooth_k": own.smooth_k}
        said |= {key: value for key in ("density", "top", "heads") if (value := getattr(own, key))}
        said |= {"linear": _linear_said(own.linear)} if rounds else {}
        return said | ({"rest": own.rest} if own.rest != "drop" else {})

    phases = []
    for phase in preset.phases:
        layers = [{"at": ranges(own.at), **told(own)} for own in phase.layers]
        step = {**_step_said(phase), **({"layers": layers} if layers else {})}
        phases.append({"sigma": list(phase.sigma), **told(phase), **step})
    measured = preset.measured.as_dict() if preset.measured else None
    letters = {name: _letter_said(seen) for name, seen in preset.windows.items()}
    rest = {"model": preset.model, "windows": letters, "measured": measured}
    tile = preset.tile and list(preset.tile)
    return {"name": preset.name, "tile": tile, "phases": phases, **{k: v for k, v in rest.items() if v}}


def from_dict(told: Mapping[str, Any]) -> Preset:
    """The preset that `as_dict` told of, but for its author's sentence; UsageError where it is none."""

    def entry(said: Mapping[str, Any]) -> dict[str, Any]:
        """A phase or layers of one, as the file has them."""
        found = {key: value for key, value in said.items() if value is not None}
        found |= {"layers": [*map(entry, found["layers"])]} if "layers" in found else {}
        if {"window", "density", "top"} & found.keys():
            return {"rest": "drop", **found}  # and not the rest of the phase
        return found if set(CHOICE) & found.keys() else found | {"window": "dense"}

    phases = [*map(entry, told["phases"])]
    rest = {key: told[key] for key in ("model", "tile", "windows", "measured") if told.get(key)}
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
        letters = {x if x.isascii() else _toml(x): _letter_said(seen) for x, seen in preset.windows.items()}
        tables.append(("[windows]", letters))
    for phase in preset.phases:
        tables.append(("[[phase]]", {"sigma": phase.sigma, **_said(phase, Setting()), **_step_said(phase)}))
        for own in phase.layers:  # `parse` wants that they say something, even if it is what the phase says
            tables.append(("[[phase.layers]]", {"at": ranges(own.at), **(_said(own, phase) or {"qk": own.qk})}))
    if preset.measured:
        tables.append(("[measured]", preset.measured.as_dict()))
    blocks = ([title, *(f"{key} = {_toml(value)}" for key, value in said.items())] for title, said in tables)
    return "\n\n".join("\n".join(block) for block in blocks).lstrip() + "\n"


def _said(own: Setting, inherited: Setting) -> dict[str, Any]:
    """What a setting says, except for what is inherited."""
    said: dict[str, Any] = {}
    if any(getattr(own, key) != getattr(inherited, key) for key in CHOICE):
        if own.heads:
            said["heads"] = own.heads
        elif own.density is not None or own.top is not None:
            said |= {"top": own.top} if own.density is None else {"density": own.density}
        else:
            said["window"] = own.window or "dense"
    skips = (own.window, own.density, own.top) != (None, None, None)
    rest = (*(("rest",) if skips else ()), "qk", "pv", "smooth_k")
    said |= {key: getattr(own, key) for key in rest if getattr(own, key) != getattr(inherited, key)}
    return said | ({"linear": _linear_said(own.linear)} if own.linear != inherited.linear else {})


def _linear_said(own: Linears) -> str | dict[str, str]:
    """What `linear` is set to."""
    if own.attention == own.ffn:
        return own.ffn
    return {key: value for key, value in asdict(own).items() if value != "16bit"}


def _step_said(phase: Phase) -> dict[str, Any]:
    """What a phase says of whole steps."""
    return {key: value for key in STEP if (value := getattr(phase, key)) != "full"}


def _letter_said(seen: Shape3 | KeyTiles) -> Any:
    """What a letter of [windows] is set to."""
    own = as_key_tiles(seen)
    if own.is_window:
        return list(own.window or ())
    what = {"window": list(own.window)} if own.window else {"top": own.top}
    return what | ({"rest": own.rest} if own.rest != "drop" else {})


def _toml(value: Any) -> str:
    """A value as TOML has it; printable text needs only two escapes."""
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(own)}" for key, own in value.items()) + " }"
    return str(value).lower() if isinstance(value, bool) else repr(list(value) if isinstance(value, tuple) else value)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `at` has them: 0-1,39."""
    runs = ([number for _, number in run] for _, run in groupby(enumerate(numbers), lambda each: each[1] - each[0]))
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
