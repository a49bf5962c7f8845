"""Pages: Jinja's templates, filled from a record. A page has no script, loads nothing, and holds its pictures.

Everything that templates print is escaped.
"""

from __future__ import annotations

import base64
import functools
import shlex
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fpsgen.report import words

_PIXELS = 2  # of a picture for each pixel of the page: sharp on dense screens


def render(template: str, title: str, **facts: Any) -> str:
    """The page that a template of this package makes. facts: what its variables stand for."""
    return _environment().get_template(f"{template}.html.j2").render(title=title, **facts)


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = (words.number, words.decibels, words.percent, words.counted, words.span, words.sigmas,
            words.precise, words.duration, words.ratio, words.gigabytes)  # fmt: skip
    made.filters |= {function.__name__: function for function in (*numbers, isolated, data_url, shown_size, typed)}
    made.globals |= {"TIMES": words.TIMES, "DASH": words.DASH}
    return made


def isolated(value: object) -> Markup:
    """Kept from turning the direction of what stands around it: for prompts and names."""
    return Markup("<bdi>{}</bdi>").format(value)


def data_url(content: bytes, kind: str) -> str:
    """An address that holds what it leads to. kind: such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def shown_size(png: bytes) -> tuple[int, int]:
    """Width and height of a picture on the page, in pixels."""
    width, height = struct.unpack(">II", png[16:24])  # where every PNG has its size
    return width // _PIXELS, height // _PIXELS


def typed(command: Iterable[object]) -> str:
    """What was typed, such that it can be typed again."""
    return shlex.join(str(word) for word in command)
