"""Standing choices: what the command line does not say comes from the environment, else from the settings file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from fpsgen import files
from fpsgen.errors import UsageError, reason
from fpsgen.printable import meant, printable
from fpsgen.weights.known import MODELS


@dataclass(frozen=True)
class Key:
    """A setting: what it is, what holds where nobody chose, and its values that are names, not paths."""

    about: str
    default: str
    names: Callable[[], Collection[str]]


def _presets() -> list[str]:
    from fpsgen.presets import shipped

    return ["bf16", *shipped.GRADES, *shipped.names()]


KEYS = {
    "model": Key(
        "The model that generate, bench and calibrate take, as --model.",
        "chosen by size and by what is on this disk",
        lambda: ("pocket", *MODELS),
    ),
    "preset": Key("The preset that generate takes, as --preset.", "chosen by model and GPU", _presets),
    "output_dir": Key("The folder for videos of generate that have no -o.", "the current folder", tuple),
}
_HINT = "fpsgen config shows the keys and an example"
_MOST_BYTES = 2**16


@dataclass(frozen=True)
class Standing:
    """A choice: its value, None where nobody chose one; who chose it (file, environment, default), also in words."""

    value: str | None
    source: str
    where: str


def path() -> Path:
    """The settings file: in XDG_CONFIG_HOME, or where the operating system keeps such files."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) / "fpsgen" if base else Path(typer.get_app_dir("fpsgen"))) / "config.toml"


def variable(key: str) -> str:
    return f"FPSGEN_{key.upper()}"


def standing(key: str) -> Standing:
    """What holds for `key` where the command line says nothing; UsageError where the settings file is wrong."""
    if value := os.environ.get(variable(key)):
        return Standing(value, "environment", variable(key))
    text = _text()
    if value := _parse(text).get(key):
        return Standing(value, "file", f"{printable(path())}, line {_line(text, key)}")
    return Standing(None, "default", "default")


@contextlib.contextmanager
def using(key: str, given: str | None) -> Iterator[str | None]:
    """The value for an option: `given`, or the standing choice, which an error inside then names."""
    if given is not None:
        yield given
        return
    choice = standing(key)
    try:
        yield choice.value
    except UsageError as fault:
        if choice.value is None:
            raise
        told = f"{fault} ({key} = {printable(choice.value)!r} is set by {choice.where})"
        raise UsageError(told, hint=fault.marked_hint) from None


def output_folder() -> Path:
    """Where videos without a name of their own go, made where it is not there."""
    choice = standing("output_dir")
    if choice.value is None:
        return Path()
    try:
        folder = Path(choice.value).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as fault:  # RuntimeError: no such user; ValueError: a null character
        told = f"the output folder {printable(choice.value)} cannot be made: {reason(fault)}"
        raise UsageError(f"{told} (it is set by {choice.where})", hint="choose another folder, or use -o") from None
    return folder


def change(key: str, value: str | None) -> None:
    """Write `key` into the settings file, or take it out; all else in it stays. UsageError where that cannot be."""
    text = _text()
    wanted, lines = _parse(text), text.splitlines()
    wanted.pop(key, None)
    line = _line(text, key) or len(lines) + 1
    lines[line - 1 : line] = []
    if value is not None:
        _check(key, value, key)
        wanted[key] = value
        lines.insert(line - 1, f"{key} = {json.dumps(value, ensure_ascii=False)}")
    changed = "".join(f"{line}\n" for line in lines)
    try:
        right = _parse(changed) == wanted
    except UsageError:
        right = False
    if not right:  # as where a value stands over several lines
        raise UsageError(f"{printable(path())} is too complex to be changed by a command", hint="edit it by hand")
    with files.refused(path(), "XDG_CONFIG_HOME names another folder"):
        files.write_text(path(), changed)


def known(key: str) -> str:
    """A key as we write it; UsageError, with the nearest, where it is none."""
    name = key.replace("-", "_")
    if name in KEYS:
        return name
    raise UsageError(_no_such(key), hint=f"the settings are {', '.join(KEYS)}")


def _no_such(key: str) -> str:
    return f"there is no setting {printable(key)!r}{meant(key.replace('-', '_'), KEYS, '; ')}"


def _text() -> str:
    """What the file holds; nothing where there is none."""
    try:
        with files.open_regular(path()) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError("it is larger than 64 KiB")
        return data.decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as fault:
        why = "it is not UTF-8 text" if isinstance(fault, UnicodeDecodeError) else reason(fault)
        raise UsageError(f"cannot read the settings in {printable(path())}: {why}", hint=_HINT) from None


def _parse(text: str) -> dict[str, str]:
    """Keys and values; UsageError that names the line of what is wrong."""
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:
        told = f"the settings file {printable(path())} is not TOML: {printable(fault)}"
        raise UsageError(told, hint='a line looks like this: model = "14b"') from None
    for key, value in table.items():
        line = _line(text, key)
        where = f"{printable(path())}, line {line}" if line else printable(path())
        if key not in KEYS:
            raise UsageError(f"{where}: {_no_such(key)}", hint=_HINT)
        _check(key, value, where)
    return table


def _check(key: str, value: object, where: str) -> None:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        told = f"{where}: {key} must be text on one line, and not empty"
        raise UsageError(told, hint=f'write it as {key} = "…"')
    if key == "output_dir" and not Path(value).is_absolute() and not value.startswith("~"):
        told = f"{where}: output_dir = {value!r} depends on where fpsgen is started"
        raise UsageError(told, hint="write the whole path, or begin it with ~/")


def _line(text: str, key: str) -> int | None:
    """The line that `key` begins on: the file has no tables."""
    pattern = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=|\s*\[+\s*{re.escape(key)}\b""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)
