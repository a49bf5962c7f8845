"""What all pages share: head and foot, escaping, figures, tables, lists. A page has no script and loads nothing.

`text` and `prompt` escape what comes from outside; all else here takes HTML, which is theirs or the page's own.
"""

from __future__ import annotations

import base64
import html
import shlex
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fpsgen.report.drawing import SCALE

_LEAST_WIDTH = 0.8  # a picture shrinks so far on a narrow screen, then it scrolls: smaller words could not be read

GENERATOR = '<meta name="generator" content="fpsgen {command}">'
# The policy lets the page load nothing, whatever a prompt managed to say.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{generator}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:;
 style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
"""
_FOOT = "</main>\n</body>\n</html>\n"
_STYLE = Path(__file__).with_name("style.css")


def page(command: str, title: str, parts: Iterable[str]) -> str:
    """A whole page. command: which of fpsgen's wrote it; title: as it comes, escaped here."""
    head = _HEAD.format(
        generator=GENERATOR.format(command=command), title=text(title), style=_STYLE.read_text(encoding="utf-8")
    )
    return "".join([head, *parts, _FOOT])


def text(value: object) -> str:
    """Escaped."""
    return html.escape(str(value))


def prompt(value: object) -> str:
    """Escaped, and kept from turning the direction of what stands around it: for prompts, and for names."""
    return f"<bdi>{text(value)}</bdi>"


def data(kind: str, content: bytes) -> str:
    """An address that holds what it leads to. kind: such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def figure(png: bytes, alt: str, caption: str) -> str:
    """A picture under its caption, at its own size; on narrow screens smaller and in a box that scrolls.

    alt: what it shows, for who cannot see it; up to its first colon, the picture's name.
    """
    width, height = (side // SCALE for side in struct.unpack(">II", png[16:24]))  # where every PNG has its size
    return (
        f"<figure>\n<figcaption>{caption}</figcaption>\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(alt.split(":")[0])}">'
        f'<img src="{data("image/png", png)}" alt="{text(alt)}" width="{width}" height="{height}" '
        f'style="max-width: {width}px; min-width: {int(width * _LEAST_WIDTH)}px"></div>\n</figure>\n'
    )


def definitions(rows: Mapping[str, str]) -> str:
    """A list of words and what belongs to each; an empty one is left out."""
    entries = "".join(f"<dt>{name}</dt><dd>{value}</dd>\n" for name, value in rows.items() if value)
    return f"<dl>\n{entries}</dl>\n"


def listed(values: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{value}</li>' for value in values)}</ul>"


def table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """A table in a box that scrolls, its first column in place. name: for who cannot see it; left: columns of words."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ["" if column in left else ' class="figure"' for column in range(1, len(row))]
        first = f'<th scope="{"col" if tag == "th" else "row"}">{row[0]}</th>'
        return first + "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, row[1:], strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(name)}">\n<table>\n'
        f"<thead><tr>{cells('th', heads)}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def command(given: Sequence[object]) -> str:
    """What was typed, such that it can be typed again."""
    return f'<pre class="command">{text(shlex.join(str(word) for word in given))}</pre>\n'
