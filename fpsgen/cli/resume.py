"""Long runs: which unfinished video goes on, how a signal ends one, and the command that goes on with it."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen import files
from fpsgen.cli import chosen, signals
from fpsgen.cli.output import Output
from fpsgen.errors import UsageError
from fpsgen.events import Event, Stage, Step
from fpsgen.printable import printable

if TYPE_CHECKING:
    from fpsgen.request import Request
    from fpsgen.target import Target
    from fpsgen.weights.models import Model


_REPLACED = "; this run begins anew, and replaces it after its first step"


@dataclass(frozen=True)
class GivenByUser:
    """Whether the user gave the seed and the file."""

    seed: bool
    output: bool


def find(
    request: Request, model: Model, target: Target, given: GivenByUser, out: Output
) -> tuple[Request, dict[str, Any] | None]:
    """The unfinished video that is gone on with: `request` with its seed and its file, or as it is where nothing of it
    is kept. Where it is complete already, what its comment says, too. UsageError where only one of other settings is
    there, or a damaged one."""
    from fpsgen import unfinished
    from fpsgen.request import resolve

    faults, plan = [], resolve(request, model, target)
    for path in _kept(request, given):
        try:
            mine, others, done = _like(path, request, model, target, given)
        except UsageError as fault:
            faults.append(fault)
            continue
        if not others:
            made = _comment(mine.output) if done == mine.settings.steps else None
            if made and not unfinished.differences(made, plan.about("") | {"seed": mine.seed}, unfinished.OF_COMMENTS):
                path.unlink(missing_ok=True)  # it was killed when all was done but this
                return mine, made
            return mine, None
        if given.output or mine.prompt == request.prompt:
            told = f"{printable(path)} is of other settings: {'; '.join(others)}"
            hint = "use those, or leave --resume out, and the video begins anew; the file stays until it is complete"
            faults.insert(0, UsageError(told, hint))
    if faults:
        raise faults[0]
    there = [request.output] if given.output else _files(request, given) if given.seed else []
    for path in filter(Path.exists, there):
        made = _comment(path)
        mine = replace(request, seed=_seed(made or {}, request, given), output=path)
        now = plan.about("") | {"seed": mine.seed}
        others = unfinished.differences(made, now, unfinished.OF_COMMENTS) if made else []
        if not others and (made or given.output):  # a gif, for one, has no place to say how it was made
            return mine, made or {}
        if others and given.output:
            told = f"{printable(path)} is complete, and of other settings: {'; '.join(others)}"
            raise UsageError(told, "choose another -o, or leave --resume out, and the new video will replace it")
    where = str(request.output) if given.output else f"this prompt in {request.output.parent.resolve()}"
    out.note(f"nothing unfinished is kept of {printable(where)}: the video begins anew")
    return request, None


def tell(request: Request, model: Model, target: Target, given: GivenByUser, out: Output) -> None:
    """A note where an unfinished run of the same video lies, or of another one that this run replaces."""
    for path in _kept(request, given):
        try:
            others = _like(path, request, model, target, given)[1]
        except UsageError:
            others = ["damaged"]
        told = f"{printable(path)} keeps an unfinished run"
        if not others:
            out.note(f"{told} of this video: --resume goes on with it" + (_REPLACED if given.output else ""))
            return
        if given.output:
            out.note(f"{told} of other settings{_REPLACED}")


def _comment(path: Path) -> dict[str, Any] | None:
    """How a video says that it was made, if it is there and does."""
    from fpsgen import comment

    with contextlib.suppress(UsageError):
        return comment.read(path)
    return None


def _kept(request: Request, given: GivenByUser) -> list[Path]:
    """The files that may keep the video's state, the newest first."""
    from fpsgen import unfinished

    found = [unfinished.place(request.output)] if given.output else _files(request, given, files.UNFINISHED)
    found = [path for path in found if path.is_file() and not path.is_symlink()]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _files(request: Request, given: GivenByUser, suffix: str = "") -> list[Path]:
    """Files with the names that videos of this prompt get by themselves."""
    stem, _, end = Path(chosen.video_name(request.prompt, request.seed)).stem.rpartition("-")
    number = end if given.seed else r"\d+"
    pattern = re.compile(rf"{re.escape(stem)}-{number}(-\d+)?\.mp4{re.escape(suffix)}")
    return sorted(path for path in request.output.parent.iterdir() if pattern.fullmatch(path.name))


def _like(
    path: Path, request: Request, model: Model, target: Target, given: GivenByUser
) -> tuple[Request, list[str], int]:
    """The request with the file, and perhaps the seed, of a state that is kept; and what that was made with otherwise,
    whose prompt the request has then; and how many steps are done. UsageError where the state is damaged."""
    from fpsgen import unfinished
    from fpsgen.request import resolve

    kept = unfinished.read(path)
    about = kept.about if kept else {}  # it may be gone meanwhile
    mine = replace(
        request, seed=_seed(about, request, given), output=path.with_name(path.name.removesuffix(files.UNFINISHED))
    )
    others = unfinished.differences(about, unfinished.made_with(resolve(mine, model, target), ""))
    mine = replace(mine, prompt=str(about.get("prompt"))) if others else mine
    return mine, others, kept.done if kept else 0


def _seed(about: Mapping[str, Any], request: Request, given: GivenByUser) -> int:
    """Of a video that was begun, unless the user gave another one."""
    seed = about.get("seed")
    return seed if isinstance(seed, int) and not given.seed else request.seed


def steps_finished(events: Iterator[Event], out: Output) -> Iterator[Event]:
    """The same events. While steps are computed, a first signal ends the work after the one in hand, which is kept; the
    second one ends it at once."""
    try:
        for event in events:
            if isinstance(event, Stage):
                signals.hold(partial(_wait, out) if event.name == "denoise" else None)
            yield event
            if isinstance(event, (Stage, Step)):
                signals.check()
    finally:
        signals.hold(None)


def _wait(out: Output) -> None:
    with contextlib.suppress(RuntimeError):  # something was being written in this very moment
        out.note("the run stops after this step, which is kept; once more, and it stops at once")


def command(seed: int | None, prompt: str) -> str:
    """What goes on with a run that this process began."""
    given = [prompt if word == "-" else word for word in sys.argv[1:]]
    more = [] if any(re.match("--seed(=|$)", word) for word in given) else ["--seed", str(seed)]
    more += [] if "--resume" in given else ["--resume"]
    at = given.index("--") if "--" in given else len(given)
    return shlex.join(["fpsgen", *given[:at], *more, *given[at:]])
