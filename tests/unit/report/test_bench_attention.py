"""The report of `fpsgen bench attention`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fpsgen.bench.attention.record import Case
from fpsgen.bench.record import MeasuredCard
from fpsgen.report import pictures, words
from fpsgen.report.attention import best, name_of, points_of, roofs_of
from fpsgen.values import from_dict
from tests.tools import bench_records
from tests.tools.reports import NASTY, Page, png, read, write


def made(tmp_path: Path, given: dict[str, Any]) -> Page:
    paths = write(json.loads(json.dumps(given)), [], tmp_path / "r.html")  # as it was written
    page = Page(paths[0].read_text(encoding="utf-8"))
    assert [png(image) for image in page.images] == [file.read_bytes() for file in paths[1:]]
    assert not re.search(r"\bnan\b|\binf\b|None", page.words)
    return page


def case_of(told: dict[str, Any]) -> Case:
    return from_dict(Case, told)


def test_the_answer_comes_first(tmp_path: Path) -> None:
    told = " ".join(made(tmp_path, bench_records.attention()).words.split())
    line = bench_records.attention()["cases"][-1]
    [low, *_, high] = sorted(one.speedup["SDPA cuDNN"]["alone"] for one in best(case_of(line)))
    for fact in (
        "14b",
        "720p",
        f"{words.ratio(low)} to {words.ratio(high)} times as fast",
        "SDPA cuDNN",
        "1 to 0.1",
    ):
        assert fact in told[:400], fact
    assert "Attention on NVIDIA H100 made up" in told
    assert "SDPA math: left out: too large" in told


def test_the_headline_takes_the_fastest_of_both_sides() -> None:
    [case] = bench_records.attention(cases=1)["cases"]
    lines = best(case_of(case))
    assert [line.variant for line in lines] == ["fp8-fp16"] * 4
    assert [round(line.density, 1) for line in lines] == [1.0, 0.5, 0.3, 0.1]


def test_tiles_by_content_stand_beside_windows_of_the_same_density(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more kinds of lines, each with a name of its own in the picture."""
    figures: list[Figure] = []
    monkeypatch.setattr(pictures.attention, "png", lambda figure: figures.append(figure) or b"")
    given = bench_records.attention(cases=1)
    [case] = given["cases"]
    sparse = [line for line in case["lines"] if line.get("variant") == "fp8-fp16" and (line.get("density") or 1) < 0.2]
    case["lines"] += [
        line | {"top": 0.1, "rest": rest, "window": None} for rest in ("drop", "summary") for line in sparse
    ]
    lines = best(case_of(case))
    assert {str(line.seen) for line in lines[-3:]} >= {"top 10 %", "top 10 % with summary"}
    assert len(lines) == 6
    pictures.attention.draw(read(given))
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert names == list(dict.fromkeys(map(name_of, points_of(case_of(case)))))
    assert sum("top and summary" in name for name in names) == 2  # alone, and with its prologue
    every = case_of(case)
    kernel = next(line for line in every.lines if line.kind == "kernel" and line.rest == "summary")
    assert every.beside(kernel, "together") == next(
        line for line in every.lines if line.kind == "together" and line.rest == "summary"
    )


def test_every_shape_has_its_roofline_and_its_numbers(tmp_path: Path) -> None:
    given = bench_records.attention()
    page = made(tmp_path, given)
    assert len(page.images) == 2
    for case, image in zip(given["cases"], page.images, strict=True):
        for point in points_of(case_of(case)):
            assert f"{name_of(point)} at density {point.density:.2g}: {point.tflops:.0f} TFLOP/s" in image["alt"]


def test_the_legend_has_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(pictures.attention, "png", lambda figure: figures.append(figure) or b"")
    given = bench_records.attention(cases=1)
    pictures.attention.draw(read(given))
    [names] = ([text.get_text() for text in figure.legends[0].get_texts()] for figure in figures)
    assert names == list(dict.fromkeys(map(name_of, points_of(case_of(given["cases"][0])))))


def test_roofs_are_the_cards() -> None:
    """132 SMs at 1.98 GHz; in 8 bits an exponential takes as long as its 512 operations of heads of 128 channels."""
    card = MeasuredCard(**bench_records.CARD)
    roofs = roofs_of(card, 128)
    assert roofs["8 bits"] == pytest.approx(8192 * 132 * 1.98e-3)
    assert roofs["16 bits"] == roofs["8 bits"] / 2
    assert roofs["exponential unit"] == pytest.approx(roofs["8 bits"])
    assert roofs_of(card, 64)["exponential unit"] == pytest.approx(roofs["8 bits"] / 2)
    assert roofs["memory"] == pytest.approx(3.02)


def test_a_card_that_our_kernels_are_not_for(tmp_path: Path) -> None:
    page = made(tmp_path, bench_records.attention(cases=1, ours=False))
    assert "times as fast" not in page.words
    assert "fp8-fp16: it is for Hopper" in page.words
    assert len(page.images) == 1


def test_a_shape_that_failed_and_one_that_was_cut_short(tmp_path: Path) -> None:
    given = bench_records.attention()
    given["cases"][0] |= {"lines": [], "fault": f"MemoryError: {NASTY}"}
    given["cut"] = "the budget of seconds was spent"
    page = made(tmp_path, given)
    assert NASTY.strip() in page.words
    assert "the budget of seconds was spent" in page.words
    assert len(page.images) == 1
    assert "script" not in page.tags
