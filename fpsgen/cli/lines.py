"""What the command line asks for: options of all videos, the lines of a prompt file, the seeds of each."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from fpsgen.choices import Dtype
from fpsgen.cli import prompts
from fpsgen.cli.options import OTHER_NAMES, expand
from fpsgen.errors import UsageError, option
from fpsgen.formats import PLAIN, Encoding
from fpsgen.printable import meant, printable, typed
from fpsgen.seeds import check_seed
from fpsgen.settings import check_settings
from fpsgen.solvers import Sigmas, SolverName
from fpsgen.wan import sizes
from fpsgen.weights.known import NOTHING, Given

MOST = 10_000  # videos of one command
_TOLD, _NUMBERED = 3, 20  # wrong lines whose faults are told, and whose numbers are; the others are counted
_NUMBERS: dict[str, tuple[Any, str]] = dict.fromkeys(("seed", "frames", "steps"), (int, "a whole number"))
_NUMBERS |= dict.fromkeys(("guidance", "guidance_low", "shift"), ((int, float), "a number"))  # the other keys are text
_CHOICES = {"solver": get_args(SolverName), "sigmas": get_args(Sigmas)}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Options of `fpsgen generate` that hold for all of its videos, by their names."""

    model: str | None = None
    lora: list[str] | None = None
    preset: str | None = None
    device: str | None = None
    dtype: Dtype | None = None
    graphs: bool = False
    parts: Given = NOTHING
    encoding: Encoding = PLAIN
    gpus: int | None = None
    no_clobber: bool = False
    resume: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Several:
    """Options of many videos: a file of prompts, and seeds, each of which every prompt is made with."""

    prompts: Path | None = None
    seeds: str | None = None

    def __bool__(self) -> bool:
        return self != Several()


@dataclass(frozen=True)
class PromptLine:
    """A prompt, and what is asked of its video: None where that is left to the command line, or to the model. The
    fields are called as the options are. name: of the video's file; number: of the line, 0 where the prompt is not from
    a file."""

    prompt: str = ""
    seed: int | None = None
    res: str | None = None
    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_low: float | None = None
    shift: float | None = None
    solver: SolverName | None = None
    sigmas: Sigmas | None = None
    negative: str | None = None
    image: Path | None = None
    last_image: Path | None = None
    name: str | None = None
    number: int = 0

    def over(self, usual: PromptLine) -> PromptLine:
        """This line, with what `usual` says where it says nothing."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(usual, **{name: value for name, value in own.items() if value is not None})

    def check(self) -> None:
        """UsageError where no model can make the video; images are not looked at."""
        prompts.check_prompts(self.prompt, self.negative)
        self.size  # noqa: B018
        sampling = (self.steps, self.guidance, self.shift, self.solver, self.sigmas or "original", self.guidance_low)
        check_settings(self.frames, *sampling)
        if self.seed is not None:
            check_seed(self.seed)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height, if they are given; UsageError where they are no size."""
        return None if self.res is None else sizes.parse_resolution(self.res)


_KEYS = tuple(one.name for one in fields(PromptLine) if one.name != "number")
_OTHERS = {name.lstrip("-").replace("-", "_"): key for key in _KEYS for name in OTHER_NAMES.get(key, ())}


class Faults:
    """What is wrong with the lines of a file; told together. file: None where the prompt is not from one."""

    def __init__(self, file: str | None = None) -> None:
        self._file, self._found = file, dict[int, UsageError]()

    @contextlib.contextmanager
    def of(self, line: PromptLine) -> Iterator[None]:
        """A UsageError inside is kept: it is the line's. Without a file it ends the command."""
        try:
            yield
        except UsageError as fault:
            if self._file is None:
                raise
            self._found.setdefault(line.number, fault)

    def tell(self) -> None:
        """UsageError where something was wrong."""
        if not self._found:
            return
        numbers = sorted(self._found)
        told = [f"line {number}: {self._found[number]!s}" for number in numbers[:_TOLD]]
        hint = self._found[numbers[0]].hint
        if len(numbers) == 1:
            raise UsageError(f"{self._file}, {told[0]}", hint)
        if others := numbers[_TOLD:]:
            more = f" and {len(others) - _NUMBERED} more" if len(others) > _NUMBERED else ""
            told += [f"and {'lines' if others[1:] else 'line'} {', '.join(map(str, others[:_NUMBERED]))}{more}"]
        sentence = f"{len(numbers)} lines of {self._file} are wrong: {'; '.join(told)}"
        raise UsageError(sentence, hint and f"line {numbers[0]}: {hint}")


def asked(given: Several, prompt: str | None, usual: PromptLine) -> tuple[list[PromptLine], Faults]:
    """The videos that are asked for, and where to put what is wrong with one. With a file of prompts a seed that
    nothing says is 0, so that the same command asks for the same videos again. usual: what the command line says of all
    of them. UsageError where options contradict each other, and where a line is wrong."""
    if given.seeds is not None and usual.seed is not None:
        raise UsageError("--seeds and --seed contradict each other", hint="leave one out")
    if given.prompts is not None and prompt is not None:
        told = f"there is a prompt beside --prompts: {typed(prompt)}"
        raise UsageError(told, hint="leave one out; words that belong to one value need quotes")
    if given.prompts is None:
        if prompt is None:
            raise UsageError("PROMPT is missing", hint="fpsgen generate --help says what it is")
        line = replace(usual, prompt=prompts.typed_prompt(prompt))
        line.check()
        return [line] if given.seeds is None else each_with([line], parse_seeds(given.seeds)), Faults()
    seeds = parse_seeds(given.seeds) if given.seeds is not None else (usual.seed or 0,)
    replace(usual, prompt="-", seed=seeds[0]).check()  # what is wrong on the command line is no line's fault
    usual = replace(usual, seed=None)
    lines, faults = read(given.prompts, usual)
    faults.tell()
    return each_with(lines, seeds), faults


def read(path: Path, usual: PromptLine) -> tuple[list[PromptLine], Faults]:
    """The lines of a file, or of standard input for "-", completed by what is `usual`; what is wrong with the others.

    A line that begins with { is a JSON object, whose keys are those of `PromptLine`; each line of a .jsonl file is one.
    Every other line is a prompt; empty lines and those that begin with # are passed over. UsageError where the file
    cannot be read, or has no prompt.
    """
    standard = str(path) == "-"
    name, folder = ("standard input", Path()) if standard else (printable(path), expand(path).parent)
    found = prompts.numbered_lines(None if standard else path, MOST)
    if len(found) > MOST:
        raise _too_many()
    if not found:
        raise UsageError(f"{name} has no prompt", hint="write one prompt on each line")
    lines, faults = [], Faults(name)
    for number, text in found.items():
        with faults.of(PromptLine(number=number)):
            if text.startswith("{"):
                own = _object(text, folder)
            elif path.suffix.lower() == ".jsonl":
                raise UsageError("this is not a JSON object", hint='write {"prompt": "a cat surfing", "seed": 7}')
            else:
                own = PromptLine(text)
            line = replace(own.over(usual), number=number)
            line.check()
            lines.append(line)
    return lines, faults


def _object(text: str, folder: Path) -> PromptLine:
    """A line of JSON. folder: what paths in it begin from."""
    try:
        pairs = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError) as fault:
        told = f"this is not JSON: {getattr(fault, 'msg', 'a number or its nesting is too large')}"
        raise UsageError(told, hint='write {"prompt": "a cat surfing", "seed": 7}') from None
    given: dict[str, Any] = {}
    for name, value in pairs:
        key = _OTHERS.get(plain := name.replace("-", "_"), plain)
        if key not in _KEYS:
            near = meant(key, [*_KEYS, *_OTHERS])
            raise UsageError(f"there is no key {typed(name)!r}", hint=near or f"the keys are {', '.join(_KEYS)}")
        if key in given:
            raise UsageError(f"the key {key} is there twice", hint="leave one of them out")
        given[key] = _checked(key, value, folder)
    if given.get("prompt") is None:
        raise UsageError("there is no prompt", hint='write {"prompt": "a cat surfing"}')
    return PromptLine(**given)


def _checked(key: str, value: Any, folder: Path) -> Any:
    """A key's value as `PromptLine` has it; UsageError where it is of another kind. null is as good as no key."""
    kind, wanted = _NUMBERS.get(key, (str, "text"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, kind):
        raise UsageError(f"{key} is {printable(json.dumps(value), 40)}, which is not {wanted}", hint=f"give {wanted}")
    if key in _CHOICES and value not in _CHOICES[key]:
        every = ", ".join(_CHOICES[key])
        raise UsageError(f"{key} is {typed(value)!r}: there is no such choice", hint=f"give one of {every}")
    if key == "name":
        _check_name(value)
    if isinstance(value, str) and key not in ("prompt", "negative") and not (value and value.isprintable()):
        raise UsageError(f"{key} is {typed(value)!r}, which cannot be", hint=f"mend it, or leave {key} out")
    return folder / expand(Path(value)) if key in ("image", "last_image") else value


def _check_name(name: str) -> None:
    """UsageError for what is not the name of a file in the output folder."""
    if name.startswith((".", " ")) or len(name.encode("utf-8", "replace")) > 200 or {*name} & {*'/\\:*?"<>|'}:
        told = f"name is {printable(name, 80)!r}, which is not the name of a file"
        raise UsageError(told, hint='write it without folders, such as "name": "surfing-cat"')


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds of "0-7", "3" or "0-3,10", each once, in their order; UsageError where they are none."""
    hint = f"write {option('seeds', '0-7')}, or numbers with commas between"
    found: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})\s*(?:-\s*(\d{1,20})\s*)?", part, re.ASCII)
        if not match:
            raise UsageError(f"{option('seeds', printable(text, 40))}: these are no seeds", hint)
        first, last = int(match[1]), int(match[2] or match[1])
        check_seed(max(first, last))
        if last < first:
            raise UsageError(f"{option('seeds', printable(text, 40))}: {first} is more than {last}", hint)
        if last - first >= MOST:
            raise _too_many()
        found |= dict.fromkeys(range(first, last + 1))
    return tuple(found)


def each_with(lines: Sequence[PromptLine], seeds: Sequence[int]) -> list[PromptLine]:
    """Every line with every seed, or with its own alone where it names one. A line's name gets the seed added to it,
    where there are several."""
    made = []
    for line in lines:
        own = seeds if line.seed is None else [line.seed]
        for seed in own:
            name = f"{line.name}-{seed}" if line.name and len(own) > 1 else line.name
            made.append(replace(line, seed=seed, name=name))
        if len(made) > MOST:
            raise _too_many()
    return made


def _too_many() -> UsageError:
    return UsageError(f"these are more than {MOST} videos", hint=f"make at most {MOST} with one command")
