"""Where the record of a bench goes, and the report beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen import files
from fpsgen.cli.options import expand
from fpsgen.errors import Stopped, UsageError

if TYPE_CHECKING:
    from fpsgen.metrics import Pair


def places(output: Path, report: Path | None, no_report: bool) -> tuple[Path, Path | None]:
    """Where the record and the report go; UsageError, before any work, where they cannot."""
    from fpsgen.report import check_path

    if output.suffix != ".json":
        near = output.with_suffix(".json") if output.name else output / "bench.json"
        raise UsageError(f"-o {output}: a record is a .json file", hint=f"try -o {near}")
    try:
        if output.is_dir():
            raise UsageError(f"-o {output} is a folder", hint="name a .json file in it")
        if output.exists() and not output.is_file():
            raise UsageError(f"{output} is no regular file", hint="choose another -o")
        if output.exists() and not is_record(output):
            raise UsageError(f"{output} is there, and no bench wrote it", hint="choose another -o")
        files.check_writable(output)
    except OSError as fault:
        told = f"-o {files.shortened(output)} cannot be written: {fault.strerror or fault}"
        raise UsageError(told, hint="choose another -o") from None
    page = None if no_report else output.with_suffix(".html") if report is None else expand(report)
    if page is not None:
        check_path(page)
    return output, page


def is_record(path: Path) -> bool:
    """Whether a file is a record of a bench, which the next may replace."""
    with path.open("rb") as file:
        return re.match(rb'\{\s*"kind": "(compare|attention|quality)"', file.read(100)) is not None


def write(record: dict[str, Any], clips: Sequence[Pair], output: Path, page: Path | None) -> list[Path]:
    """The record, and its report; returns what was written."""
    files.write_json(output, record)
    if page is None:
        return [output]
    from fpsgen.report import bench as report

    try:
        return [output, *report.write(record, clips, page)]
    except KeyboardInterrupt:
        raise Stopped("stopped while the report was drawn", hint=f"the record is whole, in {output}") from None
