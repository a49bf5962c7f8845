"""How a command's help looks, and the names that other tools give to our options.

Help is plain text in two columns, at any width: no word is split, no example is broken. Options stand in groups (their
`rich_help_panel`).
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

WIDEST, NARROWEST = 100, 16  # columns: longer lines are hard to follow, and shorter ones hold no word
_NAMES = 26  # columns for names at most; a longer one has its help below
# Groups of options, in this order; a command's own stand before them.
MEASURING, VIDEO, SAMPLING, OUTPUT, MACHINE = "Measuring", "Video", "Sampling", "Output", "Machine"
Rows = list[tuple[str, str]]
_ORDER = (MEASURING, VIDEO, SAMPLING, OUTPUT, MACHINE)

# By parameter: what diffusers, ComfyUI and Wan2.1's generate.py call it. They mean the same, so they simply work; help
# and errors show ours.
OTHER_NAMES = {
    "negative": ("--negative-prompt", "--neg-prompt"),
    "frames": ("--num-frames", "--frame-num"),
    "guidance": ("--guidance-scale", "--cfg", "--cfg-scale", "--sample-guide-scale"),
    "steps": ("--num-inference-steps", "--num-steps", "--sample-steps"),
    "shift": ("--flow-shift", "--sample-shift"),
    "res": ("--size", "--resolution"),
    "solver": ("--sampler", "--scheduler", "--sample-solver"),
    "seed": ("--base-seed",),
    "model": ("--ckpt-dir",),
    "output": ("--save-file",),
}
# What has no option of that name, and what to do instead.
HINTS = {
    "--prompt": 'the prompt needs no option: fpsgen generate "a cat surfing"',
    "--width": "width and height are one option: --res WIDTHxHEIGHT, such as --res 832x480",
    "--height": "width and height are one option: --res WIDTHxHEIGHT, such as --res 832x480",
    "--fps": "the model fixes how many frames a second has; --frames says how long the video is",
    **dict.fromkeys(("--duration", "--seconds", "--length"), "--frames N says how long: 16 frames are one second"),
    **dict.fromkeys(("--fast", "--quality", "--balanced"), "--preset quality, balanced or fast"),
    **dict.fromkeys(
        ("--num-videos", "--batch", "--batch-size", "-n"),
        "one command makes one video: run it again with another --seed",
    ),
    "--image": "fpsgen makes videos from text alone",
    "--lora": "fpsgen loads no LoRA: merge it into the checkpoint, and name that with --model",
}

# The same for commands.
COMMANDS = {
    "download": "fpsgen models pull",
    "pull": "fpsgen models pull",
    "remove": "fpsgen models rm",
    "version": "fpsgen --version",
    "help": "fpsgen --help",
}


def option(
    written: str, about: str, group: str | None = None, shown: Any = True, offers: Any = None, **more: Any
) -> Any:
    """An option, `written` as its help has it: "-o, --output FILE"; "N", where its name is the parameter's; "--json",
    which takes no value. about: its help; shown: its default, in words; offers: its completion; more: as typer has it.
    """
    *names, last = written.replace(",", "").split()
    names, metavar = ([*names, last], None) if last.startswith("-") else (names, last)
    described = {"help": about, "metavar": metavar, "show_default": shown, "rich_help_panel": group, **more}
    return typer.Option(*names, autocompletion=offers, **described)


def argument(metavar: str, about: str, shown: Any = True, offers: Any = None) -> Any:
    """An argument; as `option`."""
    return typer.Argument(metavar=metavar, help=about, show_default=shown, autocompletion=offers)


class _Readable:
    """What commands and groups share."""

    def make_parser(self, ctx: Any) -> Any:
        """The parser, which understands other tools' names as well, with - and with _ in them."""
        parser = super().make_parser(ctx)  # type: ignore[misc]
        for param in ctx.command.params:
            if param.param_type_name == "option" and (known := OTHER_NAMES.get(param.name)):
                every = dict.fromkeys([*known, *(f"--{name[2:].replace('-', '_')}" for name in known)])
                action = "append" if param.multiple else "store"
                parser.add_option(obj=param, opts=list(every), dest=param.name, action=action, nargs=param.nargs)
        return parser

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write(_usage(ctx, _width()))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n".join(_blocks(ctx, _width())))


class Command(_Readable, TyperCommand):
    """A command whose help is ours."""


class Group(_Readable, TyperGroup):
    """A group of commands whose help is ours."""


class App(typer.Typer):
    """A group, and the commands that are added to it."""

    def __init__(self, **settings: Any):
        super().__init__(**{"cls": Group, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Any:
        return super().command(name, **{"cls": Command, **settings})


def _width() -> int:
    return max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))


def _usage(ctx: Any, width: int) -> str:
    command = ctx.command
    pieces = ["[OPTIONS]"]
    pieces += [_name(one) if one.required else f"[{_name(one)}]" for one in command.params if _is_argument(one)]
    if getattr(command, "commands", None):
        pieces.append("[COMMAND]" if command.invoke_without_command else "COMMAND")
    return wrapped(f"Usage: {ctx.command_path} {' '.join(pieces)}", width, "       ")


def _blocks(ctx: Any, width: int) -> Iterator[str]:
    """The parts of a help, from top to bottom."""
    command = ctx.command
    yield _usage(ctx, width)
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield "\n" + wrapped(paragraph, width)
    for title, rows in _groups(ctx).items():
        yield "\n" + typer.style(title, bold=True)
        yield definitions(rows, width)
    if command.epilog:
        yield "\n" + typer.style("Examples", bold=True)
        yield from (f"  {line}" for line in command.epilog.strip().splitlines())


def _groups(ctx: Any) -> dict[str, Rows]:
    """Arguments, groups of options, commands: titles, and names with what is said of them."""
    command = ctx.command
    options: dict[str, Rows] = {}
    params = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    arguments = [(_name(param), _about(param)) for param in params if _is_argument(param)]
    grouped = any(getattr(param, "rich_help_panel", None) not in (None, OUTPUT) for param in params)
    for param in params:
        if not _is_argument(param):  # --help has no group of its own
            title = (getattr(param, "rich_help_panel", None) or OUTPUT) if grouped else "Options"
            options.setdefault(title, []).append((_name(param), _about(param)))
    own = [title for title in options if title not in _ORDER]
    inner = [
        (name, inspect.cleandoc(one.help or "").split("\n\n")[0])
        for name, one in getattr(command, "commands", {}).items()
        if not one.hidden
    ]
    groups = {"Arguments": arguments, **{title: options.get(title, []) for title in (*own, *_ORDER)}, "Commands": inner}
    return {title: rows for title, rows in groups.items() if rows}


def wrapped(text: str, width: int, indent: str = "") -> str:
    """A paragraph in lines of `width` columns, broken between words alone."""
    words = " ".join(text.split())
    return textwrap.fill(words, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def definitions(rows: Rows, width: int) -> str:
    """Names on the left, what is said of them on the right; below, where a name is long."""
    most = min(_NAMES, width * 2 // 5)
    left = min(max(len(name) for name, _ in rows), most) + 2
    lines = []
    for name, text in rows:
        told = wrapped(text, width - left - 2).splitlines() or [""]
        head = "  " + typer.style(name, bold=True) + " " * (left - len(name))
        if len(name) > left - 2:
            lines.append(head.rstrip())
            head = " " * (left + 2)
        lines.append((head + told[0]).rstrip())
        lines += [" " * (left + 2) + line for line in told[1:]]
    return "\n".join(lines)


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _name(param: Any) -> str:
    """How a parameter is written: "-o, --output FILE", "PROMPT"."""
    if _is_argument(param):
        return param.metavar or param.name.upper()
    short = [name for name in param.opts if not name.startswith("--")]
    long = [name for name in param.opts if name.startswith("--")]
    return " ".join([", ".join(sorted(short) + long), *([param.metavar] if param.metavar else [])])


def _about(param: Any) -> str:
    """What is said of a parameter, and its default."""
    told = [param.help or ""]
    default, shown = param.default, param.show_default
    if isinstance(shown, str):
        told.append(f"[default: {shown}]")
    elif shown and default is not None and not isinstance(default, bool) and not callable(default):
        value = getattr(default, "value", default)
        told.append(f"[default: {value:g}]" if isinstance(value, float) else f"[default: {value}]")
    return " ".join(told)
