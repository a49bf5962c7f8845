"""Where a result that took long goes (the record of a bench, a calibrated preset), and the report beside it."""

from __future__ import annotations

import functools
import json
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fpsgen import files
from fpsgen.cli import errors
from fpsgen.cli.options import expand
from fpsgen.cli.output import Output
from fpsgen.errors import FpsgenError, Stopped, UsageError
from fpsgen.printable import printable

if TYPE_CHECKING:
    from fpsgen.bench.record import BenchRecord
    from fpsgen.metrics import Pair


def result_places(output: Path | str, report: Path | None, no_report: bool, out: Output) -> tuple[Path, Path | None]:
    """Where a bench's record and its report go, the latter None for nowhere. output: as the user gave it, or a default
    name (text), which a number is added to where it is taken.

    Says what is replaced. UsageError, before any work, where nothing can be written there.
    """
    record = files.free(Path(output), ".html") if isinstance(output, str) else expand(output)
    if record.suffix != ".json":
        near = record.with_suffix(".json") if record.name else record / "bench.json"
        raise UsageError(f"-o {printable(record)}: a record is a .json file", hint=f"try -o {printable(near)}")
    if files.check_place(record, "bench.json"):
        if not is_record(record):
            raise UsageError(f"{printable(record)} exists, and no bench wrote it", hint="choose another -o")
        out.note(f"{printable(record)} is replaced: the record of an earlier bench")
    return record, report_place(record, report, no_report)


def report_place(output: Path, report: Path | None, no_report: bool) -> Path | None:
    """Where the report goes, None for nowhere; UsageError where it cannot."""
    from fpsgen.report import check_path

    page = None if no_report else output.with_suffix(".html") if report is None else expand(report)
    if page is not None:
        check_path(page)
    return page


def is_record(path: Path) -> bool:
    """Whether a file is a record of a bench, which the next may replace."""
    with files.open_regular(path) as file:
        return re.match(rb'\{\s*"kind": "(compare|attention|quality)"', file.read(100)) is not None


@dataclass
class Kept:
    """What of a result is on disk, by what the result's object calls it; fault: why, where something is not."""

    files: dict[str, Path | None]
    fault: BaseException | None = None


def keep(kind: str, output: Path, text: str, draw: Callable[[], list[Path]] | None, hint: str) -> Kept:
    """Write a result, then its report by `draw`. What goes wrong is kept for `deliver`: by now the result is worth
    hours, and has to be told first. kind: of the result's file; hint: what helps where the disk refuses it."""
    kept = Kept({kind: None, "report": None})
    try:
        files.write_text(output, text)
        kept.files[kind] = output
        if draw is not None:
            kept.files["report"] = draw()[0]
    except OSError as fault:
        told = f"{printable(output, 100)} cannot be written: {fault.strerror or fault}"
        kept.fault = FpsgenError(told, hint)
    except KeyboardInterrupt:
        kept.fault = Stopped(f"stopped while the {'report was drawn' if kept.files[kind] else 'result was written'}")
    except Exception as fault:
        kept.fault = fault
    return kept


def keep_record(record: BenchRecord, clips: Sequence[Pair], output: Path, page: Path | None) -> Kept:
    from fpsgen import report

    hint = "make room there, or choose another -o"
    if record.kind == "quality":
        hint += ", and run the same command again: every clip is kept"
    draw = None if page is None else functools.partial(report.write, record, clips, page)
    return keep("record", output, json.dumps(record.as_json(), indent=2) + "\n", draw, hint)


def deliver(out: Output, kept: Kept, result: dict[str, Any]) -> None:
    """The end of a command: where its files are, or its object with --json. Where one could not be written, the object
    says so, too, and the command ends with the reason."""
    places = {name: None if path is None else str(path) for name, path in kept.files.items()}
    written = [place for place in places.values() if place]
    if kept.fault is None:
        out.result("\n".join(written), result | places, copied=True)
        return
    message, hint, code = errors.explain(kept.fault)
    if written:
        message = f"{printable(written[0])} is written, but then: {message}"
    if written or out.json:
        out.result(
            "\n".join(written), result | places | {"unwritten": message, "hint": hint, "exit_code": code}, copied=True
        )
    if errors.show_tracebacks:
        traceback.print_exception(kept.fault)
    Output().error(message, hint, code)  # on stderr alone: standard output has its one object
    raise typer.Exit(code)
