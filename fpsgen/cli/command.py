"""What every command is made of: options by the one table, our help, and an end in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fpsgen.cli import help as helps
from fpsgen.cli import options
from fpsgen.cli.errors import explained


class _Readable:
    """What commands and groups share."""

    def make_parser(self, ctx: Any) -> Any:
        """The parser, which understands other tools' names as well, with - and with _ in them."""
        parser = super().make_parser(ctx)  # type: ignore[misc]
        for param in ctx.command.params:
            if param.param_type_name == "option" and (known := options.OTHER_NAMES.get(param.name)):
                every = dict.fromkeys([*known, *(f"--{name[2:].replace('-', '_')}" for name in known)])
                action = "append" if param.multiple else "store"
                parser.add_option(obj=param, opts=list(every), dest=param.name, action=action, nargs=param.nargs)
        return parser

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write(helps.usage(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(helps.text(ctx))


class Command(_Readable, TyperCommand):
    """A command whose help is ours."""


class Group(_Readable, TyperGroup):
    """A group of commands whose help is ours."""


class App(typer.Typer):
    """A group, and the commands that are added to it."""

    def __init__(self, **settings: Any):
        super().__init__(**{"cls": Group, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Any:
        return _prepared(super().command(name, **{"cls": Command, **settings}))

    def callback(self, **settings: Any) -> Any:
        return _prepared(super().callback(**settings))


def _prepared(register: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda function: register(options.described(explained(function)))
