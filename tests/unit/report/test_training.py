"""The page of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fpsgen.report import words
from fpsgen.report.training import gained
from fpsgen.train.record import TrainRecord
from fpsgen.values import from_dict
from tests.tools.reports import NASTY, Page, pair, png, write
from tests.tools.training_records import record


def made(tmp_path: Path, given: dict[str, Any], **shown: Any) -> Page:
    paths = write(given, shown.get("pairs", [pair(), pair("another", 20.0)]), tmp_path / "report.html")
    assert sorted(paths) == sorted(tmp_path.iterdir())
    page = Page(paths[0].read_text(encoding="utf-8"))
    assert [png(image) for image in page.images] == [path.read_bytes() for path in paths[1:]]
    assert not page.tags & {"script", "link", "iframe", "object", "a"}
    return page


def test_every_number_of_the_summary_is_said(tmp_path: Path) -> None:
    given = record()
    said = " ".join(made(tmp_path, given).words.split())
    before, after = given["checks"][0], given["checks"][-1]
    error, psnr = (words.number(own[key], half=own[f"{key}_ci95"]) for own, key in ((before, "error"), (after, "psnr")))
    for told in ("Training of pocket v2", "1000 steps on 64 samples", error, psnr, "took away 75 % of the error",
                 "3 steps had a loss", "LoRA of rank 8", "feedfacecafebeef", "warm_up 200", "a cat moving left",
                 'model = "pocket"'):  # fmt: skip
        assert told in said, told


def test_a_run_that_made_things_worse_says_so(tmp_path: Path) -> None:
    given = record()
    given["checks"][-1]["error"] = 1.5 * given["checks"][0]["error"]
    said = " ".join(made(tmp_path, given).words.split())
    assert "training added 50 % to the error" in said
    assert "took away" not in said


def test_a_run_without_checks_or_losses(tmp_path: Path) -> None:
    bare = record() | {"checks": [], "prompts": [], "losses": [], "skipped": 0, "seconds": 0.0}
    page = made(tmp_path, bare, pairs=[])
    assert [image["alt"].split(" over")[0] for image in page.images] == ["Losses"]


def test_one_clip_and_one_step(tmp_path: Path) -> None:
    given = record()
    checks = [own | {"error_ci95": None, "psnr_ci95": None} for own in given["checks"][:2]]
    made(tmp_path, given | {"checks": checks, "losses": given["losses"][:1]})


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    page = made(
        tmp_path, record() | {"model": NASTY, "preset": NASTY, "text": NASTY, "prompts": [NASTY], "data": NASTY}
    )
    assert "alert" in page.words


@pytest.mark.parametrize(("before", "share"), [(0.2, 0.75), (0.05, 0.0), (0.0, None)])
def test_what_training_took_away(before: float, share: float | None) -> None:
    given = record()
    given["checks"][0]["error"] = before
    assert gained(from_dict(TrainRecord, given)) == (share if share is None else pytest.approx(share))
