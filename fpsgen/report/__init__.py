"""The report of `fpsgen calibrate`: one page that needs nothing else, and its pictures beside it.

`words` says numbers, `pictures` draws, `page` is the HTML, this file checks places and writes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpsgen import files
from fpsgen.errors import RenderError, UsageError

_MOST_PAIRS = 99  # what `check_path` tries a name for


@dataclass(frozen=True)
class Pair:
    """One clip twice: in BF16 and by the chosen schedule. psnr: in dB, None where not measured.

    bf16, ours: uint8 [frames, height, width, 3].
    """

    prompt: str
    psnr: float | None
    bf16: np.ndarray
    ours: np.ndarray


def write(record: dict[str, Any], frames: Sequence[Pair], path: Path) -> list[Path]:
    """The page at `path` (.html) and its pictures beside it, in `<stem>-*.png`; returns all paths, the page first.

    record: what the calibration measured and chose. Every file is whole or absent, and the page comes last.
    UsageError where `check_path` refuses, RenderError where the disk does, ValueError for frames of no use.
    """
    check_path(path)
    if len(frames) > _MOST_PAIRS:
        raise ValueError(f"{len(frames)} pairs of clips are more than the {_MOST_PAIRS} of a report")
    # Here and not above, so that `check_path` costs no import of matplotlib.
    from fpsgen.report import page, pictures

    drawn = pictures.draw(record, frames)
    text = page.compose(record, [(pair.prompt, pair.psnr) for pair in frames], drawn)
    files = {path.with_name(f"{path.stem}-{name}.png"): png for name, png in drawn.items()}
    # Prompts can hold halves of characters, as undecodable arguments do; UTF-8 has none.
    files[path] = text.encode("utf-8", "replace")
    _place(files)
    return [path, *(file for file in files if file != path)]


def _is_ours(path: Path) -> bool:
    """Whether a file is a report, which the next one may replace."""
    with path.open("rb") as file:
        return b'content="fpsgen calibrate"' in file.read(1000)


def check_path(path: Path) -> None:
    """Refuse a report that could not be written, before any work is done for it."""
    if path.suffix.lower() != ".html":
        raise UsageError(f"{path} is no name of a report", hint="end it in .html")
    folder = path.parent
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder", hint=f"name a file, such as {path / 'report.html'}")
        if not folder.exists():
            hint = f"mkdir -p {shlex.quote(str(folder))}"
            raise UsageError(f"the folder {folder} does not exist", hint)
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder", hint="choose another place for the report")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no regular file", hint="choose another name for the report")
        if path.exists() and not _is_ours(path):
            raise UsageError(f"{path} is there, and no calibration wrote it", hint="choose another --report")
        if path.exists() and not os.access(path, os.W_OK):
            raise UsageError(f"{path} is write-protected", hint="choose another name for the report")
        with contextlib.suppress(FileNotFoundError):
            path.with_name(f"{path.stem}-frames-{_MOST_PAIRS}.png").lstat()  # tells of a name too long
        files.check_writable(path)
    except OSError as fault:
        message = f"{files.shortened(path)} cannot be written: {fault.strerror or fault}"
        raise UsageError(message, hint="choose another place or name for the report") from None


def _place(contents: dict[Path, bytes]) -> None:
    """Write all under hidden names, then rename, in order: a full disk is noticed before the first has its name."""
    partial = {path: files.beside(path) for path in contents}
    try:
        for path, data in contents.items():
            partial[path].write_bytes(data)
        for path, written in partial.items():
            written.replace(path.resolve())  # a link stays one
    except OSError as fault:
        message = f"the report {files.shortened(path)} could not be written: {fault.strerror or fault}"
        raise RenderError(message, hint="is there room on the disk?") from None
    finally:
        for written in partial.values():
            with contextlib.suppress(OSError):  # the disk's first complaint is the one to hear
                written.unlink(missing_ok=True)
