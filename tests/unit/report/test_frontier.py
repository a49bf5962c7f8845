"""The calibration's schedules: which of them the page names, and in what the picture of them may differ."""

from __future__ import annotations

from pathlib import Path

from fpsgen.calibrate.record import FrontierPoint
from fpsgen.report import words
from fpsgen.report.calibration import facts, unbeaten
from tests.tools.calibration_records import frontier, record
from tests.tools.reports import Page, read, write


def points(*places: tuple[float, float]) -> list[FrontierPoint]:
    return [FrontierPoint("uniform", "", cost, error) for cost, error in places]


def test_the_line_joins_only_what_nothing_cheaper_beats() -> None:
    kept = unbeaten(points((0.5, 2.0), (0.1, 9.0), (0.6, 3.0), (0.9, 1.0)))
    assert kept == points((0.1, 9.0), (0.5, 2.0), (0.9, 1.0))


def test_what_was_measured_and_what_is_shipped_is_in_a_table(tmp_path: Path) -> None:
    given = record(points=64)
    write(given, [], tmp_path / "r.html")
    told = " ".join(Page((tmp_path / "r.html").read_text(encoding="utf-8")).words.split())
    for point in frontier(64):
        if point["measured"] or point["kind"] == "preset":
            assert f"{point['name']}" in told
            assert f"{point['cost']:.2f}" in told
            assert words.number(point["error"]) in told
            assert words.decibels(point["psnr"]) in told


def test_the_chosen_one_without_a_name_is_called_chosen() -> None:
    given = record()
    given["frontier"] = [point | {"name": ""} for point in given["frontier"]]
    [bold] = [row[0].text for row in facts(read(given))["schedules"].rows if row[0].style == "bold"]
    assert bold == "chosen"
