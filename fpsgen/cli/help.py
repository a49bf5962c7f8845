"""How a command's help looks: plain text in two columns, at any width. No word is split, no example is broken; options
stand in groups (their `rich_help_panel`).
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

import typer

WIDEST, NARROWEST = 100, 16  # columns: longer lines are hard to follow, and shorter ones hold no word
_NAMES = 26  # columns for names at most; a longer one has its help below
# Groups of options in this order; a command's own stand before them.
_TITLES = (
    "Checkpoints and checks",
    "Measuring",
    "Video",
    "Many videos",
    "Sampling",
    "Parts of the model",
    "Output",
    "Machine",
)
_ORDER = {title: place for place, title in enumerate(_TITLES, 1)}


def text(ctx: Any) -> str:
    """The whole help of a command."""
    return "\n".join(_blocks(ctx, width()))


def usage(ctx: Any) -> str:
    """The first lines of a command's help."""
    command = ctx.command
    pieces = ["[OPTIONS]"]
    pieces += [_name(one) if one.required else f"[{_name(one)}]" for one in command.params if _is_argument(one)]
    if getattr(command, "commands", None):
        also = [f"or {ctx.command_path} COMMAND"] if len(pieces) > 1 else []
        pieces += also or ["[COMMAND]" if command.invoke_without_command else "COMMAND"]
    return wrapped(f"Usage: {ctx.command_path} {' '.join(pieces)}", width(), "       ")


def width() -> int:
    return max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))


def _blocks(ctx: Any, columns: int) -> Iterator[str]:
    """The parts of a help, from top to bottom."""
    command = ctx.command
    yield usage(ctx)
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield "\n" + wrapped(paragraph, columns)
    for title, rows in _groups(ctx).items():
        yield "\n" + typer.style(title, bold=True)
        yield definitions(rows, columns)
    if command.epilog:
        yield "\n" + typer.style("Examples", bold=True)
        yield from (f"  {line}" for line in command.epilog.strip().splitlines())


def _groups(ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Arguments, groups of options, commands: titles, and names with what is said of them."""
    params = [param for param in ctx.command.get_params(ctx) if not getattr(param, "hidden", False)]
    options: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        if not _is_argument(param):  # --help has no group of its own
            title = getattr(param, "rich_help_panel", None) or "Output"
            options.setdefault(title, []).append((_name(param), _about(param)))
    if len(options) == 1:
        options = {"Options": options.pop("Output")}
    inner = getattr(ctx.command, "commands", {}).items()
    groups = {
        "Arguments": [(_name(param), _about(param)) for param in params if _is_argument(param)],
        **{title: options[title] for title in sorted(options, key=lambda title: _ORDER.get(title, 0))},
        "Commands": [(name, inspect.cleandoc(one.help or "").split("\n\n")[0]) for name, one in inner],
    }
    return {title: rows for title, rows in groups.items() if rows}


def wrapped(text: str, columns: int, indent: str = "") -> str:
    """A paragraph in lines of so many columns, broken between words alone."""
    words = " ".join(text.split())
    return textwrap.fill(words, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def definitions(rows: list[tuple[str, str]], columns: int) -> str:
    """Names on the left, what is said of them on the right; below, where a name is long."""
    left = min(max(len(name) for name, _ in rows), _NAMES, columns * 2 // 5) + 4
    lines = []
    for name, about in rows:
        head, margin = "  " + typer.style(name, bold=True), " " * (left - 2 - len(name))
        told = textwrap.indent(wrapped(about, columns - left), " " * left)
        lines += [head + margin + told[left:]] if len(name) <= left - 4 else [head, told]
    return "\n".join(lines)


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _name(param: Any) -> str:
    """How a parameter is written: "-o, --output FILE", "PROMPT"."""
    if _is_argument(param):
        return param.metavar or param.name.upper()
    names = sorted((*param.opts, *param.secondary_opts), key=lambda name: name.startswith("--"))
    return " ".join([", ".join(names), *([param.metavar] if param.metavar else [])])


def _about(param: Any) -> str:
    """What is said of a parameter, and its default."""
    default = getattr(param.default, "value", param.default)
    if isinstance(param.show_default, str):
        default = param.show_default
    elif not param.show_default or isinstance(default, bool) or callable(default):
        default = None
    shown = "" if default is None else f"[default: {f'{default:g}' if isinstance(default, float) else default}]"
    return f"{param.help or ''} {shown}".strip()
