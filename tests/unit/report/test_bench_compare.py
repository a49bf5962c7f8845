"""The report of `fpsgen bench`: the answer first, and every figure that the record has."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.record import RESULTS
from fpsgen.metrics import Pair
from fpsgen.report import pictures, words
from fpsgen.report.compare import PARTS
from fpsgen.timing import STAGES
from tests.tools import bench_records
from tests.tools.bench_records import WHOLE
from tests.tools.reports import NASTY, Page, clip, pair, png, read, write


def made(tmp_path: Path, given: dict[str, Any], pairs: list[Pair] | None = None) -> Page:
    path = tmp_path / "report.html"
    paths = write(given, pairs or [], path)
    assert paths[0] == path
    assert sorted(paths) == sorted(tmp_path.iterdir())
    page = Page(path.read_text(encoding="utf-8"))
    assert {png(image) for image in page.images} == {file.read_bytes() for file in paths[1:]}
    assert not re.search(r"\bnan\b|\binf\b|None", page.words)
    return page


def said(page: Page) -> str:
    return " ".join(page.words.split())


def faster(given: dict[str, Any], *ratios: float) -> dict[str, Any]:
    """The first contender, so many times as fast in each pair."""
    for name in ("total", "denoise"):
        given["contenders"][0]["speedup"][name] = {"median": float(np.median(ratios)), "each": list(ratios)}
    return given


@pytest.mark.parametrize(
    ("ratios", "answer"),
    [
        ((1.9, 1.96), "1.93 times as fast"),
        ((0.7, 0.72), "1.41 times as long"),
        ((0.7,), "1.43 times as long"),
        ((0.97, 1.02), "too close to call"),
        ((0.97,), "too close to call"),
        ((1.06, 1.07), "too close to call"),
        ((0.8, 2.0, 2.0, 2.0, 2.0), "too close to call"),
        ((1.06, 1.07, 1.06, 1.07, 1.06), "1.06 times as fast"),
    ],
)
def test_the_answer_comes_first(tmp_path: Path, ratios: tuple[float, ...], answer: str) -> None:
    """Both times, what follows from them, and how near the frames are; a difference that may be none is not claimed."""
    given = faster(bench_records.compare(passes=len(ratios)), *ratios)
    told = said(made(tmp_path, given))[:500]
    for one in given["contenders"]:
        assert f"{one['label']} takes {words.duration(one['median']['total'])}" in told
    assert answer in told
    assert ("times as" in told) == (answer != "too close to call")
    assert "36.2 dB" in told
    assert ("single pair" in told) == (len(ratios) == 1)


def test_the_baseline_has_one_name_which_says_the_precision_that_ran(tmp_path: Path) -> None:
    """On a CPU bf16 is float32, and the page never calls it bf16 alone, but in the command that was typed."""
    page = made(tmp_path, bench_records.compare("quality", "bf16"), bench_records.pairs("quality"))
    told = said(page).partition("The command")[0]
    assert set(re.findall(r"bf16(?! \(float32\)|-quality|,)", told.replace("pocket-bf16", ""))) == set()
    assert "the reference" not in told
    assert "bf16 (float32)" in page.images[0]["alt"]
    (tmp_path / "card").mkdir()
    on_a_card = said(made(tmp_path / "card", bench_records.on_a_card()))
    assert "bf16 (" not in on_a_card


def test_every_figure_of_the_record_is_said(tmp_path: Path) -> None:
    given = bench_records.on_a_card()
    told = said(made(tmp_path, given))
    for one in given["contenders"]:
        for name in WHOLE:
            assert words.precise(one["median"][name]) in told
            assert words.precise(one["cold"][name]) in told
            assert words.DASH.join(words.precise(x) for x in one["spread"][name]) in told
        for phase in one["phases"]:
            assert words.precise(phase["step"]) in told
        if one["speedup"]:
            assert all(words.ratio(ratio) in told for ratio in one["speedup"]["total"]["each"])
            assert all(words.ratio(ratio) in told for ratio in one["speedup"]["denoise"]["each"])
        peak = max(run["peak_memory_bytes"] for run in (one["cold"], *one["warm"]))
        assert words.gigabytes(peak) in told
    for part in (
        "36.2 dB", "44.9 dB", "58.3 dB", "sdpa-cudnn", "it is for CUDA GPUs", "1.23", "NVIDIA H100 made up",
        "1.980 GHz by a guess", "3.02 TB/s", "driver 580.1", "torch 2.13.0", "2026-01-02", given["commit"],
        "fpsgen bench --compare bf16,sage,diffusers", "lpips is not installed", "matrix products in bfloat16",
        "20 steps of unipc", "quality, cold", "diffusers, warm", "612.5", f"steps 6{words.DASH}12",
    ):  # fmt: skip
        assert part in told, part


def test_the_card_s_state_is_that_after_each_run(tmp_path: Path) -> None:
    """As docs/bench.md has it, and as `compare.run` notes it: warm from the work."""
    page = said(made(tmp_path, bench_records.on_a_card()))
    assert "after each run" in page
    assert "before each run" not in page


def test_pictures_say_their_numbers_without_eyes(tmp_path: Path) -> None:
    given = bench_records.compare("quality", "bf16", "diffusers")
    bars, steps = made(tmp_path, given).images
    for one in given["contenders"]:
        for runs in (one["median"], one["cold"]):
            assert all(f"{name} {words.precise(runs[name])}" in bars["alt"] for name in WHOLE if runs[name])
        assert all(words.duration(phase["step"]) in steps["alt"] for phase in one["phases"])
    for image in (bars, steps):
        picture = Image.open(io.BytesIO(png(image)))
        assert (int(image["width"]), int(image["height"])) == (picture.width // 2, picture.height // 2)
        assert np.asarray(picture.convert("L")).std() > 5, "a blank picture"


def test_the_legends_name_every_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that only one panel has: a compilation in the cold runs, a step of which no parts are known."""
    figures: list[Figure] = []
    monkeypatch.setattr(pictures.compare, "png", lambda figure: figures.append(figure) or b"")
    pictures.compare.draw(read(bench_records.compare("quality", "bf16", "diffusers")))
    bars, steps = ([text.get_text() for text in figure.legends[0].get_texts()] for figure in figures)
    assert sorted(bars) == sorted(STAGES)
    assert steps == [*PARTS.values(), "not split"]


def test_what_is_extrapolated_is_marked(tmp_path: Path) -> None:
    given = bench_records.extrapolated()
    page = made(tmp_path, given)
    told = said(page)
    assert "Prompt" not in told
    assert re.search(r"quality takes ≈ .* takes ≈ .*≈ \d\.\d\d times as fast, in ≈ 0\.\d\d of the time", told[:300])
    for one in given["contenders"]:
        for name in ("denoise", "decode", "total"):
            assert f"≈ {words.precise(one['median'][name])}" in told
        assert f"≈ {words.precise(one['median']['text'])}" not in told
    assert "random" in told
    assert "Cold" not in told
    assert "PSNR" not in told
    assert "≈" not in made(tmp_path, bench_records.compare()).words


def test_a_cold_run_alone_is_no_median(tmp_path: Path) -> None:
    told = said(made(tmp_path, bench_records.cold_only()))
    assert "one cold run" in told[:300]
    assert "times as" not in told[:300]
    assert "Warm" not in told


def test_identical_frames_are_infinitely_near(tmp_path: Path) -> None:
    given = bench_records.compare("same", "bf16")
    told = said(made(tmp_path, given, [Pair("a cat", None, clip(), clip(), ("bf16", "same"))]))
    assert "∞ dB" in told[:400]
    assert "∞identical" in told


def test_broken_values_are_not_passed_over(tmp_path: Path) -> None:
    given = bench_records.compare()
    given["contenders"][0]["fidelity"]["nonfinite"] = 12
    told = said(made(tmp_path, given))
    assert "broken" in told[:400]
    assert "✗ quality: 12 values" in told


def test_frames_have_their_names(tmp_path: Path) -> None:
    page = made(tmp_path, bench_records.compare("quality", "bf16", "sage"), bench_records.pairs("quality", "sage"))
    for number, (name, image) in enumerate(zip(("quality", "sage"), page.images[1:3], strict=True), 1):
        assert image["alt"].startswith(f"Frames {number}: bf16 (float32), {name} and")
    assert "difference" in said(page)


def test_lpips_that_is_missing_is_explained(tmp_path: Path) -> None:
    assert 'pip install "fpsgen[eval]"' in made(tmp_path, bench_records.compare("fast", "bf16")).words
    assert "fpsgen[eval]" not in made(tmp_path, bench_records.compare("quality", "bf16")).words


def test_another_reference_than_bf16(tmp_path: Path) -> None:
    told = said(made(tmp_path, bench_records.compare("quality", "sage", passes=1)))
    assert "sage takes" in told[:200]
    assert "bf16" not in told
    assert "Milliseconds" not in told, "no kernel was tried for it"


def test_the_preset_may_be_slow_and_many_phases_long(tmp_path: Path) -> None:
    given = bench_records.compare("slow", "bf16")
    for one in given["contenders"]:
        one["phases"] = [
            {"first": n, "last": n, "sigma": [1 - n / 51, 1 - (n + 1) / 51], "density": 0.5, "step": 0.0, "split": None}
            for n in range(1, 51)
        ]
        one["median"] = dict.fromkeys(WHOLE, 0.0) | {"total": 1e-3}
        one["spread"] = {name: [0.0, 0.0] for name in WHOLE}
    with np.errstate(all="raise"):
        made(tmp_path, given)


def test_what_comes_from_outside_stays_words(tmp_path: Path) -> None:
    given = bench_records.compare("quality", "bf16")
    given["contenders"][0] |= {"name": NASTY, "label": NASTY, "told": NASTY}
    given["order"] = [NASTY if name == "quality" else name for name in given["order"]]
    for key in ("model", "device", "dtype", "date", "commit"):
        given[key] = NASTY
    given["video"] |= {"prompt": NASTY, "solver": NASTY}
    given["machine"] |= {"cpu": NASTY}
    given["tried"][0] |= {"name": NASTY, "why_not": NASTY}
    given["notes"], given["command"] = [NASTY], [NASTY]
    page = made(tmp_path, given, [pair(NASTY), Pair("half \udcff", math.inf, clip(), clip(), (NASTY, "$\\frac$"))])
    assert "script" not in page.tags
    assert all(address.startswith("data:") for address in page.addresses)
    assert page.words.count(NASTY) >= 12
    assert "<script" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_same_record_same_bytes(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    given = bench_records.on_a_card()
    kept = copy.deepcopy(given)
    one, two = (write(given, bench_records.pairs("sage"), tmp_path / name / "r.html") for name in ("1", "2"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert given == kept


def test_a_record_of_an_earlier_version_has_its_page(tmp_path: Path) -> None:
    """The published one: contenders had no labels then."""
    given = json.loads((RESULTS / "bench-pocket-cpu.json").read_text(encoding="utf-8"))
    told = said(made(tmp_path, given))
    assert "quality, diffusers against bf16" in told
    assert words.decibels(given["contenders"][0]["fidelity"]["psnr"]) in told
