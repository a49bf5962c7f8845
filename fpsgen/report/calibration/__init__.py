"""The report of `fpsgen calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpsgen.metrics import Pair
from fpsgen.report import MOST_PAIRS, check_path, place


def write(record: dict[str, Any], pairs: Sequence[Pair], path: Path) -> list[Path]:
    """The page at `path` (.html) and its pictures beside it; returns all paths, the page first. See `place`.

    record: what the calibration measured and chose. UsageError where `check_path` refuses, RenderError where the disk
    does, ValueError for frames of no use.
    """
    check_path(path)
    if len(pairs) > MOST_PAIRS:
        raise ValueError(f"{len(pairs)} pairs of clips are more than the {MOST_PAIRS} of a report")
    # Here and not above, so that to import this costs no matplotlib.
    from fpsgen.report.calibration import page, pictures

    drawn = pictures.draw(record, pairs)
    return place(path, page.compose(record, pairs, drawn), drawn)
