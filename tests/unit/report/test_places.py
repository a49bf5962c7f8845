"""Where reports go: refused first, whole or absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fpsgen import report
from fpsgen.errors import RenderError, UsageError
from tests.tools import bench_records
from tests.tools.calibration_records import record
from tests.tools.reports import write


@pytest.mark.parametrize("name", ["r.htm", "r", "absent/r.html", "file/r.html", "folder.html", "x" * 245 + ".html"])
def test_places_that_cannot_be_are_refused_first(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError) as refused:
        report.write({}, [], tmp_path / name)  # an empty record would fail as soon as it were used
    assert refused.value.hint
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UsageError):
        report.check_path(tmp_path / name)


def test_a_place_that_can_be_is_left_untouched(tmp_path: Path) -> None:
    report.check_path(tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_asking_for_a_place_costs_no_matplotlib(tmp_path: Path) -> None:
    asked = (
        "import sys, pathlib; from fpsgen import report; from fpsgen.report import compare, quality;"
        "report.check_path(pathlib.Path(sys.argv[1]));"
        "sys.exit('matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", asked, str(tmp_path / "r.html")], check=True)


@pytest.mark.parametrize("broken", ["write_bytes", "replace"])
def test_a_failing_write_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "r.html"
    path.write_text(last := '<meta name="generator" content="fpsgen calibrate">the last one')
    whole, calls = getattr(Path, broken), []

    def fails(self: Path, *arguments: Any) -> Any:
        calls.append(self)
        if len(calls) == 3:
            if broken == "write_bytes":
                whole(self, arguments[0][:10])
            raise OSError(28, "No space left on device")
        return whole(self, *arguments)

    monkeypatch.setattr(Path, broken, fails)
    with pytest.raises(RenderError, match="No space left"):
        write(record(), [], path)
    assert path.read_text() == last
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == (["r.html"] if broken == "write_bytes" else ["r-density.png", "r-error.png", "r.html"])
    for file in tmp_path.glob("*.png"):
        Image.open(file).load()  # raises where a part is missing


def test_a_page_that_is_no_report_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("mine")
    with pytest.raises(UsageError, match="fpsgen did not write it"):
        report.check_path(path)
    assert path.read_text() == "mine"


def test_a_report_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write(record(), [], path)
    before = path.read_bytes()
    write(record() | {"model": "another"}, [], path)
    assert path.read_bytes() != before


def test_a_report_of_one_command_replaces_one_of_another(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    for kind in (bench_records.compare, bench_records.attention, bench_records.quality):
        write(kind(), [], path)
        report.check_path(path)
    write(record(), [], path)
    assert b'content="fpsgen calibrate"' in path.read_bytes()[:1000]


@pytest.mark.parametrize("told", ["fpsgen", "fpsgen bench<", "other bench", ""])
def test_what_only_looks_like_a_report_is_kept(tmp_path: Path, told: str) -> None:
    path = tmp_path / "r.html"
    path.write_text(f'<meta name="generator" content="{told}">')
    with pytest.raises(UsageError, match="fpsgen did not write it"):
        report.check_path(path)


def test_somebodys_picture_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "own-frames-1.png").write_text("precious")
    (tmp_path / "page-mine.png").write_text("another name")
    with pytest.raises(UsageError, match=r"own-frames-1\.png is there without its page"):
        report.check_path(tmp_path / "own.html")
    report.check_path(tmp_path / "page.html")
