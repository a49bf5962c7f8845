"""Every kind of report in a browser: nothing is missing, nothing is loaded, nothing sticks out, and it prints."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools import bench_records, calibration_records, training_records
from tests.tools.reports import NASTY, pair, write

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1280, 390)  # of a desktop and of a phone


def nasty() -> dict[str, Any]:
    """What comes from outside is long, has no room to break, and would be a page of its own."""
    made = bench_records.compare("quality", "bf16", "diffusers", passes=3)
    for one in made["contenders"]:
        one["told"] = NASTY
    made["contenders"][0]["name"] = "x" * 150
    made["order"] = ["x" * 150 if name == "quality" else name for name in made["order"]]
    made["video"]["prompt"] = NASTY + "y" * 300
    made["notes"] = [NASTY, "z" * 300]
    made["command"] = ["fpsgen", NASTY, "w" * 400]
    return made


MADE: dict[str, Any] = {
    "calibration": lambda path: write(calibration_records.record(), [pair(), pair(NASTY)], path),
    "compare": lambda path: write(
        bench_records.compare("quality", "bf16", "diffusers"), bench_records.pairs("quality", "diffusers"), path
    ),
    "on a card": lambda path: write(bench_records.on_a_card(), [], path),
    "extrapolated": lambda path: write(bench_records.extrapolated(), [], path),
    "cold": lambda path: write(bench_records.cold_only(), [], path),
    "nasty": lambda path: write(nasty(), [pair(NASTY)], path),
    "attention": lambda path: write(bench_records.attention(), [], path),
    "quality": lambda path: write(bench_records.quality(), bench_records.pairs("quality"), path),
    "training": lambda path: write(training_records.record(), [pair(), pair(NASTY)], path),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's; where a test run is to have one, it is no excuse that there is none."""
    missing = pytest.fail if os.environ.get("FPSGEN_REQUIRE_BROWSER") else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    found = next((place for name in BROWSERS if (place := shutil.which(name))), None)
    if found is None:
        missing(f"no browser here: install one of {', '.join(BROWSERS)}")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("kind", MADE)
def test_a_report_in_a_browser(kind: str, browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    pictures = len(MADE[kind](path)) - 1
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri(), wait_until="load")

    images = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
    clips = page.locator(".film").count()
    assert page.evaluate(images) == [True] * (pictures + (clips > 0))  # what a PSNR looks like lies beside no page
    for film in page.locator("video").all():  # each plays by itself once it is seen, without a sound
        film.scroll_into_view_if_needed()
        page.wait_for_function("film => !film.error && !film.paused && film.currentTime > 0", arg=film.element_handle())
        assert film.evaluate("film => film.muted && film.loop && film.videoWidth > film.videoHeight")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Nothing lies outside, but for what is in a box that scrolls.
        outside = f"""[...document.querySelectorAll('main *')].filter(one => !one.parentElement.closest('.scroll, pre')
            && one.getBoundingClientRect().right > {width} + 1).map(one => one.outerHTML.slice(0, 80))"""
        assert page.evaluate(outside) == []
        # Whatever scrolls says so, and nothing else does: from the frame after the one that made it scroll.
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        hints = """[...document.querySelectorAll('.scroll')].filter(one => (one.scrollWidth > one.clientWidth)
            != (getComputedStyle(one, '::before').display != 'none')).map(one => one.getAttribute('aria-label'))"""
        assert page.evaluate(hints) == []
    assert len(complaints) == 0, complaints
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    assert path.stat().st_size < 4e6

    printed = page.pdf(format="A4", print_background=True)
    assert printed.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2
    # As wide as A4 between its margins: paper has no box that scrolls.
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 1000})
    cut_off = """[...document.querySelectorAll('.scroll, pre')].filter(one => one.scrollWidth > one.clientWidth + 1)
        .map(one => one.getAttribute('aria-label') || one.className)"""
    if kind != "nasty":  # names of 150 letters are nobody's
        assert page.evaluate(cut_off) == []
    page.close()
