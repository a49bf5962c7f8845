"""The README quotes what lies in benchmarks/results/, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import readme

TEXT = readme.README.read_text(encoding="utf-8")


def test_its_tables_are_those_of_the_results() -> None:
    assert readme.rendered(TEXT) == TEXT, "python -m benchmarks.readme makes them anew"


@pytest.mark.parametrize("name", readme.TABLES)
def test_there_is_a_table_where_there_are_results_and_no_other(name: str) -> None:
    pattern, _ = readme.TABLES[name]
    assert (f"<!-- table of benchmarks.readme: {name} -->" in TEXT) == bool(list(readme.RESULTS.glob(pattern)))


def test_another_result_makes_another_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads((readme.RESULTS / "calibration.json").read_text())
    record["rows"][0]["ratio"] *= 2
    (tmp_path / "calibration.json").write_text(json.dumps(record))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    told = readme.rendered(TEXT.partition("## Bench")[0])
    assert told != TEXT.partition("## Bench")[0]


def test_a_mark_of_no_table() -> None:
    text = "<!-- table of benchmarks.readme: nothing -->\n<!-- end of table -->"
    with pytest.raises(ValueError, match="there is none"):
        readme.rendered(text)
