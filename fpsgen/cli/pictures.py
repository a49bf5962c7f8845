"""Previews for whoever waits: in a terminal that shows pictures, else in a file beside the video."""

from __future__ import annotations

import base64
import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import ControlType
from rich.segment import Segment

from fpsgen import files
from fpsgen.cli.output import Output
from fpsgen.errors import RenderError
from fpsgen.events import Event, Preview, Written
from fpsgen.printable import printable

if TYPE_CHECKING:
    import numpy as np

Protocol = Literal["kitty", "iterm"]
_ROWS = 12  # of a terminal, for a picture
_CHUNK = 4096  # characters, by kitty's protocol


def protocol(environment: Mapping[str, str]) -> Protocol | None:
    """How a terminal is given pictures, by what it says of itself in the environment; None where it is not known to
    show any. Under tmux and screen, which pass on neither, there are none."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return None


def escapes(png: bytes, how: Protocol) -> str:
    """What a terminal is sent to show a PNG, `_ROWS` high."""
    data = base64.b64encode(png).decode("ascii")
    if how == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(png)};height={_ROWS}:{data}\a"
    # q=2: it answers nothing, which would be typed into the next prompt.
    parts = [data[begin : begin + _CHUNK] for begin in range(0, len(data), _CHUNK)]
    heads = [f"a=T,f=100,q=2,r={_ROWS},", *[""] * (len(parts) - 1)]
    more = [1] * (len(parts) - 1) + [0]
    return "".join(f"\x1b_G{head}m={m};{part}\x1b\\" for head, m, part in zip(heads, more, parts, strict=True))


class _Picture:
    """Rows of a terminal with a picture, above the bar; rich must not count its characters."""

    def __init__(self, codes: str):
        self._codes = codes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self._codes, None, [(ControlType.BELL,)])
        yield Segment.line()


@contextlib.contextmanager
def shown(out: Output) -> Iterator[Callable[[Event], None]]:
    """Shows previews until the block ends; what cannot be shown costs a note, and nothing else."""
    how = protocol(os.environ) if out.shows_progress else None
    places: dict[Path, Path | None] = {}

    def show(event: Event) -> None:
        if isinstance(event, Written) and (place := places.get(event.plan.request.output)):
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
        if not isinstance(event, Preview):
            return
        if how:
            out.console.print(_Picture(escapes(_png(event.pixels), how)), end="")
            out.detail(f"preview after step {event.done} of {event.total}")
            return
        if event.output not in places:
            places[event.output] = files.free(event.output.with_name(f"{event.output.stem}.preview.png"))
            if len(places) == 1:
                out.note(f"a preview is in {printable(places[event.output])} while the video is made")
        if place := places[event.output]:
            from fpsgen.video import write_picture

            try:
                write_picture(event.pixels, place, "the preview cannot be written")
            except RenderError as fault:
                out.note(f"{fault}")
                places[event.output] = None
                with contextlib.suppress(OSError):  # of an earlier step
                    place.unlink(missing_ok=True)

    try:
        yield show
    finally:
        for place in filter(None, places.values()):
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()
