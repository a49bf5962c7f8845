"""The file of a run's settings: read, refused with the line that is wrong, written."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fpsgen import files
from fpsgen.errors import UsageError, reason
from fpsgen.presets.lines import Lines, too_many_dots
from fpsgen.printable import meant, printable
from fpsgen.train.settings import TrainSettings

_MOST_BYTES = 2**16
_MOST_DOTS = 20  # in a key: tomllib needs memory by the square of a key's dots
_HINT = "write one setting a line, such as warm_up = 200; all are in docs/train.md"
_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def read(path: Path) -> dict[str, Any]:
    """What a file says, by the fields of TrainSettings; UsageError, with the line, for a key that is none of them or a
    value of another type. Whether values mean something, `TrainSettings.check` says."""
    name = printable(path)
    try:
        with files.open_regular(path) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError("it is larger than 64 KiB")
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as fault:
        why = "it is not UTF-8 text" if isinstance(fault, UnicodeDecodeError) else reason(fault)
        raise UsageError(f"cannot read the settings {name}: {why}", hint="give a .toml file") from None
    try:
        if line := too_many_dots(text, _MOST_DOTS):
            raise ValueError(f"a key of more than {_MOST_DOTS} dots in line {line}")
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:
        raise UsageError(f"the settings {name} are not TOML: {printable(fault)}", hint=_HINT) from None
    lines, hints = Lines(text), get_type_hints(TrainSettings)
    for key, value in table.items():
        where = f"{name}, line {lines.of(key)}"
        if key not in hints:
            near = meant(key.replace("-", "_"), hints, "; ")
            raise UsageError(f"{where}: there is no setting {printable(key)!r}{near}", hint=_HINT)
        if wanted := _wanted(value, hints[key]):
            raise UsageError(f"{where}: {key} must be {wanted}", hint=_HINT)
    return table


def _wanted(value: Any, hint: Any) -> str | None:
    """What a value of another type must be."""
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return None if value in choices else f"{' or '.join(map(json.dumps, choices))}{meant(value, choices, '; ')}"
    kind = next((own for own in get_args(hint) if own is not NoneType), hint)
    return None if type(value) is kind or (kind is float and type(value) is int) else _KINDS[kind]


def text(settings: TrainSettings) -> str:
    """The file that `read` reads as these settings."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.as_dict().items())
