"""Several videos of one command: where each goes, which are there already, and what this process makes of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fpsgen import files
from fpsgen.cli import chosen, preferences
from fpsgen.cli.lines import Faults, Line
from fpsgen.cli.options import expand
from fpsgen.errors import UsageError, option
from fpsgen.printable import printable

_HEAD = 2**16  # bytes of a video's file, whose comment begins there
_ASKED = re.compile(rb'"asked": "(\w+)"')
_LARGEST = 2**26  # bytes of a file that counts by its content; a LoRA or a model's part counts by its name


@dataclass(frozen=True)
class Share:
    """Which of several videos a process makes: every `world`-th, beginning with number `rank`. All of them, if torchrun
    did not start it."""

    rank: int = 0
    world: int = 1

    @staticmethod
    def of_process() -> Share:
        """As torchrun's environment has it; UsageError where that cannot be."""
        given = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
        if None in given:
            return Share()
        rank, world = (int(text) if re.fullmatch(r"\d{1,6}", text or "", re.ASCII) else -1 for text in given)
        if not 0 <= rank < world:
            told = f"the environment says RANK={printable(given[0], 20)} and WORLD_SIZE={printable(given[1], 20)}"
            raise UsageError(f"{told}, which is no process of a run", hint="start it by torchrun, or unset both")
        return Share(rank, world)

    @property
    def device(self) -> str | None:
        """The GPU of this process, if it is one of several on a machine; None for no GPU in particular."""
        local = os.environ.get("LOCAL_RANK", "")
        return f"cuda:{local}" if self.world > 1 and local.isdigit() else None


@dataclass(frozen=True)
class Place:
    """Where a line's video goes, and whether it is there. asked: stands for all that the video was asked for."""

    line: Line
    path: Path
    asked: str
    is_there: bool


def folder(output: Path | None) -> Path:
    """The folder of several videos, made where it is not there; UsageError where it cannot be."""
    if output is None:
        return preferences.output_folder()
    found = expand(output)
    if found.suffix.lower() in (".mp4", ".webm", ".gif") and not found.is_dir():
        told = f"{option('output', found)}: several videos need a folder"
        raise UsageError(told, hint=f"name one, such as {option('output', f'{found.with_suffix("")}/')}")
    with files.refused(found, f"choose another folder with {option('output')}", "output"):
        found.mkdir(parents=True, exist_ok=True)
    return found


def places(lines: Sequence[Line], where: Path, options: Mapping[str, object], faults: Faults) -> list[Place]:
    """Where each line's video goes: to a file that is named by prompt and seed, or by the line; to one with a number,
    where a video that was asked for otherwise has the name. options: what the command line says of all videos. Lines
    that would have one name are faults.
    """
    named: dict[str, int] = {}
    bases = []
    for line in lines:
        base = where / file_name(line)
        key = unicodedata.normalize("NFC", base.name).casefold()  # what file systems may take for one name
        with faults.of(line.number):
            if (other := named.setdefault(key, line.number)) != line.number or key in bases:
                told = f"its video would be {printable(base.name)}, as line {other}'s"
                raise UsageError(told, hint='give one of them another seed or a name: {"prompt": …, "name": "other"}')
        bases.append(key)
    faults.tell()
    return [_place(line, where / file_name(line), asked_for(line, options), named) for line in lines]


def file_name(line: Line) -> str:
    """Of a line's video."""
    if not line.name:
        assert line.seed is not None
        return chosen.video_name(line.prompt, line.seed, tell_apart=True)
    return line.name if Path(line.name).suffix.lower() in (".mp4", ".webm", ".gif") else f"{line.name}.mp4"


def asked_for(line: Line, options: Mapping[str, object]) -> str:
    """Stands for all that a video was asked for; equal for equal words, whatever the model's defaults make of them.
    Images and preset files count by their content."""
    own = {key: value for key, value in vars(line).items() if key not in ("name", "number")}
    told = json.dumps(own | dict(options), sort_keys=True, default=_told)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _told(value: object) -> Any:
    return _content(value) if isinstance(value, Path) else vars(value)


@cache
def _content(path: Path) -> str:
    try:
        if path.stat().st_size <= _LARGEST:
            with files.open_regular(path) as file:
                return hashlib.sha256(file.read()).hexdigest()
    except (OSError, ValueError):  # told by whoever needs it
        pass
    return str(path)


def _place(line: Line, path: Path, asked: str, named: Mapping[str, int]) -> Place:
    for own in files.numbered(path):
        if own != path and unicodedata.normalize("NFC", own.name).casefold() in named:
            continue  # another line's
        if not os.path.lexists(own):
            return Place(line, own, asked, is_there=False)
        if _is_there(own, asked):
            return Place(line, own, asked, is_there=True)
    raise AssertionError


def _is_there(path: Path, asked: str) -> bool:
    """Whether what has a name is the video. A video appears under its name when it is complete; what does not say what
    it was asked for, as a gif, counts by its name."""
    try:
        with files.open_regular(path) as file:
            found = _ASKED.search(file.read(_HEAD))
    except OSError:
        return True
    return found is None or found[1].decode() == asked
