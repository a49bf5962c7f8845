"""Tables on terminals of any width: nothing is folded, and what is left out is said."""

from __future__ import annotations

import io
from functools import cache

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fpsgen.cli import app
from fpsgen.cli.tables import Fitted
from fpsgen.tables import Cell, Column, Table


def drawn(table: Table, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(Fitted(table))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def example() -> Table:
    table = Table()
    table.columns.append(Column("name"))
    table.columns.append(Column("size", right=True, spare=1))
    table.columns.append(Column("where", spare=2))
    table.row("a [red] cat", "12 MB", "/a/long/folder")
    table.row("dog", "3 GB", Cell("/b", "dim"))
    return table


def test_all_columns_are_there_where_they_fit() -> None:
    assert drawn(example(), 34) == [
        "name          size  where",
        "a [red] cat  12 MB  /a/long/folder",
        "dog           3 GB  /b",
    ]


def test_the_columns_that_matter_least_go_first_and_are_named() -> None:
    assert drawn(example(), 33) == [
        "name          size",
        "a [red] cat  12 MB",
        "dog           3 GB",
        "left out here: where (a wider",
        "terminal or --json shows all)",
    ]
    assert drawn(example(), 17)[:3] == ["name", "a [red] cat", "dog"]


def test_a_narrow_column_stays_where_only_a_broad_one_has_to_go() -> None:
    table = Table()
    table.columns.append(Column("name"))
    table.columns.append(Column("size", spare=2))
    table.columns.append(Column("where", spare=1))
    table.row("cat", "1 MB", "/a/long/folder")
    assert drawn(table, 19)[:2] == ["name  size", "cat   1 MB"]


def test_columns_that_all_matter_go_on_below_with_the_first() -> None:
    table = Table("Seconds")
    table.columns.append(Column(""))
    for name in ("fast", "bf16", "diffusers"):
        table.columns.append(Column(name, right=True))
    table.row("total", "1.00", "2.00", "3.00")
    assert drawn(table, 18) == [
        "Seconds",
        "       fast  bf16", "total  1.00  2.00",
        "       diffusers", "total       3.00",
    ]  # fmt: skip


def test_prose_is_broken_between_words() -> None:
    table = Table(heads=False)
    table.columns.append(Column(""))
    table.columns.append(Column("", prose=True))
    table.row("plan", "as long as it takes to be broken twice, between words")
    lines = drawn(table, 30)
    assert len(lines) == 3
    assert " ".join(" ".join(lines).split()) == "plan as long as it takes to be broken twice, between words"


def test_what_belongs_to_a_cell_stands_behind_it() -> None:
    table = Table()
    table.columns.append(Column(""))
    table.columns.append(Column("seconds", right=True))
    table.row("total", Cell("1.00", notes=("0.90 to 1.10", "few")))
    assert drawn(table, 50)[1].endswith("1.00 (0.90 to 1.10; few)")
    assert table.markdown() == "|  | seconds |\n| --- | ---: |\n| total | 1.00 (0.90 to 1.10; few) |\n"


@cache
def listed(command: str, columns: int) -> list[str]:
    return CliRunner().invoke(app, [command], env={"COLUMNS": str(columns)}).stdout.splitlines()


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", ["presets", "kernels", "models"])
def test_a_list_fits_its_terminal_and_folds_no_name(command: str, columns: int) -> None:
    narrow, wide = listed(command, columns), listed(command, 999)
    names = [line.split("  ")[0] for line in wide if "  " in line]
    rows = [line for line in narrow if line.split("  ")[0] in names]
    assert [line.split("  ")[0] for line in rows] == names
    assert max(map(len, rows)) <= columns
