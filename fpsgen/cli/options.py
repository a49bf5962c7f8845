"""Options and arguments, which the table `options.toml` describes; what commands make of their values."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from fpsgen import assets
from fpsgen.cli import complete
from fpsgen.errors import UsageError
from fpsgen.files import expand as expand  # for commands, like the rest
from fpsgen.files import place as place
from fpsgen.settings import DEFAULTS
from fpsgen.weights.known import MODELS

_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
INSTEAD: dict[str, str] = _TABLE.pop("instead")
OTHER_NAMES: dict[str, list[str]] = {
    name: entry["also"] for section in _TABLE.values() for name, entry in section.items() if "also" in entry
}


def described(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, with the table's options and arguments for all parameters that have none yet."""
    signature = inspect.signature(command, eval_str=True)
    parameters = []
    for one in signature.parameters.values():
        if one.annotation is not typer.Context and get_origin(one.annotation) is not Annotated:
            one = one.replace(annotation=Annotated[one.annotation, _typer(one.name, _entry(command, one.name))])
        parameters.append(one)
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def with_fields(kind: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command whose last parameter is `**given`, with an option for each field of a dataclass instead of that: None,
    or False, where it is not given. Helps show the fields' own defaults."""

    def extended(command: Callable[..., Any]) -> Callable[..., Any]:
        signature, hints = inspect.signature(command, eval_str=True), get_type_hints(kind)
        *parameters, _ = signature.parameters.values()
        for own in fields(kind):
            is_flag, entry, usual = hints[own.name] is bool, _entry(command, own.name), own.default
            if not is_flag and usual is not None:
                entry = entry | {"default": f"{usual:g}" if isinstance(usual, float) else str(usual)}
            hint: Any = Annotated[bool if is_flag else hints[own.name] | None, _typer(own.name, entry)]
            default, by_name = False if is_flag else None, inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(own.name, by_name, default=default, annotation=hint))
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return extended


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command, with an option for each field of its parameters that are dataclasses, instead of these: options that
    belong together are one value to the command. A field's default is that of its option."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: one.annotation for name, one in signature.parameters.items() if is_dataclass(one.annotation)
    }
    if not groups:
        return command

    @functools.wraps(command)
    def gathered(*args: Any, **given: Any) -> Any:
        for name, kind in groups.items():
            given[name] = kind(**{own.name: given.pop(own.name) for own in fields(kind) if own.name in given})
        return command(*args, **given)

    parameters = []
    for name, one in signature.parameters.items():
        if name not in groups:
            parameters.append(one)
            continue
        hints = get_type_hints(kind := groups[name])
        for own in fields(kind):
            parameters.append(inspect.Parameter(own.name, one.kind, default=own.default, annotation=hints[own.name]))
    gathered.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return gathered


def _entry(command: Callable[..., Any], name: str) -> dict[str, Any]:
    """What the table says of a command's parameter."""
    section = _TABLE.get(command.__module__.rpartition(".")[2], {})
    own = section.get(command.__name__, {}).get(name) or section.get(name, {})
    return own if "argument" in own else _TABLE["shared"].get(name, {}) | own


def _typer(name: str, entry: dict[str, Any]) -> Any:
    """An option or argument as typer has it."""
    shown = entry["default"].format_map(_Defaults()) if "default" in entry else True
    offers = getattr(complete, entry["offers"]) if "offers" in entry else None
    common: dict[str, Any] = {"help": entry["text"], "show_default": shown, "autocompletion": offers}
    if "argument" in entry:
        return typer.Argument(metavar=entry["argument"], **common)
    long = name.rstrip("_").replace("_", "-")  # from_ for from, which is a word of Python's
    long = f"--{long}/--no-{long}" if "off" in entry else f"--{long}"
    names = [entry["short"], long] if "short" in entry else [long]
    common |= {key: entry[key] for key in ("min", "max") if key in entry}
    return typer.Option(*names, metavar=entry.get("value"), rich_help_panel=entry.get("group"), **common)


class _Defaults(dict[str, str]):
    """Defaults that the models have, in words: "4 for pocket, 6 for 1.3b, else 5"; looked up where a help needs
    them."""

    def __missing__(self, setting: str) -> str:
        values = {}
        wan = {name: replace(DEFAULTS[known.kind], **known.own) for name, known in MODELS.items() if known.is_wan_ais}
        if setting == "wan_sizes":
            return _in_words({name: own.size for name, own in wan.items()})
        with contextlib.suppress(OSError, ValueError, KeyError):  # a damaged installation is told when it is used
            pocket = json.loads((assets.folder("pocket") / "pocket.json").read_text(encoding="utf-8"))
            values["pocket"] = f"{pocket[setting]:g}"
        return _in_words(values | {name: f"{getattr(own, setting):g}" for name, own in wan.items()})


def _in_words(values: dict[str, str]) -> str:
    """Which models have which value; what most of them have comes last, without their names."""
    usual, _ = Counter(values.values()).most_common(1)[0]
    told = {value: " and ".join(name for name in values if values[name] == value) for value in values.values()}
    del told[usual]
    return ", ".join([*(f"{value} for {names}" for value, names in told.items()), f"else {usual}" if told else usual])


def check_report(report: Path | None, no_report: bool) -> None:
    """UsageError where a report is asked for and forbidden."""
    if no_report and report is not None:
        raise UsageError("--report and --no-report contradict each other", hint="leave one out")


def alone(context: typer.Context, json: bool) -> bool:
    """Whether a group of commands is run without one; UsageError where --json stands before one."""
    command = context.invoked_subcommand
    if command is not None and json:
        raise UsageError("--json stands before the command", hint=f"{context.command_path} {command} … --json")
    return command is None


def several(option: str, given: Iterable[str] | None) -> list[str]:
    """The values of an option that is there again and again, or holds commas; each once."""
    found = [value.strip() for text in given or () for value in text.split(",")]
    if "" in found:
        raise UsageError(f"{option} has an empty value", hint="put one comma between two values")
    return list(dict.fromkeys(found))


def among(option: str, given: list[str], known: Iterable[str], noun: str = "choice") -> list[str]:
    """All that are known where none is given; UsageError for one that is not."""
    every = list(known)
    for value in given:
        if value not in every:
            raise UsageError(f"{option} {value[:40]}: there is no such {noun}", hint=f"give some of {', '.join(every)}")
    return list(dict.fromkeys(given)) or every
