"""A preset's file: read, refused with the line that is wrong, written.

format = 1
model = "14b"                   # the family it is for: 1.3b, 14b or pocket; left out: any
tile = [3, 5, 8]                # tokens along T, H, W; left out: the model's own

[windows]                       # a letter for each, to be used by `heads`
a = [3, 5, 5]                   # tiles along T, H, W: odd, or all there are
b = [7, 3, 3]

[[phase]]
sigma = [1.0, 0.9]              # from this noise level down to that one: dense, not rounded

[[phase]]
sigma = [0.9, 0.0]
window = [3, 5, 5]              # or density = 0.25, whatever window comes nearest to it
qk = "int8"                     # bf16 (not rounded), fp8 or int8
pv = "fp8"                      # bf16 (not rounded) or fp8
smooth_k = true                 # the default

[[phase.layers]]                # what is not said here is as in the phase
at = "0-1,39"                   # counted from 0
window = "dense"
qk = "bf16"
pv = "bf16"

[[phase.layers]]
at = "2"
heads = "aaaaabbbbb----------aaaaabbbbb----------"  # - for dense
"""

from __future__ import annotations

import re
import reprlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
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
_INTERVALS = ("error_ci95", "psnr_ci95")  # which one clip does not have
_CHOICE = ("window", "density", "heads")
_SETTING = (*_CHOICE, "qk", "pv", "smooth_k", "linear")
# What helps where a key is wrong, by its name.
_FIXES = {
    "format": f"write format = {FORMAT} in the first line",
    "model": 'write model = "14b", or leave the line out: then it is for any model',
    "about": "shorten it to one line",
    "tile": "write tile = [3, 5, 8], tokens along T, H and W, or leave it out for the model's own",
    "windows": "write a = [3, 5, 5] under [windows], and use a in heads",
    "phase": "write [[phase]] and below it sigma = [1.0, 0.0]",
    "sigma": "let phases follow one another from 1.0, all noise, to 0.0: [1.0, 0.9], then [0.9, 0.0]",
    "layers": 'write [[phase.layers]] and below it at = "0-1" and what these layers do',
    "at": 'name layers, counted from 0, each once: at = "0-1,39"',
    "window": 'write window = [3, 5, 5], tiles along T, H and W, or "dense"',
    "density": "write a share of all pairs of tokens: density = 0.25",
    "heads": f"write a letter of [windows] for each head, {DENSE_HEAD} for a dense one",
    "smooth_k": "write smooth_k = true, or leave it out",
    "linear": "leave it out",
    "measured": "leave [measured] out: fpsgen calibrate writes it",
}
_ALL_KEYS = "all keys are in docs/presets.md"


class _Fault(ValueError):
    """What is wrong, and the path of the key."""

    def __init__(self, told: str, *path: str | int):
        super().__init__(told)
        self.path = path

    @property
    def hint(self) -> str:
        names = [part for part in self.path if isinstance(part, str)]
        if names[:1] in (["measured"], ["windows"]):  # whatever is wrong in them
            return _FIXES[names[0]]
        return _FIXES.get(names[-1] if names else "", _ALL_KEYS)


def read(path: Path, name: str) -> Preset:
    """The preset in a file; UsageError that says what is wrong with it. name: as the user gave it."""
    try:
        with files.open_regular(path.expanduser()) as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as fault:  # RuntimeError: no such user; ValueError: a null character
        told = getattr(fault, "strerror", None) or fault
        raise UsageError(f"cannot read the preset {name[:200]!r}: {told}", hint="give a preset's .toml file") from None
    return parse(data, printable(path.name))


def parse(data: bytes, name: str) -> Preset:
    """A preset from the bytes of its file; UsageError that says what is wrong, and in which line."""
    if len(data) > _MOST_BYTES:
        raise UsageError(f"the preset {name} is larger than {_MOST_BYTES} bytes", hint="give a preset's .toml file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"preset {name} is not UTF-8 text", hint="save it as UTF-8") from None
    if line := too_many_dots(text, _MOST_DOTS):
        raise UsageError(f"preset {name}, line {line}: a key of more than {_MOST_DOTS} dots", hint=_ALL_KEYS)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        told = f"preset {name} is not TOML: {printable(fault)}"
        raise UsageError(told, hint="correct it there: texts stand in quotes, lists in brackets") from None
    except (ValueError, RecursionError):  # no day, a number of thousands of digits, lists in lists without end
        told = f"preset {name} holds a date, a number or lists in lists that cannot be read"
        raise UsageError(told, hint=f"a preset needs none of these; {_ALL_KEYS}") from None
    lines = Lines(text)
    try:
        return _preset(table, name, lines)
    except _Fault as fault:
        line = lines.of(*fault.path)
        where = f", line {line}" if line else ""
        raise UsageError(f"preset {name}{where}: {fault}", hint=fault.hint) from None


def _preset(table: dict[str, Any], name: str, lines: Lines) -> Preset:
    known = ("format", "model", "about", "tile", "windows", "phase", "measured")
    if (found := table.get("format")) != FORMAT or type(found) is not int:
        told = f"format = {quoted(found)}" if "format" in table else "it does not say its format"
        raise _Fault(f"{told}; this fpsgen reads format = {FORMAT}", "format")
    _check_keys(table, known)
    model = table.get("model")
    if "model" in table and model not in FAMILIES:
        raise _Fault(
            f"model = {quoted(model)}; it is one of {', '.join(FAMILIES)}{meant(model, FAMILIES, '; ')}", "model"
        )
    about = table.get("about", "")
    if not isinstance(about, str) or len(about) > 500 or not about.isprintable():
        raise _Fault("about must be one line of at most 500 characters", "about")
    tile = _triple(table["tile"], "tile") if "tile" in table else None
    windows = _windows(table.get("windows", {}))
    entries = table.get("phase")
    if isinstance(entries, dict):
        raise _Fault("[phase] needs double brackets: [[phase]]", "phase")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise _Fault("there is no [[phase]]", "phase")
    if len(entries) > _MOST_PHASES:
        raise _Fault(f"it has {len(entries)} phases; at most {_MOST_PHASES} are read", "phase")
    phases: list[Phase] = []
    for index, entry in enumerate(entries):
        phases.append(_phase(entry, ("phase", index), phases[-1].sigma[1] if phases else 1.0, windows, lines))
    if phases[-1].sigma[1] != 0:
        told = f"the last phase ends at sigma {phases[-1].sigma[1]:g}; let it end at 0.0, where the video is done"
        raise _Fault(told, "phase", len(phases) - 1, "sigma")
    used = {letter for phase in phases for own in (phase, *phase.layers) for letter in own.heads}
    if unused := sorted(set(windows) - used):
        raise _Fault(f"no heads use the window {unused[0]}", "windows", unused[0])
    paths: dict[str, Names] = {"model": ("model",), **{f"windows.{letter}": ("windows", letter) for letter in windows}}
    where = {key: line for key, path in paths.items() if (line := lines.of(*path))}
    measured = _measured(table["measured"]) if "measured" in table else None
    return Preset(
        name=name, phases=tuple(phases), tile=tile, model=model, about=about, windows=windows, measured=measured,
        lines=where,
    )  # fmt: skip


def _windows(table: Any) -> dict[str, Shape3]:
    if not isinstance(table, dict):
        raise _Fault("windows must be a table of a letter for each", "windows")
    for letter in table:
        if not re.fullmatch("[a-zA-Z0-9_]", letter):
            raise _Fault(f"the window {quoted(letter)} must be called by one letter, digit or _", "windows", letter)
    return {letter: _triple(value, "windows", letter) for letter, value in table.items()}


def _phase(entry: dict[str, Any], path: Names, begin: float, windows: Mapping[str, Shape3], lines: Lines) -> Phase:
    """One [[phase]], which must start at sigma `begin`."""
    _check_keys(entry, ("sigma", *_SETTING, "layers"), *path)
    sigma = entry.get("sigma")
    at = (*path, "sigma")
    if not (isinstance(sigma, list) and len(sigma) == 2 and all(type(end) in (int, float) for end in sigma)):
        raise _Fault("sigma must be two numbers, such as [1.0, 0.9]", *at)
    if not all(0 <= end <= 1 for end in sigma):
        raise _Fault(f"sigma = {quoted(sigma)}: noise levels are 0 to 1", *at)
    if sigma[1] > sigma[0] - 2 * _ROUNDING:
        raise _Fault(f"sigma = {sigma!r} does not fall, from noise to video", *at)
    if sigma[0] != begin:
        how = "overlaps what is before it" if sigma[0] > begin else "leaves a gap"
        raise _Fault(f"the phase starts at sigma {sigma[0]!r} and {how}: it must start at {begin!r}", *at)
    own = _setting(entry, path, {}, windows, lines)
    entries = entry.get("layers", [])
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise _Fault("layers must be [[phase.layers]] tables", *path, "layers")
    layers: list[Layers] = []
    taken: dict[int, int] = {}
    for index, each in enumerate(entries):
        here = (*path, "layers", index)
        _check_keys(each, ("at", *_SETTING), *here)
        numbers = _numbers(each.get("at"), *here, "at")
        for number in numbers:
            if number in taken:
                before = lines.of(*path, "layers", taken[number], "at")
                told = f"layer {number} has its own setting already" + (f", of line {before}" if before else "")
                raise _Fault(told, *here, "at")
            taken[number] = index
        if len(each) == 1:
            raise _Fault("these layers say nothing of their own", *here)
        at_line = lines.of(*here, "at")
        layers.append(Layers(at=numbers, at_line=at_line, **_setting(each, here, own, windows, lines)))
    return Phase(sigma=(float(sigma[0]), float(sigma[1])), layers=tuple(layers), **own)


def _setting(
    entry: dict[str, Any], path: Names, inherited: dict[str, Any], windows: Mapping[str, Shape3], lines: Lines
) -> dict[str, Any]:
    """The arguments of a Setting, what the table does not say from `inherited`."""
    given = [key for key in entry if key in _CHOICE]
    if len(given) > 1:
        raise _Fault(f"{given[0]} and {given[1]} both say what is seen; give one of them", *path, given[1])
    own = dict(inherited)
    own["line"] = lines.of(*path, *given[:1])
    for key in given:
        own |= {"window": None, "density": None, "heads": ""}
        value = entry[key]
        if key == "density":
            if type(value) not in (int, float) or not 0 < value <= 1:
                raise _Fault(f"density = {quoted(value)}; it must be above 0 and at most 1", *path, key)
            own["density"] = float(value)
        elif key == "heads":
            own["heads"] = _heads(value, windows, *path, key)
        elif value != "dense":
            own["window"] = _triple(value, *path, key)
    for key, choices in (("qk", get_args(QKPrecision)), ("pv", get_args(PVPrecision))):
        if key in entry:
            if entry[key] not in choices:
                raise _Fault(f"{key} = {quoted(entry[key])}; it is one of {', '.join(choices)}", *path, key)
            own[key] = entry[key]
    if "smooth_k" in entry:
        if not isinstance(entry["smooth_k"], bool):
            raise _Fault("smooth_k must be true or false", *path, "smooth_k")
        own["smooth_k"] = entry["smooth_k"]
    if entry.get("linear", "bf16") != "bf16":
        told = f"linear = {quoted(entry['linear'])}: linear layers run in bf16, other precisions are not built yet"
        raise _Fault(told, *path, "linear")
    return own


def _heads(value: Any, windows: Mapping[str, Shape3], *path: str | int) -> str:
    if not isinstance(value, str) or not value:
        raise _Fault(f"heads = {quoted(value)}; it must be a letter for each head", *path)
    for letter in value:
        if letter != DENSE_HEAD and letter not in windows:
            known = ", ".join((*sorted(windows), f"{DENSE_HEAD} for dense"))
            raise _Fault(f"heads names a window {quoted(letter)}; there are {known}", *path)
    return value


def _numbers(value: Any, *path: str | int) -> tuple[int, ...]:
    """Layers by "0-1,39", ascending."""
    if not isinstance(value, str) or not re.fullmatch(r"\s*\d{1,4}(\s*[-,]\s*\d{1,4})*\s*", value, re.ASCII):
        raise _Fault(f'at = {quoted(value)}; it must name layers, such as "0-1,39"', *path)
    found: set[int] = set()
    for part in value.split(","):
        ends = [int(end) for end in part.split("-")]
        if len(ends) > 2 or ends[0] > ends[-1] or ends[-1] >= _MOST_LAYERS:
            raise _Fault(f"at = {quoted(value)}: {quoted(part.strip())} is not a range of layers", *path)
        own = range(ends[0], ends[-1] + 1)
        if not found.isdisjoint(own):
            raise _Fault(f"at = {quoted(value)} names a layer twice", *path)
        found.update(own)
    return tuple(sorted(found))


def _measured(table: Any) -> Measured:
    if not isinstance(table, dict):
        raise _Fault("measured must be a table", "measured")
    kinds = {field.name: field.type for field in fields(Measured)}
    _check_keys(table, tuple(kinds), "measured")
    for key, kind in kinds.items():
        if key not in table:
            if key in _INTERVALS:
                continue
            raise _Fault(f"measured lacks {key}", "measured")
        value = table[key]
        if kind == "str":
            good = isinstance(value, str) and len(value) <= 200 and value.isprintable()
        else:
            good = type(value) in ((int,) if kind == "int" else (int, float)) and abs(value) < 1e9  # so none is nan
        if not good:
            wanted = {"str": "one line of text", "int": "a whole number"}.get(str(kind), "a number")
            raise _Fault(f"{key} = {quoted(value)}; it must be {wanted}", "measured", key)
    try:
        sizes.check_model_size(*sizes.parse_resolution(table["size"] if re.match(r"\d+x", table["size"]) else ""))
    except UsageError:
        raise _Fault(
            f"size = {quoted(table['size'])}; it must be that of a video, such as 832x480", "measured", "size"
        ) from None
    if table["clips"] == 1:  # older files say an interval of 0.0 there, but one clip has none
        table = {key: value for key, value in table.items() if key not in _INTERVALS}
    return Measured(**table)


def _check_keys(table: dict[str, Any], known: Sequence[str], *path: str | int) -> None:
    """_Fault for the first key that is not `known`, with the nearest that is."""
    for key in table:
        if key not in known:
            told = meant(key, known) or f"known are {', '.join(known)}"
            raise _Fault(f"there is no key {quoted(key)}; {told}", *path, key)


def quoted(value: Any) -> str:
    """A value of a file, no longer than a sentence bears."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"


def _triple(value: Any, *path: str | int) -> Shape3:
    """Three counts."""
    if not (isinstance(value, list) and len(value) == 3 and all(type(n) is int and 0 < n < 2**15 for n in value)):
        key = "tile" if path == ("tile",) else "window"
        raise _Fault(f"{key} = {quoted(value)}; it must be three counts from 1 up, along T, H and W", *path)
    t, h, w = value
    return t, h, w


def as_dict(preset: Preset) -> dict[str, Any]:
    """The preset as JSON has it; of what is seldom used, what is used."""

    def told(own: Setting) -> dict[str, Any]:
        said: dict[str, Any] = {"window": own.window, "qk": own.qk, "pv": own.pv, "smooth_k": own.smooth_k}
        return said | {key: value for key in ("density", "heads") if (value := getattr(own, key))}

    phases = []
    for phase in preset.phases:
        layers = [{"at": ranges(own.at), **told(own)} for own in phase.layers]
        phases.append({"sigma": phase.sigma, **told(phase), **({"layers": layers} if layers else {})})
    said: dict[str, Any] = {"name": preset.name, "tile": preset.tile, "phases": phases}
    if preset.windows:
        said["windows"] = dict(preset.windows)
    if preset.measured:
        said["measured"] = preset.measured.as_dict()
    return said


def text(preset: Preset) -> str:
    """The file that `parse` reads as `preset`."""
    head = [f"format = {FORMAT}"]
    if preset.model:
        head.append(f'model = "{preset.model}"')
    if preset.about:
        head.append(f"about = {_basic(preset.about)}")
    if preset.tile:
        head.append(f"tile = {list(preset.tile)}")
    blocks = [head]
    if preset.windows:
        blocks.append(["[windows]", *(f"{letter} = {list(window)}" for letter, window in preset.windows.items())])
    for phase in preset.phases:
        blocks.append(["[[phase]]", f"sigma = {list(phase.sigma)}", *_written(phase, Setting())])
        for own in phase.layers:  # `parse` wants that they say something, were it what the phase says
            said = _written(own, phase) or [f'qk = "{own.qk}"']
            blocks.append(["[[phase.layers]]", f'at = "{ranges(own.at)}"', *said])
    if preset.measured:
        values = preset.measured.as_dict().items()
        told = (f"{name} = {_basic(value) if isinstance(value, str) else repr(value)}" for name, value in values)
        blocks.append(["[measured]", *told])
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _written(own: Setting, inherited: Setting) -> list[str]:
    """The lines of a setting, but for what is inherited."""
    lines = []
    if (own.window, own.density, own.heads) != (inherited.window, inherited.density, inherited.heads):
        if own.heads:
            lines.append(f'heads = "{own.heads}"')
        elif own.density is not None:
            lines.append(f"density = {own.density!r}")
        else:
            lines.append(f"window = {list(own.window)}" if own.window else 'window = "dense"')
    lines += [f'{key} = "{getattr(own, key)}"' for key in ("qk", "pv") if getattr(own, key) != getattr(inherited, key)]
    if own.smooth_k != inherited.smooth_k:
        lines.append(f"smooth_k = {str(own.smooth_k).lower()}")
    return lines


def _basic(value: str) -> str:
    """A TOML string; printable text needs but two escapes."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `at` has them: 0-1,39."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
