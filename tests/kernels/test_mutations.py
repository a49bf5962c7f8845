"""mutations.md is of today's sources and faults; who edits a kernel runs `python -m tests.kernels.mutations` again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import host
from tests.kernels.faults import (
    FAULTS,
    PROLOGUE,
    TILE,
    Fault,
    digest,
    of_attention,
    of_elementwise,
    of_lists,
    of_prologue,
    of_select,
)

TABLE = Path(__file__).with_name("mutations.md")
AGAIN = "run python -m tests.kernels.mutations --out tests/kernels/mutations.md"


@pytest.mark.parametrize("fault", FAULTS.values(), ids=lambda fault: fault.name)
def test_each_fault_is_an_edit(fault: Fault) -> None:
    file = PROLOGUE if fault.file == TILE else fault.file
    assert fault.source() != (host.SOURCES / file).read_text()


def test_names_and_faults_are_there_once() -> None:
    made = *of_attention(), *of_lists(), *of_prologue(), *of_select(), *of_elementwise()
    assert len(made) == len(FAULTS)  # by name
    assert len({fault.source() for fault in FAULTS.values()}) == len(FAULTS)


def test_the_table_is_of_today() -> None:
    page = TABLE.read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert [(row[0], row[1]) for row in rows] == [(fault.file, fault.name) for fault in FAULTS.values()], AGAIN
    assert digest() in page, AGAIN
    assert "**none**" not in page


def test_a_part_is_no_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.kernels.mutations", "--only", "q", "--out", tmp_path / "table.md"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=host.SOURCES.parent)
    assert found.returncode == 2
    assert "--only leaves faults out, and --out is the table of all" in found.stderr
    assert not list(tmp_path.iterdir())
