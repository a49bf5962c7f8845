"""Reports: pages that need nothing else, their pictures beside them.

`calibration`, `compare`, `quality`, `attention` and `training` each work out what one kind of page says beside its
record, and their namesakes in `pictures/` draw; `templates/` are the pages, and `page` fills them; `words` says
numbers. This file checks places and writes.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fpsgen import files
from fpsgen.errors import RenderError, UsageError, option
from fpsgen.printable import printable

if TYPE_CHECKING:
    from fpsgen.bench.record import BenchRecord
    from fpsgen.calibrate.record import CalibrationRecord
    from fpsgen.metrics import Pair
    from fpsgen.train.record import TrainRecord

    Record = BenchRecord | CalibrationRecord | TrainRecord

_OURS = re.compile(rb'<meta name="generator" content="fpsgen [a-z ]+">')
_NAMES = "error|density|frontier|stages|phases|steps|psnr|adherence|loss|quality"
_PICTURES = re.compile(rf"-({_NAMES}|frames-\d+|roof-\d+)\.png$")
MOST_PAIRS = 99  # what `check_path` tries a name for


def write(record: Record, pairs: Sequence[Pair], path: Path) -> list[Path]:
    """The page of a record at `path` (.html), and its pictures beside it in `<stem>-<name>.png`.

    pairs: clips to be seen beside the reference's. Returns all paths, the page first. Every file is whole or
    absent, and the page comes last. UsageError where `check_path` refuses, RenderError where the disk does, ValueError
    for frames of no use.
    """
    check_path(path)
    if len(pairs) > MOST_PAIRS:
        raise ValueError(f"{len(pairs)} pairs of clips are more than the {MOST_PAIRS} of a report")
    page, pictures = _drawn(record, pairs)
    contents = {path.with_name(f"{path.stem}-{name}.png"): png for name, png in pictures.items()}
    # Prompts can hold halves of characters, as undecodable arguments do; UTF-8 has none.
    contents[path] = page.encode("utf-8", "replace")
    _write(contents)
    return [path, *(file for file in contents if file != path)]


def _drawn(record: Record, pairs: Sequence[Pair]) -> tuple[str, dict[str, bytes]]:
    """The page and its pictures by name."""
    # Here and not above, so that to check a path costs no matplotlib.
    from fpsgen.report import attention, calibration, clips, compare, page, pictures, quality, training

    every = (attention, calibration, compare, quality, training)
    modules = {module.__name__.rpartition(".")[2]: module for module in every}
    kind = getattr(record, "kind", "calibration")
    with pictures.drawing.styled():
        drawn = getattr(pictures, kind).draw(record) | clips.draw(pairs)
    shown = clips.facts(pairs, getattr(record, "fps", 0)) if pairs else None  # of attention alone there are no clips
    return page.render(kind, record=record, pictures=drawn, pairs=shown, **modules[kind].facts(record)), drawn


def check_path(path: Path) -> None:
    """Refuse a report that could not be written, before any work is done for it."""
    if path.suffix.lower() != ".html":
        raise UsageError(f"{path} is no name of a report", hint="end it in .html")
    there = files.check_place(path, "report.html", "report")
    with files.refused(path, f"choose another place or name with {option('report')}", "report"):
        if there and not _OURS.search(path.read_bytes()[:1000]):
            raise UsageError(f"{path} exists, and fpsgen did not write it", hint=f"choose another {option('report')}")
        others = [file for file in path.parent.glob(f"{glob.escape(path.stem)}-*") if _PICTURES.search(file.name)]
        if not there and others:
            message = f"{min(others)} is there without its page, and would be replaced"
            raise UsageError(message, hint=f"choose another {option('report')}, or remove it")
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"{path.stem}-frames-{MOST_PAIRS}.png").lstat()  # tells of a name too long


def _write(contents: dict[Path, bytes]) -> None:
    """Write all under hidden names, then rename, in order: a full disk is noticed before the first has its name. The
    page comes last."""
    page = list(contents)[-1]
    try:
        with contextlib.ExitStack() as hidden:
            partial = {path: hidden.enter_context(files.beside(path)) for path in contents}
            for path, data in contents.items():
                partial[path].write_bytes(data)
            for path, written in partial.items():
                written.replace(path.resolve())  # a link stays one
    except OSError as fault:
        message = f"the report {printable(page, 100)} could not be written: {fault.strerror or fault}"
        raise RenderError(message, hint="make room on the disk" if files.is_full(fault) else None) from None
