"""Several videos of one command: where each goes, which are there already, and what this process makes of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import typer

from fpsgen import files
from fpsgen.cli import chosen, errors, preferences
from fpsgen.cli.lines import Faults, PromptLine, Wanted
from fpsgen.cli.options import expand, place
from fpsgen.cli.output import Output
from fpsgen.cli.prompts import as_text
from fpsgen.errors import FpsgenError, RenderError, Stopped, UsageError, option
from fpsgen.events import Event, VideoFailed, Written
from fpsgen.formats import FORMATS
from fpsgen.printable import printable, typed
from fpsgen.report.words import counted

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
        rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        if rank is None or world is None:
            return Share()
        share = Share(*(int(text) if re.fullmatch(r"\d{1,6}", text, re.ASCII) else -1 for text in (rank, world)))
        if not 0 <= share.rank < share.world:
            told = f"the environment says RANK={typed(rank)} and WORLD_SIZE={typed(world)}"
            raise UsageError(f"{told}, which is no process of a run", hint="start it by torchrun, or unset both")
        return share

    def device(self, name: str | None) -> str | None:
        """The device called `name`; without a number, a GPU of this process's own, where there are GPUs."""
        local = os.environ.get("LOCAL_RANK", "")
        if self.world == 1 or name not in (None, "cuda") or not local.isdigit():
            return name
        import torch

        return f"cuda:{int(local)}" if torch.cuda.is_available() else name


@dataclass(frozen=True)
class Place:
    """Where a line's video goes. asked: stands for all that the video was asked for; is_there: an earlier run has made
    it; may_replace: as a `Request` has it; of_frames: whether a folder of frames was asked for; makes_folder: whether
    the folder that it goes into is made, where it is absent."""

    line: PromptLine
    path: Path
    asked: str
    is_there: bool = False
    may_replace: bool = False
    of_frames: bool = False
    makes_folder: bool = False


class Tally:
    """What becomes of several videos, of which this process makes its share."""

    def __init__(self, every: Sequence[Place], share: Share):
        self._own, self._share = every[share.rank :: share.world], share
        self.todo = [place for place in self._own if not place.is_there]
        self.there = len(self._own) - len(self.todo)
        self._numbers = {place.path: number for number, place in enumerate(self.todo, 1)}
        self._made: dict[Path, Written] = {}
        self._faults: dict[Path, FpsgenError] = {}

    def watch(self, event: Event, out: Output) -> None:
        if isinstance(event, Written):
            self._made[event.plan.request.output] = event
            out.milestone(f"{self._of(event.plan.request.output)} is in {event.path}")
        if isinstance(event, VideoFailed):
            self._keep(self.todo[event.number - 1], event.fault, out)

    def _of(self, path: Path) -> str:
        return f"video {self._numbers[path]} of {len(self.todo)}"

    def fail(self, fault: RenderError, out: Output) -> None:
        """Keep what ended a single video, as of several the pipeline does; raise what ended all of them."""
        if len(self.todo) > 1:
            raise fault
        self._keep(self.todo[0], fault, out)

    def _keep(self, place: Place, fault: FpsgenError, out: Output) -> None:
        self._faults[place.path] = fault
        out.note(f"{self._of(place.path)} failed: {fault}")

    def stopped(self) -> Stopped:
        """What a signal ends the command with."""
        told = f"stopped; {len(self._made)} of {counted(len(self.todo), 'video')} were made"
        return Stopped(told, hint="run the same command again, with --resume: it goes on after the last finished step")

    def tell(self, out: Output) -> None:
        """Where the videos are, and how many were made, were there and failed; the exit code says whether one did."""
        counts = {
            "made": len(self._made), "skipped": self.there, "failed": len(self._faults)
        }  # fmt: skip
        process = f"process {self._share.rank} of {self._share.world}: " if self._share.world > 1 else ""
        out.note(f"{process}{counts['made']} made, {counts['skipped']} there already, {counts['failed']} failed")
        there = {place.path: place.path for place in self._own if place.is_there}
        there |= {path: event.path for path, event in self._made.items()}
        paths = [str(there[place.path]) for place in self._own if place.path in there]
        data = {**counts, "rank": self._share.rank, "world": self._share.world, "videos": [*map(self._told, self._own)]}
        if paths or out.json:
            out.result("\n".join(paths), data, copied=True)
        if self._faults:
            raise typer.Exit(1)

    def _told(self, place: Place) -> dict[str, Any]:
        """A video as --json has it."""
        told: dict[str, Any] = {"line": place.line.number or None, "output": as_text(str(place.path))}
        if place.path in self._made:
            event = self._made[place.path]
            return told | {"state": "made", "output": as_text(str(event.path)), **event.about}
        told |= {"prompt": place.line.prompt.strip(), "seed": place.line.seed}
        if place.path not in self._faults:
            return told | {"state": "skipped"}
        message, hint, _ = errors.explain(self._faults[place.path])
        return told | {"state": "failed", "output": None, "error": message, "hint": hint}


def one_place(
    line: PromptLine, output: str | None, no_clobber: bool, options: Mapping[str, object], suffix: str
) -> Place:
    """Where the only video of a command goes: without a name to one of its own, also beside the video of another prompt
    or of other settings, with the suffix; none for a folder of frames. Without a seed it gets one at random."""
    line = line if line.seed is not None else replace(line, seed=secrets.randbelow(2**31))
    assert line.seed is not None
    if output is None:
        name = Path(chosen.video_name(line.prompt, line.seed)).with_suffix(suffix)
        path, of_frames = files.free(preferences.output_folder() / name, f"{suffix}{files.UNFINISHED}"), not suffix
    else:
        path, of_frames = place(output)
    may_replace = output is not None and not no_clobber
    return Place(line, path, asked_for(line, options), may_replace=may_replace, of_frames=of_frames)


def folder(output: str | None) -> Path:
    """The folder of several videos; UsageError where it is a file's name."""
    if output is None:
        return preferences.output_folder()
    found = expand(Path(output))
    if found.suffix.lower() in FORMATS and not found.is_dir():
        told, near = f"{option('output', found)}: several videos need a folder", f"{found.with_suffix('')}/"
        raise UsageError(told, hint=f"name one, such as {option('output', near)}")
    return found


@contextlib.contextmanager
def folder_made(found: Path) -> Iterator[None]:
    """A folder that is there while it is looked at what will be written into it; a command that is refused leaves none
    behind that it made. UsageError where it cannot be made."""
    there = found.exists()
    with files.refused(found, f"choose another folder with {option('output')}", "output"):
        found.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):
                found.rmdir()
        raise


def places(
    lines: Sequence[PromptLine], where: Path, options: Mapping[str, object], faults: Faults, resume: bool = False
) -> list[Place]:
    """Where each line's video goes: to a file that is named by prompt and seed, or by the line; to one with a number,
    where a video that was asked for otherwise has the name. options: what the command line says of all videos. resume:
    whether one that was stopped before it said how it was made is taken up again. UsageError where two lines would have
    one name."""
    named: dict[str, PromptLine] = {}
    for line in lines:
        key = _same(file_name(line))
        with faults.of(line):
            if (other := named.setdefault(key, line)) is not line:
                beside = f"as that of line {other.number}" if line.number else "twice"
                told = f"its video would be called {printable(file_name(line))}, {beside}"
                raise UsageError(told, hint='give one of them another seed, or {"prompt": …, "name": "other"}')
    faults.tell()
    return [_place(line, where / file_name(line), asked_for(line, options), named, resume) for line in lines]


def _same(name: str) -> str:
    """Equal for what some file systems take for one name."""
    return unicodedata.normalize("NFC", name).casefold()


def file_name(line: PromptLine) -> str:
    """Of a line's video."""
    if not line.name:
        assert line.seed is not None
        return chosen.video_name(line.prompt, line.seed, tell_apart=True)
    return line.name if Path(line.name).suffix.lower() in FORMATS else f"{line.name}.mp4"


def asked_for(line: PromptLine, options: Mapping[str, object]) -> str:
    """Stands for all that a video was asked for; equal for equal words, whatever the model's defaults make of them.
    Images and preset files count by their content."""
    own = {key: value for key, value in vars(line).items() if key not in ("name", "number")}
    told = json.dumps(own | dict(options), sort_keys=True, default=_told)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def spelled(wanted: Wanted) -> dict[str, object]:
    """Options of all videos that change them, as they hold: the user's own defaults where none was given, a preset's
    file as a path."""
    own: dict[str, object] = {"lora": wanted.lora, "dtype": wanted.dtype, "parts": wanted.parts}
    own |= {"crf": wanted.encoding.crf, "fps": wanted.encoding.fps}
    with preferences.using("model", wanted.model) as model, preferences.using("preset", wanted.preset) as preset:
        is_file = preset is not None and preset.endswith(".toml")
        return own | {"model": model, "preset": Path(preset) if preset and is_file else preset}


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


def _place(line: PromptLine, path: Path, asked: str, named: Mapping[str, PromptLine], resume: bool) -> Place:
    for own in files.numbered(path):
        if own != path and _same(own.name) in named:
            continue  # another line's
        if not os.path.lexists(own):
            return Place(line, own, asked, makes_folder=True)
        if (told := _told_by(own)) in (asked, None):
            ends = resume and told is None and own.with_name(f"{own.name}{files.UNFINISHED}").is_file()
            return Place(line, own, asked, is_there=not ends)
    raise AssertionError


def _told_by(path: Path) -> str | None:
    """What the video that has a name was asked for. A video appears under its name when it is complete; None where it
    does not say, as a gif: it counts by its name."""
    try:
        with files.open_regular(path) as file:
            found = _ASKED.search(file.read(_HEAD))
    except OSError:
        return None
    return found[1].decode() if found else None
