"""What the pages of comparisons share: who is compared with whom, and whether a difference counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fpsgen.report import words
from fpsgen.tables import Cell, Table

CLEAR, SMALL = 5, 0.1  # pairs of runs that tell a small difference, and what is one


def others(record: dict[str, Any]) -> list[dict[str, Any]]:
    """All contenders but the reference; the page is about the first."""
    return [one for one in record["contenders"] if one["name"] != record["reference"]]


def reference(record: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in record["contenders"] if one["name"] == record["reference"])


def compared(record: dict[str, Any]) -> str:
    return f"{', '.join(one['label'] for one in others(record))} against {reference(record)['label']}"


def too_close(speedup: dict[str, Any]) -> bool:
    """Whether these runs cannot tell a speed-up from 1: some pairs lie on either side of it, or they are few, which may
    lie on one side by chance, and near it."""
    each, ratio = speedup["each"], speedup["median"]
    return min(each) <= 1 <= max(each) or (len(each) < CLEAR and abs(ratio - 1) < SMALL)


def sided(title: str, contenders: list[dict[str, Any]], rows: Mapping[str, Sequence[str | Cell]]) -> Table:
    """A table with a column for each contender. rows: cells by the row's name; a row without any is left out."""
    filled = ((name, *cells) for name, cells in rows.items() if cells)
    return Table.of_numbers(title, ["", *(one["label"] for one in contenders)], rows=filled)


def cosine(value: Any, error: Any) -> Cell:
    """The cosine of latents, and its distance from 1, which keeps its digits: of one clip, or means over many."""
    if isinstance(value, float):
        return Cell(f"{value:.6f}", notes=(f"1 {words.DASH} {words.number(error)}",))
    distance = words.number(error["mean"], half=error.get("ci95"))
    return Cell(f"{value['mean']:.6f}", notes=(f"1 {words.DASH} {distance}", f"worst {value['worst']:.6f}"))
