"""The calibration's report: a page that needs nothing else and says every number."""

from __future__ import annotations

import copy
import io
import itertools
import math
import re
import struct
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from fpsgen.attention import door, hopper
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.metrics import Pair
from fpsgen.presets import cost
from fpsgen.report import words
from fpsgen.report.pictures import drawing
from tests.tools.calibration_records import EDGES, edge, record
from tests.tools.reports import NASTY, Page, clip, pair, png, write

TIMES = words.TIMES


def made(tmp_path: Path, given: dict[str, Any], frames: list[Pair]) -> tuple[Page, list[Path]]:
    path = tmp_path / "report.html"
    paths = write(given, frames, path)
    assert paths[0] == path
    assert sorted(paths) == sorted(tmp_path.iterdir())
    return Page(path.read_text(encoding="utf-8")), paths


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, list[Path]]:
    return made(tmp_path_factory.mktemp("usual"), record(), [pair(), pair("another", None)])


def test_the_page_holds_all_its_pictures(usual: tuple[Page, list[Path]]) -> None:
    page, paths = usual
    names = ["error", "density", "frontier", "frames-1", "frames-2"]
    assert [path.name for path in paths] == ["report.html", *(f"report-{name}.png" for name in names)]
    assert [png(image) for image in page.images] == [path.read_bytes() for path in paths[1:]]
    for image in page.images:
        picture = Image.open(io.BytesIO(png(image)))
        picture.load()
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 5, "a blank picture"
        assert (int(image["width"]), int(image["height"])) == (picture.width // 2, picture.height // 2)
        assert len(image["alt"]) > 20


def test_the_page_needs_nothing_else(usual: tuple[Page, list[Path]]) -> None:
    page, paths = usual
    kinds = {address.partition(";base64,")[0] for address in page.addresses}
    assert kinds == {"data:image/png", "data:image/jpeg", "data:video/mp4"}
    assert not page.tags & {"script", "link", "iframe", "object", "a"}
    text = paths[0].read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_every_number_of_the_summary_is_said(usual: tuple[Page, list[Path]]) -> None:
    page, _ = usual
    said = " ".join(page.words.split())
    for told in (f"(7.21 ± 1.93) {TIMES} 10⁻⁴", "33.3 ± 0.8 dB", "31.9 dB", "0.31", "52 %", "--min-psnr 30",
                 "✓ The budget holds on 6 clips", "0123456789abcdef", "torch 2.13.0",
                 f"7{TIMES}6{TIMES}10", f"4{TIMES}3{TIMES}5", "shift 3, guidance 4",
                 *(f"{name} {words.duration(value)}" for name, value in record()["seconds"].items()), "'a b'",
                 "the dog is moving right", 'model = "pocket"'):  # fmt: skip
        assert told in said, told
    for n, entry in enumerate(record()["clips"]):
        assert f"{entry['prompt']} {4 + n} " in said or f"{entry['prompt']}{4 + n}" in said
        assert words.number(entry["error"]) in said
        assert words.decibels(entry["psnr"]) in said


def test_the_cost_is_said_to_be_modelled_and_what_runs_where(tmp_path: Path) -> None:
    page, _ = made(tmp_path, record(), [])
    told = " ".join(page.words.split())
    facts = ["modelled", cost.CARD, *(f"{rate} TFLOPS" if name == "bf16" else f"{rate} in {name.upper()}" for name, rate
             in cost.TFLOPS.items()), "420", "75600", "Hopper GPU", "Other CUDA GPU", "CPU"]  # fmt: skip
    for fact in facts:
        assert fact in told, fact
    cells = [name for row in record()["precision"] for name in row]
    assert f"{len(cells) - cells.count('bf16')} of the {len(cells)} parts" in told
    [where] = re.findall(r"Hopper GPU\s*(.*?)\s*Other CUDA", told)
    assert "hopper" in where
    page, _ = made(tmp_path, record() | {"head_dim": 64, "cost_tokens": 420}, [])
    told = " ".join(page.words.split())
    [where] = re.findall(r"Hopper GPU\s*(.*?)\s*Other CUDA", told)
    assert "reference" in where
    assert "64" in where
    assert "75600" not in told


@pytest.mark.parametrize(
    ("plan", "on_hopper", "elsewhere"), [({"qk": "int8", "pv": "fp8"}, "hopper", "reference"), ({}, "dense", "dense")]
)
def test_what_the_page_says_of_machines_is_what_backends_say(
    plan: dict[str, Any], on_hopper: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part of a schedule, asked of the backends as each machine would answer."""
    own = AttentionPlan(TileGrid((7, 6, 10), (2, 2, 2)), **plan)
    cuda = torch.device("cuda")
    for reason, expected in ((None, on_hopper), ("it is for Hopper", elsewhere)):
        monkeypatch.setattr(hopper, "why_not_here", lambda device, reason=reason: reason)
        door.choose.cache_clear()
        assert door.choose(cuda, own, 128).name == expected
    monkeypatch.undo()
    door.choose.cache_clear()
    assert door.choose(torch.device("cpu"), own, 128).name == elsewhere


def test_a_budget_that_fails_is_not_said_to_hold(tmp_path: Path) -> None:
    page, _ = made(tmp_path, record() | {"holds": False}, [])
    assert "✗ The budget does not hold" in page.words
    assert "The budget holds" not in page.words


def test_prompts_measured_on_are_not_called_unseen(tmp_path: Path) -> None:
    given = record()
    given["prompts"].append(given["clips"][0]["prompt"])
    page, _ = made(tmp_path, given, [])
    assert "not measured on" not in page.words.partition("The budget")[0]


@pytest.mark.parametrize("name", EDGES)
def test_edges(tmp_path: Path, name: str) -> None:
    with np.errstate(all="raise"):
        page, paths = made(tmp_path, edge(name), [])
    assert len(page.images) == 3
    assert not re.search(r"\bnan\b|\binf\b|None", page.words)
    if name == "same videos":
        assert "∞ dB" in page.words
    if name == "one clip":
        assert "±" not in page.words
        assert "holds on one clip" in page.words
    if name == "no psnr":
        assert "PSNR of" not in page.words.partition("The budget")[0]
    assert ("no cell has any" in page.words) == (name == "zeros")
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_large_model(tmp_path: Path) -> None:
    page, _ = made(tmp_path, record(phases=12, layers=40, points=64), [])
    width, height = struct.unpack(">II", png(page.images[1])[16:24])
    assert (width / 2 / 12, height / 2 / 40) > (50, 16), "cells too small for their words"


def test_what_comes_from_outside_stays_words(tmp_path: Path) -> None:
    given = record()
    for key in ("model", "weights", "device", "solver", "budget", "probe", "preset", "size"):
        given[key] = NASTY
    given["versions"] = {NASTY: NASTY}
    given["prompts"], given["command"] = [NASTY], [NASTY]
    given["clips"][0]["prompt"] = given["frontier"][-1]["name"] = NASTY
    given["frontier"][2]["name"] = given["frontier"][-2]["name"] = "$\\frac$"  # no formula that matplotlib could set
    given["phases"][0]["steps"] = NASTY[:30]
    page, paths = made(tmp_path, given, [pair(NASTY), pair("half a character \udcff")])
    assert "script" not in page.tags
    assert len(page.images) == 5
    assert all(address.startswith("data:") for address in page.addresses)
    assert page.words.count(NASTY) >= 10
    assert "<script" not in paths[0].read_text(encoding="utf-8")


def test_same_input_same_bytes(tmp_path: Path) -> None:
    """Also after somebody has changed matplotlib's settings, which are left as they were."""
    frames = [pair()]
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    kept = copy.deepcopy(record())
    given = record()
    one = write(given, frames, first / "r.html")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        two = write(given, frames, second / "r.html")
        assert matplotlib.rcParams["font.size"] == 30
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert given == kept


@pytest.mark.parametrize(
    "shape",
    [{"count": 1, "height": 64, "width": 96}, {"count": 3, "height": 480, "width": 832}, {"height": 400, "width": 100}],
)
def test_frames_of_any_size(tmp_path: Path, shape: dict[str, int]) -> None:
    page, _ = made(tmp_path, record(), [pair(**shape)])
    picture = np.asarray(Image.open(io.BytesIO(png(page.images[3]))).convert("RGB")).astype(int)
    assert picture.shape[1] <= 6 * (320 + 12)
    assert len(picture) % 3 == 0
    # The rows in order: the clip as it is, a little off, and four times as much as it is off.
    first, off = clip(**shape)[0].astype(int), clip(**shape, noise=9)[0].astype(int)
    for row, sent in zip(np.split(picture, 3), (first, off, 4 * np.abs(off - first)), strict=True):
        high = len(row) - drawing.HEADING
        wide = round(high * sent.shape[1] / sent.shape[0])
        shown = row[-high:, :wide]
        assert np.abs(shown.mean((0, 1)) - sent.mean((0, 1))).max() < 1.5
        for y, x in itertools.product((0.1, 0.3, 0.7, 0.9), repeat=2):  # in its place, and the right way up
            near = sent[int(y * len(sent)) - 3 :, int(x * sent.shape[1]) - 3 :][:7, :7].reshape(-1, 3)
            got = shown[int(y * high), int(x * wide)]
            assert ((near.min(0) - 1 <= got) & (got <= near.max(0) + 1)).all()


def test_identical_clips_leave_the_difference_black(tmp_path: Path) -> None:
    page, _ = made(tmp_path, record(), [Pair("same", math.inf, clip(), clip())])
    picture = np.asarray(Image.open(io.BytesIO(png(page.images[3]))).convert("L"))
    assert (picture[-150:, :320] == 0).all()


def test_clips_that_are_no_pair_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shapes"):
        write(record(), [Pair("x", None, clip(), clip(count=9))], tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []
