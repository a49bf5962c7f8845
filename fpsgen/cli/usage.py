"""What the parser of options and arguments refuses, in our words."""

from __future__ import annotations

import json
import re
from typing import Any

import typer

from fpsgen.cli.options import INSTEAD
from fpsgen.printable import meant, printable, typed

_MOST = 400  # characters of one sentence, which may repeat what was typed
# typer exports none of the parser's errors but one kind of this; earlier versions take click's, of the same names.
Refusal: type = typer.BadParameter.__base__ or typer.BadParameter


def in_words(error: Any) -> tuple[str, str]:
    """Sentence and hint of a `Refusal`."""
    path = error.ctx.command_path if error.ctx else "fpsgen"
    every = f"{path} --help lists what there is"
    kind = type(error).__name__
    if kind == "NoSuchOption":
        return f"{path} has no option {printable(error.option_name)}", _meant(error, path) or every
    if kind == "BadOptionUsage" and "does not take a value" in error.message:
        return f"{printable(error.option_name)} takes no value", f"write {printable(error.option_name)} alone"
    if kind == "BadOptionUsage":
        return f"{printable(error.option_name)} needs a value", f"write one after {printable(error.option_name)}"
    if kind == "MissingParameter":
        return f"{_name(error)} is missing", f"{path} --help says what it is"
    if isinstance(error, typer.BadParameter):
        told, hint = _value(error)
        return f"{_name(error)} {told}", hint or f"{path} --help says what it takes"
    if found := re.match(r"No such command '(.*?)'\.?(?: Did you mean .*\?)?$", error.message, re.DOTALL):
        near = INSTEAD.get(found[1], "")
        if not near.startswith(f"{path} "):  # as `fpsgen models rm` is no help after `fpsgen kernels`
            near = meant(found[1], getattr(error.ctx.command, "commands", {}))
        if path == "fpsgen" and " " in found[1]:
            near = f"fpsgen generate {json.dumps(printable(found[1], 80), ensure_ascii=False)}"
        return f"{path} has no command {typed(found[1])}", near or every
    if found := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)$", error.message, re.DOTALL):
        told = f"{path} cannot tell what these words are for: {typed(found[1])}"
        return told, 'put quotes around words that belong together, as in "a cat surfing"'
    return _sentence(error.format_message()), every


def _meant(error: Any, path: str) -> str | None:
    """What an unknown option may stand for."""
    if hint := INSTEAD.get(error.option_name.replace("_", "-")):
        return hint
    below = getattr(error.ctx.command, "commands", {}) if error.ctx else {}
    deeper = [command for one in below.values() for command in (one, *getattr(one, "commands", {}).values())]
    if any(error.option_name in parameter.opts for command in deeper for parameter in command.params):
        return f"{error.option_name} stands after the command: {path} … {error.option_name}"
    own = error.ctx.command.params if error.ctx else []
    for parameter in own:
        if parameter.param_type_name == "argument" and parameter.name == error.option_name.lstrip("-"):
            name = str(parameter.metavar or parameter.name).upper()
            return f"the {parameter.name} needs no option: {path} {name}"
    options = [one for one in own if one.param_type_name == "option"]
    if near := meant(error.option_name, [name for one in options for name in (*one.opts, *one.secondary_opts)]):
        return near
    if re.match(r"-\d", error.option_name) and any(parameter.name == "prompt" for parameter in own):
        return f'write a prompt that begins with a dash after two dashes: {path} -- "-3 degrees"'
    return None


def _value(error: Any) -> tuple[str, str | None]:
    """What is wrong with a value, and what it may be."""
    if choice := re.search(r"""(['"])(.*)\1 is not one of (.*)""", error.message, re.DOTALL):
        choices = re.findall(r"'([^']*)'", choice[3])
        hint = meant(choice[2], choices) or f"give one of {', '.join(choices)}"
        return f"{typed(choice[2])}: there is no such choice", hint
    # typer raises these of pydantic's errors, which hold what was typed; earlier versions' sentences begin with it.
    fault = error.__cause__.errors()[0] if hasattr(error.__cause__, "errors") else {}
    early = re.match(r"'?(.*?)'? is not (?:a valid (integer|float)|(in the range .*))", error.message, re.DOTALL)
    given = fault["input"] if "input" in fault else early[1] if early else None
    value = "" if given is None else f"{typed(given)}: "
    sort = str(fault.get("type", early[2] if early else None))
    if sort in ("integer", "float") or re.match(r"(int|float)_(parsing|type|from)", sort):
        wanted = "a whole number" if sort.startswith("int") else "a number"
        return f"{value}this is not {wanted}", f"give {wanted}"
    told = f"this is not {early[3]}" if early else _sentence(error.message).replace("input should", "it must")
    return f"{value}{told}", None


def _name(error: Any) -> str:
    """The option or argument that a sentence is about."""
    if error.param is None:
        return printable(error.param_hint or "a value")
    if error.param.param_type_name == "option":
        return str(max(error.param.opts, key=len))
    return str(error.param.metavar or error.param.name).upper()


def _sentence(text: str) -> str:
    """Without the capital and the full stop, which our own sentences have not either."""
    text = printable(text, _MOST).rstrip(".")
    return text[:1].lower() + text[1:]
