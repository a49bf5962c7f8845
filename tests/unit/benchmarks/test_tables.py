"""The pages in docs/ quote what lies in benchmarks/results/, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in tables.PAGES}


@pytest.mark.parametrize("page", TEXTS)
def test_its_tables_are_those_of_the_results(page: str) -> None:
    assert tables.rendered(TEXTS[page]) == TEXTS[page], "python -m benchmarks.tables makes them anew"


@pytest.mark.parametrize("name", tables.TABLES)
def test_there_is_a_table_where_there_are_results_and_no_other(name: str) -> None:
    pattern, _ = tables.TABLES[name]
    marked = [page for page, text in TEXTS.items() if f"<!-- table of benchmarks.tables: {name} -->" in text]
    assert len(marked) == bool(list(tables.RESULTS.glob(pattern)))


@pytest.mark.parametrize("changed", ["calibration.json", "denoising.json"])
def test_another_result_makes_another_page(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("calibration.json", "denoising.json"):
        (tmp_path / name).write_bytes((tables.RESULTS / name).read_bytes())
    record = json.loads((tables.RESULTS / changed).read_text())
    record["rows"][1]["error"] *= 2  # calibration's first row has no cost to be compared at
    (tmp_path / changed).write_text(json.dumps(record))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.rendered(TEXTS["calibrate.md"]) != TEXTS["calibrate.md"]


def test_a_mark_of_no_table() -> None:
    text = "<!-- table of benchmarks.tables: nothing -->\n<!-- end of table -->"
    with pytest.raises(ValueError, match="there is none"):
        tables.rendered(text)
