"""The report of `fpsgen bench quality`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fpsgen.metrics import Pair
from fpsgen.report import words
from fpsgen.report.pictures.quality import wilson
from tests.tools import bench_records
from tests.tools.reports import NASTY, Page, png, write


def made(tmp_path: Path, given: dict[str, Any], pairs: list[Pair] | None = None) -> Page:
    paths = write(json.loads(json.dumps(given)), pairs or [], tmp_path / "r.html")
    page = Page(paths[0].read_text(encoding="utf-8"))
    assert [png(image) for image in page.images] == [file.read_bytes() for file in paths[1:]]
    assert not re.search(r"\bnan\b|\binf\b|None", page.words)
    return page


def said(page: Page) -> str:
    return " ".join(page.words.split())


def test_means_have_their_intervals(tmp_path: Path) -> None:
    given = bench_records.quality()
    told = said(made(tmp_path, given, bench_records.pairs("quality")))
    for one in given["contenders"][:2]:
        psnr = one["fidelity"]["psnr"]
        assert words.number(psnr["mean"], half=psnr["ci95"]) in told
        assert f"worst {words.number(psnr['worst'])}" in told
    own = given["contenders"][0]["fidelity"]["psnr"]
    for fact in (
        "24 clips",
        words.number(own["mean"], half=own["ci95"]),
        words.decibels(own["worst"]),
        "3 clips",
        "96 %",
    ):
        assert fact in told[:400], fact
    assert "12 prompts, 2 seeds each" in told
    assert "seeds 1000 to 1023" in told


def test_every_clip_is_in_the_picture_and_the_table(tmp_path: Path) -> None:
    given = bench_records.quality()
    page = made(tmp_path, given)
    dots, adherence = page.images
    for one in given["contenders"][:2]:
        for clip in one["clips"]:
            told = words.decibels(clip["fidelity"]["psnr"]) if not clip["fidelity"]["identical"] else "∞ dB"
            assert told in dots["alt"]
            assert told in page.words
    assert dots["alt"].count("∞ dB") == 3
    assert "quality: subject 23 of 24, motion 22 of 24, scene 24 of 24" in adherence["alt"]


def test_of_very_many_clips_the_worst_are_told(tmp_path: Path) -> None:
    given = bench_records.quality(prompts=30)
    page = made(tmp_path, given)
    every = [clip["fidelity"]["psnr"] for clip in given["contenders"][0]["clips"] if clip["fidelity"]["psnr"]]
    told = page.words.split("Clips")[-1]
    assert "40 clips" in told
    assert words.decibels(min(every)) in told
    assert "∞ dB" not in told


def test_a_single_clip_has_no_interval(tmp_path: Path) -> None:
    given = bench_records.quality("fast", "bf16", prompts=1, seeds=1, judged=False)
    page = made(tmp_path, given)
    assert "On one clip" in said(page)
    assert "±" not in page.words
    assert len(page.images) == 1


def test_all_clips_identical(tmp_path: Path) -> None:
    given = bench_records.quality("quality", "bf16", prompts=1, judged=False)  # two clips, both the reference's
    assert "∞ dB" in said(made(tmp_path, given))[:300]


def test_broken_clips_and_vbench(tmp_path: Path) -> None:
    given = bench_records.quality()
    given["contenders"][0] |= {"nonfinite": 2, "vbench": {"motion_smoothness": 0.98765, "dynamic_degree": None}}
    told = said(made(tmp_path, given))
    assert "✗ 2 of 24 clips" in told
    assert "motion smoothness" in told
    assert "0.9877" in told


def test_what_no_prompt_names_is_not_judged(tmp_path: Path) -> None:
    given = bench_records.quality()
    for one in given["contenders"]:
        one["adherence"]["scene"] = [0, 0]
    page = made(tmp_path, given)
    assert "scene" not in page.images[1]["alt"]
    for one in given["contenders"]:
        one["adherence"] = {aspect: [0, 0] for aspect in one["adherence"]}
    page = made(tmp_path, given)
    assert len(page.images) == 1
    assert "judge" not in page.words


def test_what_comes_from_outside_stays_words(tmp_path: Path) -> None:
    given = bench_records.quality()
    given["contenders"][0] |= {"name": NASTY, "label": NASTY, "told": NASTY}
    for one in given["contenders"]:
        one["clips"][5]["prompt"] = NASTY
    page = made(tmp_path, given)
    assert "script" not in page.tags
    assert page.words.count(NASTY) >= 4


@pytest.mark.parametrize(
    ("hits", "of", "expected"), [(0, 10, (0, 0.2775)), (10, 10, (0.7225, 1)), (5, 10, (0.2366, 0.7634))]
)
def test_intervals_of_shares(hits: int, of: int, expected: tuple[float, float]) -> None:
    """Wilson's, as tables have them."""
    assert np.ravel(wilson(np.array([hits]), np.array([of]))) == pytest.approx(expected, abs=1e-4)
