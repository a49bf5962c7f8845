"""Published pages say what their measurements say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from benchmarks import grades, linears, numerics, pairs, pocket_plans, slots
from benchmarks.calibration import denoising_page as denoising
from benchmarks.calibration import page as calibration
from benchmarks.record import RESULTS
from benchmarks.training import page as training
from fpsgen import assets

NAMES = sorted(path.stem for path in RESULTS.glob("*.json"))
PAGES = sorted(path.stem for path in RESULTS.glob("*.md") if path.stem != "README")


def maker(name: str) -> Callable[[dict], str]:
    """What makes a page of its results."""
    return {
        "calibration": calibration.document,
        "denoising": denoising.document,
        "denoising-first": denoising.document,
        "grades": grades.document,
        "pairs": pairs.document,
        "linears": linears.document,
        "numerics": numerics.document,
        "pocket-plans": pocket_plans.document,
        "slots": slots.document,
        "training": training.document,
    }[name]


def record_of(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_made_of_their_results(name: str) -> None:
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == maker(name)(record_of(name))


def test_numerics_are_of_today_s_variants() -> None:
    assert list(record_of("numerics")["errors"]) == [name for name, *_ in numerics.methods()]


@pytest.mark.parametrize("name", NAMES)
def test_results_are_told(name: str) -> None:
    """On a page of their own, or by the README."""
    assert name in PAGES or name in (RESULTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_results_say_of_which_commit_they_are(name: str) -> None:
    commit = record_of(name)["commit"]
    if name.startswith("attention-") and commit is None:
        return  # a bare machine with a card is given the sources without their repository: nobody there knows a commit
    assert re.fullmatch("[0-9a-f]{40}", commit), "measured on a tree that was changed, or of no known commit"


def test_the_pocket_model_is_the_one_that_was_measured() -> None:
    """Retraining makes a new version, and its plans are to be measured anew."""
    card = json.loads((assets.folder("pocket") / "pocket.json").read_text())
    record = json.loads((RESULTS / "pocket-plans.json").read_text())
    assert record["pocket"] == {"version": card["version"], "sha256": card["sha256"]}


def test_rows_are_made_of_the_clips() -> None:
    record = record_of("calibration")
    assert calibration.rows_of(record) == record["rows"]
