"""Standing choices: what the command line does not say comes from the environment, else from the settings file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from fpsgen import files
from fpsgen.errors import UsageError
from fpsgen.printable import meant, printable

KEYS = {
    "model": "The model that generate, bench and calibrate take, as --model.",
    "preset": "The preset that generate takes, as --preset.",
    "output_dir": "The folder for videos of generate that have no -o.",
}
_HINT = "fpsgen config shows the keys and an example"
_MOST_BYTES = 2**16


@dataclass(frozen=True)
class Choice:
    """A value, None where nobody chose one; who chose it (file, environment, default), and that in words."""

    value: str | None
    source: str
    where: str


def path() -> Path:
    """The settings file: in XDG_CONFIG_HOME, or where the operating system keeps such files."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) / "fpsgen" if base else Path(typer.get_app_dir("fpsgen"))) / "config.toml"


def variable(key: str) -> str:
    """The environment variable of a key."""
    return f"FPSGEN_{key.upper()}"


def choice(key: str) -> Choice:
    """What stands for `key` where the command line says nothing; UsageError where the settings file is wrong."""
    if value := os.environ.get(variable(key)):
        return Choice(value, "environment", variable(key))
    text = _text()
    if value := _parse(text).get(key):
        return Choice(value, "file", f"{printable(path())}, line {_line(text, key)}")
    return Choice(None, "default", "default")


@contextlib.contextmanager
def using(key: str, given: str | None) -> Iterator[str | None]:
    """The value for an option: `given`, or the standing choice, which an error inside then names."""
    if given is not None:
        yield given
        return
    standing = choice(key)
    try:
        yield standing.value
    except UsageError as fault:
        if standing.value is None:
            raise
        told = f"{fault} ({key} = {printable(standing.value)!r} is set by {standing.where})"
        raise UsageError(told, hint=fault.hint) from None


def output_folder() -> Path:
    """Where videos without a name of their own go, made where it is not there."""
    standing = choice("output_dir")
    if standing.value is None:
        return Path()
    try:
        folder = Path(standing.value).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as fault:  # RuntimeError: no such user; ValueError: a null character
        why = getattr(fault, "strerror", None) or fault
        told = f"the output folder {printable(standing.value)} cannot be made: {why} (it is set by {standing.where})"
        raise UsageError(told, hint="choose another folder, or use -o") from None
    return folder


def change(key: str, value: str | None) -> None:
    """Write `key` into the settings file, or take it out; all else in it stays. UsageError where that cannot be."""
    key = known(key)
    if value is not None:
        _check(key, value, key)
    text = _text()
    wanted = {name: old for name, old in _parse(text).items() if name != key} | ({key: value} if value else {})
    lines = text.splitlines()
    new = [f"{key} = {json.dumps(value, ensure_ascii=False)}"] if value else []
    if at := _line(text, key):
        lines[at - 1 : at] = new
    else:
        lines += new
    changed = "".join(f"{line}\n" for line in lines)
    try:
        right = _parse(changed) == wanted
    except UsageError:
        right = False
    if not right:  # as where a value stands over several lines
        raise UsageError(f"{printable(path())} is too involved to be changed by a command", hint="edit it by hand")
    try:
        files.write_text(path(), changed)
    except OSError as fault:
        told = f"{printable(path())} cannot be written: {fault.strerror or fault}"
        raise UsageError(told, hint="XDG_CONFIG_HOME names another folder") from None


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
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as fault:
        told = getattr(fault, "strerror", None) or fault
        raise UsageError(f"cannot read the settings in {printable(path())}: {told}", hint=_HINT) from None
    if len(data) > _MOST_BYTES:
        raise UsageError(f"the settings file {printable(path())} is larger than 64 KiB", hint=_HINT)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"the settings file {printable(path())} is not UTF-8 text", hint="save it as UTF-8") from None


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
        told = f'write it as {key} = "…"'
        raise UsageError(f"{where}: {key} must be text on one line, and not empty", hint=told)
    if key == "output_dir" and not Path(value).is_absolute() and not value.startswith("~"):
        told = f"{where}: output_dir = {value!r} depends on where fpsgen is started"
        raise UsageError(told, hint="write the whole path, or begin it with ~/")


def _line(text: str, key: str) -> int | None:
    """The line that `key` begins on: the file has no tables."""
    pattern = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=|\s*\[+\s*{re.escape(key)}\b""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)
