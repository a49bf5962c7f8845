"""What every command is made of: options by the one table, our help, and an end in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fpsgen.cli import help as helps
from fpsgen.cli import options
from fpsgen.cli.errors import explained
from fpsgen.errors import UsageError


class _Readable:
    """What commands and groups share."""

    def make_parser(self, ctx: Any) -> Any:
        """The parser, which understands other tools' names as well, with - and with _ in them."""
        parser = super().make_parser(ctx)  # type: ignore[misc]
        for param in ctx.command.params:
            known = options.OTHER_NAMES.get(param.name) if param.param_type_name == "option" else None
            if known and param.rich_help_panel != "Training":  # whose steps are others
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


class CommandGroup(Group):
    """A group that is a command as well: its callback is run where the first word names none of its commands."""

    allow_extra_args, allow_interspersed_args = False, True  # as a command has them

    def get_params(self, ctx: Any) -> list[Any]:
        """A command of the group, asking what stands before its name, is told of options alone."""
        params = super().get_params(ctx)
        return params if ctx.command is self else [param for param in params if param.param_type_name == "option"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] in self.commands:
            ctx._protected_args, ctx.args = args[:1], args[1:]  # what `TyperGroup.invoke` goes on with
            return ctx.args
        rest = super().parse_args(ctx, args)
        for param in self.params:
            word = ctx.params.get(param.name) if param.param_type_name == "argument" else None
            if word in self.commands and not ctx.resilient_parsing:
                told = f"there are options before {word}, which has options of its own"
                raise UsageError(told, hint=f"{ctx.command_path} {word} OPTIONS")
        return rest


class App(typer.Typer):
    """A group, and the commands that are added to it."""

    def __init__(self, **settings: Any):
        super().__init__(**{"cls": Group, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Any:
        return _prepared(super().command(name, **{"cls": Command, **settings}))

    def callback(self, **settings: Any) -> Any:
        return _prepared(super().callback(**settings))


def _prepared(register: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda function: register(options.described(options.grouped(explained(function))))
