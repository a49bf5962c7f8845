"""Files of a run with an object on each line: the log of steps, and that of checks."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fpsgen import files
from fpsgen.errors import option


def read(path: Path, numbers: Iterable[str]) -> list[dict[str, Any]]:
    """The lines that have a number for each of these keys. Others are passed over, such as what is left of a line after
    a loss of power: the run does not depend on them. UsageError where the file cannot be read."""
    found, keys, lines = list[dict[str, Any]](), [*numbers], list[bytes]()
    with _refused(path), contextlib.suppress(FileNotFoundError), files.open_regular(path) as file:
        lines = file.read().splitlines()
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            told = json.loads(line)
            if isinstance(told, dict) and all(isinstance(told.get(key), (int, float)) for key in keys):
                found.append(told)
    return found


def write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """All lines anew. UsageError where they cannot be written, here and below."""
    with _refused(path):
        files.write_text(path, "".join(map(_line, lines)))


def add(path: Path, line: Mapping[str, Any]) -> None:
    """One more line."""
    with _refused(path), path.open("a", encoding="utf-8") as file:
        file.write(_line(line))


def _refused(path: Path) -> contextlib.AbstractContextManager[None]:
    return files.refused(path, f"make room there: with {option('resume')} it goes on from the last checkpoint")


def _line(line: Mapping[str, Any]) -> str:
    """JSON has no word for what is not finite."""
    known = {name: None if isinstance(own, float) and not math.isfinite(own) else own for name, own in line.items()}
    return json.dumps(known) + "\n"
