"""What the pages of comparisons share: who is compared with whom, and whether a difference counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fpsgen.bench.record import CompareRecord, ContenderRecord, Fidelity, MeanFidelity, QualityRecord, SpeedUp
from fpsgen.report import words
from fpsgen.tables import Cell, Table

CLEAR, SMALL = 5, 0.1  # pairs of runs that tell a small difference, and what is one


def compared(record: CompareRecord | QualityRecord) -> str:
    return f"{', '.join(one.label for one in record.others)} against {record.base.label}"


def too_close(speedup: SpeedUp) -> bool:
    """Whether these runs cannot tell a speed-up from 1: some pairs lie on either side of it, or they are few, which may
    lie on one side by chance, and near it."""
    each = speedup.each
    return min(each) <= 1 <= max(each) or (len(each) < CLEAR and abs(speedup.median - 1) < SMALL)


def sided(title: str, contenders: Sequence[ContenderRecord], rows: Mapping[str, Sequence[str | Cell]]) -> Table:
    """A table with a column for each contender. rows: cells by the row's name; a row without any is left out."""
    filled = ((name, *cells) for name, cells in rows.items() if cells)
    return Table.of_numbers(title, ["", *(one.label for one in contenders)], rows=filled)


def cosine(near: Fidelity | MeanFidelity) -> Cell:
    """The cosine of latents, and its distance from 1, which keeps its digits: of one clip, or means over many."""
    if isinstance(near, Fidelity):
        return Cell(f"{near.latent_cosine:.6f}", notes=(f"1 {words.DASH} {words.number(near.latent_error)}",))
    cosine, error = near.latent_cosine, near.latent_error
    distance = words.number(error.mean, half=error.ci95)
    return Cell(f"{cosine.mean:.6f}", notes=(f"1 {words.DASH} {distance}", f"worst {cosine.worst:.6f}"))
