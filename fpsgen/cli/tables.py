"""Tables that fit their terminal: the one rule for all commands.

A cell is never folded. Where the terminal is too narrow, the columns that matter least are left out, and a line says
which; columns that all matter go on below. Prose is broken between words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import rich.table
from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from fpsgen.tables import Table

_GAP = 2  # columns of a terminal between two of a table
_PROSE = 24  # columns that prose needs to be readable


@dataclass(frozen=True)
class Fitted:
    """What rich prints of a table. Cells are plain text: a name may hold brackets."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.table.title:
            yield Text(self.table.title, "italic")
        kept, left_out = self._fitting(options.max_width)
        for part in self._parts(kept, options.max_width):
            yield self._drawn(part)
        if left_out:
            names = ", ".join(self.table.columns[index].head for index in left_out)
            yield Text(f"left out here: {names} (a wider terminal or --json shows all)", "dim")

    def _fitting(self, width: int) -> tuple[list[int], list[int]]:
        """Columns that stay, and those that are left out."""
        spare = [column.spare for column in self.table.columns]
        kept = list(range(len(spare)))
        while self._needs(kept) > width and (loose := [index for index in kept if spare[index]]):
            kept.remove(max(loose, key=lambda index: (spare[index], index)))
        left_out = [index for index in range(len(spare)) if index not in kept]
        for index in sorted(left_out, key=lambda index: spare[index]):
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
        column = self.table.columns[index]
        cells = [Text(str(row[index])).cell_len for row in self.table.rows]
        widest = max([len(column.head) if self.table.heads else 0, *cells])
        return min(widest, _PROSE) if column.prose else widest

    def _drawn(self, indexes: list[int]) -> rich.table.Table:
        drawn = rich.table.Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=self.table.heads)
        for index in indexes:
            column = self.table.columns[index]
            drawn.add_column(
                Text(column.head),
                justify="right" if column.right else "left",
                no_wrap=not column.prose,
                overflow="fold",  # of a word longer than the column: a path is shown whole
                min_width=self._width(index),
            )
        for row in self.table.rows:
            drawn.add_row(*(Text(str(row[index]), row[index].style) for index in indexes))
        return drawn
