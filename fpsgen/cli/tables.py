"""Tables that fit their terminal: the one rule for all commands.

A cell is never folded. Where the terminal is too narrow, the columns that matter least are left out, and a line says
which; columns that all matter go on below. Prose is broken between words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

_GAP = 2  # columns of a terminal between two of a table
_PROSE = 24  # columns that prose needs to be readable


@dataclass(frozen=True)
class _Column:
    head: str
    right: bool
    spare: int
    prose: bool


@dataclass
class Columns:
    """Rows of plain text (no markup: a name may hold brackets), or of rich's Text."""

    title: str = ""
    head: bool = True
    _columns: list[_Column] = field(default_factory=list)
    _rows: list[list[Text]] = field(default_factory=list)

    def column(self, head: str, *, right: bool = False, spare: int = 0, prose: bool = False) -> None:
        """spare: the larger, the sooner the column is left out; 0 never is."""
        self._columns.append(_Column(head, right, spare, prose))

    def row(self, *cells: str | Text) -> None:
        self._rows.append([cell if isinstance(cell, Text) else Text(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.title:
            yield Text(self.title, "italic")
        kept, left_out = self._fitting(options.max_width)
        for part in self._parts(kept, options.max_width):
            yield self._drawn(part)
        if left_out:
            names = ", ".join(self._columns[index].head for index in left_out)
            yield Text(f"left out here: {names} (a wider terminal or --json has it all)", "dim")

    def _fitting(self, width: int) -> tuple[list[int], list[int]]:
        """Columns that stay, and those that are left out."""
        kept = list(range(len(self._columns)))
        while self._needs(kept) > width and (spare := [index for index in kept if self._columns[index].spare]):
            kept.remove(max(spare, key=lambda index: (self._columns[index].spare, index)))
        left_out = [index for index in range(len(self._columns)) if index not in kept]
        for index in sorted(left_out, key=lambda index: self._columns[index].spare):
            if self._needs([*kept, index]) <= width:  # a broader one, that went after it, has made room
                kept = sorted([*kept, index])
        return kept, [index for index in left_out if index not in kept]

    def _parts(self, kept: list[int], width: int) -> Iterator[list[int]]:
        """Columns that stand beside each other, the first in every part."""
        part = kept[:1]
        for index in kept[1:]:
            if len(part) > 1 and self._needs([*part, index]) > width:
                yield part
                part = kept[:1]
            part.append(index)
        yield part

    def _needs(self, indexes: Iterable[int]) -> int:
        return sum(self._width(index) + _GAP for index in indexes) - _GAP

    def _width(self, index: int) -> int:
        column = self._columns[index]
        cells = [row[index].cell_len for row in self._rows]
        widest = max([len(column.head) if self.head else 0, *cells])
        return min(widest, _PROSE) if column.prose else widest

    def _drawn(self, indexes: list[int]) -> Table:
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=self.head)
        for index in indexes:
            column = self._columns[index]
            table.add_column(
                Text(column.head),
                justify="right" if column.right else "left",
                no_wrap=not column.prose,
                overflow="fold",  # of a word longer than the column: a path is shown whole
                min_width=self._width(index),
            )
        for row in self._rows:
            table.add_row(*(row[index] for index in indexes))
        return table
