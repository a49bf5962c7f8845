"""Tables as values: one of them serves a terminal (`cli/tables`), a page (`report/page`) and a Markdown document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Column:
    """right: aligned so, for numbers. On a terminal: the larger `spare`, the sooner the column is left out (0: never);
    `prose` may be broken between words."""

    head: str
    right: bool = False
    spare: int = 0
    prose: bool = False


@dataclass(frozen=True)
class Cell:
    """Plain text, escaped by whoever draws it. notes: what belongs to it: small lines below it on a page, in brackets
    behind it elsewhere."""

    text: str
    style: str = ""  # or bold, or dim
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.text} ({'; '.join(self.notes)})" if self.notes else self.text


@dataclass
class Table:
    """Rows under named columns; without `heads` the columns' names are not shown."""

    title: str = ""
    heads: bool = True
    columns: list[Column] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)

    def row(self, *cells: str | Cell) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"a row of {len(cells)} cells in a table of {len(self.columns)} columns")
        self.rows.append([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells])

    @classmethod
    def of_numbers(
        cls, title: str, heads: Iterable[str], texts: Sequence[str] = (), rows: Iterable[Iterable[str | Cell]] = ()
    ) -> Table:
        """The first column and those in `texts` hold words, the others numbers."""
        columns = [Column(head, right=number > 0 and head not in texts) for number, head in enumerate(heads)]
        table = cls(title, columns=columns)
        for row in rows:
            table.row(*row)
        return table

    def markdown(self) -> str:
        """The table alone, without its title."""
        rule = ["---:" if column.right else "---" for column in self.columns]
        lines = [[column.head for column in self.columns], rule, *([str(cell) for cell in row] for row in self.rows)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
