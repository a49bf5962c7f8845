"""The calibration's report: a page that needs nothing else, says every number, and is whole or absent."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import math
import random
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from fpsgen import report
from fpsgen.errors import RenderError, UsageError
from fpsgen.report import Pair, pictures, words

NASTY = '<script>alert("1")</script> & [brackets] {braces} $x^2$ \\frac \u202eleft\u202c <img src=http://x/> ' * 4
TIMES = words.TIMES
VOID = {"meta", "img", "br", "link"}


def record(phases: int = 4, layers: int = 6, points: int = 14, clips: int = 6) -> dict[str, Any]:
    """What a calibration gives: late layers and early steps matter most, the rest is cheap."""
    chance = random.Random(phases * layers)
    steps = 20 if phases < 10 else 50
    edges = [round(steps * p / phases) for p in range(phases + 1)]
    sigma = [1 - (edge / steps) ** 1.6 for edge in edges]
    spans = [(a + 1, b) for a, b in itertools.pairwise(edges)]
    error = [
        [3e-3 * math.exp(-p * 5 / phases + n / layers + chance.gauss(0, 0.5)) for n in range(layers)]
        for p in range(phases)
    ]
    density = [[min(1.0, max(0.1, 0.9 + math.log10(e) / 5)) for e in row] for row in error]
    density[0] = [1.0] * layers
    return {
        "model": "pocket v1", "weights": "0123456789abcdef", "device": "cpu",
        "versions": {"fpsgen": "0.2.0", "torch": "2.13.0"},
        "size": "160x96", "frames": 25, "steps": steps, "shift": 3.0, "guidance": 4.0, "solver": "unipc",
        "grid": [7, 6, 10], "tile": [2, 2, 2], "tiles": [4, 3, 5], "layers": layers, "heads": 3,
        "budget": "--min-psnr 30", "holds": True,
        "phases": [
            {"steps": f"{a}-{b}" if b > a else f"{a}", "sigma": [x, y]}
            for (a, b), x, y in zip(spans, sigma, sigma[1:], strict=False)
        ],
        "error": error, "probe": "window 3x3x3, int8", "density": density,
        "precision": [["bf16" if d == 1 else chance.choice(["int8", "fp8"]) for d in row] for row in density],
        "cost": 0.31, "mean_density": 0.52,
        "frontier": frontier(points),
        "clips": [
            {"prompt": f"prompt {n}: a cat moving left", "seed": 4 + n, "error": 2e-4 * (n + 1), "psnr": 34.5 - n / 2}
            for n in range(clips)
        ],
        "summary": {"error": 7.21e-4, "error_ci95": 1.93e-4, "psnr": 33.27, "psnr_ci95": 0.84, "psnr_worst": 31.86},
        "prompts": ["the dog is moving right", "one panda rises into the air"],
        "seconds": {"measure": 812.0, "probe": 2400.5, "verify": 95.2},
        "preset": 'format = 1\nmodel = "pocket"\n\n[[phase]]\nsigma = [1.0, 0.9]\n',
        "command": ["fpsgen", "calibrate", "a b", "--min-psnr", "30"],
    }  # fmt: skip


def frontier(points: int) -> list[dict[str, Any]]:
    """Calibrated schedules along a curve, the third measured and chosen; beside them presets and uniform plans."""
    found = []
    for n in range(points):
        cost, measured = 0.12 + 0.85 * n / max(1, points - 1), n % 4 == 2 or points == 1
        found.append({
            "kind": "calibrated", "name": f"c{n}", "cost": cost, "error": 6e-3 * math.exp(-6.5 * cost),
            "psnr": 28 + 15 * cost if measured else None, "measured": measured, "chosen": n == min(2, points - 1),
        })  # fmt: skip
    if points > 1:
        for n, name in enumerate(("pocket-quality", "pocket-balanced", "pocket-fast")):
            found.append({"kind": "preset", "name": name, "cost": 0.62 - 0.17 * n, "error": 4e-4 * 3.0**n,
                          "psnr": 34.0 - 3 * n, "measured": True, "chosen": False})  # fmt: skip
        for n, name in enumerate(("dense bf16", "dense int8", "3x3x5 int8", "3x3x3 int8")):
            found.append({"kind": "uniform", "name": name, "cost": (1.0, 0.53, 0.4, 0.22)[n],
                          "error": (0.0, 2e-4, 1.4e-3, 6e-3)[n], "psnr": None, "measured": n == 0,
                          "chosen": False})  # fmt: skip
    return found


def clip(count: int = 25, height: int = 96, width: int = 160, noise: int = 0) -> np.ndarray:
    """A gradient that moves; noise: how many levels it is off."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    channels = (x * 255 // width + 4 * t, y * 255 // height, 128 + 100 * np.sin((x + y + 6 * t) / 17))
    return (np.stack(channels, -1).astype(int) + noise * ((x // 8 + y // 8) % 2)[..., None]).clip(0, 255).astype("u1")


def pair(prompt: str = "a cat moving left", psnr: float | None = 33.3, **shape: int) -> Pair:
    return Pair(prompt, psnr, clip(**shape), clip(**shape, noise=9))


class Page(HTMLParser):
    """Everything that a page has: words, images, addresses; fails where a tag is not closed in its place."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.words, self.tags, self.addresses = "", set[str](), list[str]()
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        told = {name: value or "" for name, value in attrs}
        assert len(told) == len(attrs)
        self.addresses += [told[name] for name in ("href", "src", "srcset", "action", "data") if name in told]
        if tag == "img":
            self.images.append(told)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without its beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data


def made(tmp_path: Path, given: dict[str, Any], frames: list[Pair]) -> tuple[Page, list[Path]]:
    path = tmp_path / "report.html"
    paths = report.write(given, frames, path)
    assert paths[0] == path
    assert sorted(paths) == sorted(tmp_path.iterdir())
    return Page(path.read_text(encoding="utf-8")), paths


def png(image: dict[str, str]) -> bytes:
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    return base64.b64decode(data, validate=True)


def edge(name: str) -> dict[str, Any]:
    """Records at the edge of what there can be."""
    given = record()
    if name == "zeros":
        given["error"] = [[0.0] * 6 for _ in range(4)]
    elif name == "below zero and not a number":
        given["error"][1][2], given["error"][1][3] = -1e-17, math.nan
    elif name == "single phase and layer":
        given = record(phases=1, layers=1)
    elif name == "every step a phase":
        given = record(phases=20)
    elif name == "no psnr":
        given["summary"].update(psnr=None, psnr_ci95=None, psnr_worst=None)
        given["clips"] = [entry | {"psnr": None} for entry in given["clips"]]
    elif name == "same videos":
        given["summary"].update(error=0.0, error_ci95=0.0, psnr=math.inf, psnr_ci95=None, psnr_worst=math.inf)
        given["clips"] = [entry | {"psnr": math.inf, "error": 0.0} for entry in given["clips"]]
    elif name == "one clip":
        given = record(clips=1)
        given["summary"].update(error_ci95=0.0, psnr_ci95=0.0)
    elif name == "a phase without a step, another of two parts":
        given["phases"][0]["steps"], given["phases"][1]["steps"] = "", "1-2,5"
    elif name == "schedules without a name":
        for point in given["frontier"]:
            point["name"] = ""
    elif name == "only the chosen one":
        given = record(points=1)
    elif name == "only one without error":
        given = record(points=1)
        given["frontier"][0]["error"] = 0.0
    return given


EDGES = [
    "zeros", "below zero and not a number", "single phase and layer", "every step a phase", "no psnr", "same videos",
    "one clip", "a phase without a step, another of two parts", "schedules without a name",
    "only the chosen one", "only one without error",
]  # fmt: skip


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
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object", "a"}
    text = paths[0].read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_every_number_of_the_summary_is_said(usual: tuple[Page, list[Path]]) -> None:
    page, _ = usual
    said = " ".join(page.words.split())
    for told in (f"(7.21 ± 1.93) {TIMES} 10⁻⁴", "33.3 ± 0.8 dB", "31.9 dB", "0.31", "52 %", "--min-psnr 30",
                 "✓ The budget holds", "0123456789abcdef", "torch 2.13.0",
                 f"7{TIMES}6{TIMES}10", f"4{TIMES}3{TIMES}5", "shift 3, guidance 4",
                 "measure 14 min", "probe 40 min", "verify 95 s", "'a b'", "6 clips of prompts it was not measured on",
                 "the dog is moving right", 'model = "pocket"'):  # fmt: skip
        assert told in said, told
    for n, entry in enumerate(record()["clips"]):
        assert f"{entry['prompt']} {4 + n} " in said or f"{entry['prompt']}{4 + n}" in said
        assert words.number(entry["error"]) in said
        assert words.decibels(entry["psnr"]) in said


def test_a_budget_that_fails_is_not_said_to_hold(tmp_path: Path) -> None:
    page, _ = made(tmp_path, record() | {"holds": False}, [])
    assert "✗ The budget does not hold" in page.words
    assert "The budget holds" not in page.words


def test_prompts_measured_on_are_not_called_unseen(tmp_path: Path) -> None:
    given = record()
    given["prompts"].append(given["clips"][0]["prompt"])
    page, _ = made(tmp_path, given, [])
    assert "not measured on" not in page.words


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
        assert "on one clip of a prompt it was not measured on" in page.words
    if name == "no psnr":
        assert "PSNR of" not in page.words
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
    one = report.write(given, frames, first / "r.html")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        two = report.write(given, frames, second / "r.html")
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
        high = len(row) - pictures._HEADING
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
        report.write(record(), [Pair("x", None, clip(), clip(count=9))], tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


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
        "import sys, pathlib; from fpsgen import report; report.check_path(pathlib.Path(sys.argv[1]));"
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
        report.write(record(), [], path)
    assert path.read_text() == last
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == (["r.html"] if broken == "write_bytes" else ["r-density.png", "r-error.png", "r.html"])
    for file in tmp_path.glob("*.png"):
        Image.open(file).load()  # raises where a part is missing


def test_a_page_that_is_no_report_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("mine")
    with pytest.raises(UsageError, match="no calibration wrote it"):
        report.check_path(path)
    assert path.read_text() == "mine"


def test_a_report_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    report.write(record(), [], path)
    before = path.read_bytes()
    report.write(record() | {"model": "another"}, [], path)
    assert path.read_bytes() != before


def test_numbers_are_said_at_any_size() -> None:
    said = [words.number(value) for value in (0, 0.0123, 9.999e-5, 1.234e-17, 12345.0, None, math.nan, math.inf)]
    assert said == [
        "0",
        "0.0123",
        f"1.00 {TIMES} 10⁻⁴",
        f"1.23 {TIMES} 10⁻¹⁷",
        f"1.23 {TIMES} 10⁴",
        words.DASH,
        words.DASH,
        "∞",
    ]
    assert words.plus_minus(0.0123, 0.0004) == "0.0123 ± 0.0004"
    assert words.plus_minus(9.999e-5, 1e-5) == f"(1.00 ± 0.10) {TIMES} 10⁻⁴"
    assert words.plus_minus(32.0, None) == "32.0"
    assert [words.seconds(value) for value in (42.4, 720, 12000)] == ["42 s", "12 min", "3 h 20 min"]


def labels(points: list[dict[str, Any]]) -> tuple[list[Any], Any]:
    """What the frontier's labels cover, in pixels, and the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from fpsgen.report import frontier as picture

    figure = Figure(figsize=(8.8, 5.2), dpi=192)
    canvas = FigureCanvasAgg(figure)
    picture.draw(figure, points)
    canvas.draw()
    return [text for text in figure.axes[0].texts if text.get_text()], canvas.get_renderer()


@pytest.mark.parametrize("points", [14, 64])
def test_labels_of_the_frontier_do_not_overlap(points: int) -> None:
    given = frontier(points)
    given += [
        entry | {"name": f"{entry['name']}-{n}"} for n in range(9) for entry in given if entry["kind"] == "preset"
    ]
    texts, renderer = labels(given)
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert len({text.get_text() for text in texts}) == len(texts)
    assert any(text.get_text().startswith("c2") for text in texts), "the chosen one has its name"
    assert 4 < len(texts) <= 8
    assert not [1 for n, box in enumerate(boxes) for other in boxes[:n] if box.overlaps(other)]


def test_the_chosen_one_without_a_name_is_called_chosen() -> None:
    given = [point | {"name": ""} for point in frontier(14)]
    texts, _ = labels(given)
    assert [text.get_text() for text in texts] == ["chosen, 31.8 dB"]


def test_the_line_joins_only_what_nothing_cheaper_beats() -> None:
    from fpsgen.report import frontier as picture

    assert picture._unbeaten([(0.5, 2.0), (0.1, 9.0), (0.6, 3.0), (0.9, 1.0)]) == [(0.1, 9.0), (0.5, 2.0), (0.9, 1.0)]


def test_the_chosen_one_has_its_name_even_in_a_crowd() -> None:
    given = frontier(14)
    chosen = next(point for point in given if point["chosen"])
    for x, y in itertools.product(range(20), range(40)):
        given.append(given[0] | {"cost": x / 20, "error": 10 ** (-5 + y * 3 / 40)})
    chosen["name"] = "$\\frac$"
    texts, _ = labels(given)
    assert texts[0].get_text().startswith("$\\frac$")
