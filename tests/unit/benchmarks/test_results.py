"""Published pages say what their measurements say."""

from __future__ import annotations

import json

import pytest

from benchmarks import numerics, pocket_plans
from benchmarks.record import RESULTS
from fpsgen import assets


@pytest.mark.parametrize(("name", "script"), [("numerics", numerics), ("pocket-plans", pocket_plans)])
def test_pages_are_made_of_their_results(name: str, script: object) -> None:
    record = json.loads((RESULTS / f"{name}.json").read_text())
    assert (RESULTS / f"{name}.md").read_text(encoding="utf-8") == script.document(record)  # type: ignore[attr-defined]
    assert not record["commit"].endswith("dirty")


def test_the_pocket_model_is_the_one_that_was_measured() -> None:
    """Retraining makes a new version, and its plans are to be measured anew."""
    card = json.loads((assets.folder("pocket") / "pocket.json").read_text())
    record = json.loads((RESULTS / "pocket-plans.json").read_text())
    assert record["pocket"] == {"version": card["version"], "sha256": card["sha256"]}
