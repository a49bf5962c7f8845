"""What `benchmarks.attention` does around its measurements without a card: time, the record, tables, the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import card, record
from benchmarks.attention import __main__ as attention
from benchmarks.attention import report
from benchmarks.attention.contenders import Contender, Inputs
from benchmarks.attention.shapes import DENSITIES, Deadline, Shape, rounds, shape
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid

CARD = {
    "gpu": "NVIDIA H100 made up", "multiprocessors": 132, "clock_hz": 1.98e9, "clock_source": "a guess",
    "copy_bytes_per_second": 3e12, "driver": "1.2.3", "cuda": "13.0", "cudnn": 91000, "cupy": "14.2.0",
    "triton": "3.6.0", "nvrtc": "13.0",
}  # fmt: skip


def line(kind: str = "kernel", **more: object) -> dict:
    return {"kind": kind, "name": kind, "bits": 8, "stages": [[1e12, 1e9]], **more}


# ---- time -----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now += seconds

        return work


def test_rounds_end_in_time() -> None:
    for seconds, of_total, of_own, expected in [
        (1.0, 100, 50, (20, None)),
        (10.0, 100, 45, (4, "this shape's share of the budget was spent")),  # a fifth would end after it
        (10.0, 100, 15, (3, "this shape's share of the budget was spent")),  # three at least,
        (10.0, 25, 15, (2, "the budget of seconds was spent")),  # while there is time at all
        (10.0, 0, 0, (0, "the budget of seconds was spent")),
    ]:
        clock = Clock()
        work = clock.spend(seconds)
        assert rounds(work, 20, 3, Deadline(of_total, clock), Deadline(of_own, clock)) == expected


def test_what_a_share_leaves_falls_to_the_others() -> None:
    clock = Clock()
    total = Deadline(100, clock)
    assert total.share(4).left == 25
    clock.spend(10)()
    assert total.share(3).left == 30
    assert Deadline(-5, clock).share(2).left < 0


# ---- the record, and what is made of it -----------------------------------------------------------------------------


def made_up() -> dict:
    flops = AttentionPlan(shape("14b", "720p").tiles).flops(40, 128)
    dense = {"bits": 16, "density": 1.0, "window": None, "stages": [[flops, 3e9]]}
    ours, chosen = {"variant": "C", "bits": 8}, {"wanted": "1/10", "window": [7, 3, 3], "density": 0.1}
    before, stage = [0, 3e9], [flops / 10, 2e9]
    errors = {"error_to_emulator": {"13 bits": 0.001}, "error_to_exact": 0.055}
    lines = [
        {"kind": "sdpa", "name": "SDPA cuDNN", **dense, "samples_ms": [201.0, 200.0, 199.0], "error_to_exact": 0.004},
        {"kind": "sdpa", "name": "SDPA math", **dense, "why_not": "left out"},
        {"kind": "prepare", "name": "norm and RoPE, eager", "bits": 16, "stages": [before], "samples_ms": [10.0]},
        {"kind": "prologue", "name": "C, prologue", **ours, "stages": [before], "samples_ms": [2.0]},
        {"kind": "kernel", "name": "C, kernel", **ours, **chosen, "stages": [stage], "samples_ms": [8.0], **errors},
        {"kind": "together", "name": "C, together", **ours, **chosen, "stages": [before, stage], "samples_ms": [10.0]},
        {"kind": "flex", "name": "flex", "bits": 16, **chosen, "stages": [stage], "fault": "it broke"},
    ]
    at = {"clocks.sm": 1980.0, "clocks.mem": 2619.0, "power.draw": 120.5, "temperature.gpu": 40.0}
    case = {**shape("14b", "720p").facts, "lines": lines, "before": at, "after": at, "rounds": 3, "cut": "no time"}
    head = {"command": ["python", "-m", "benchmarks.attention"], "machine": {"torch": "2.11.0"}, "card": dict(CARD)}
    return {**head, "repeats": 20, "seconds": 500, "cases": [case]}


def test_what_follows_from_the_samples() -> None:
    made = made_up()
    lines = made["cases"][0]["lines"]
    report.derive(lines, CARD)
    cudnn, _, _, prologue, kernel, together, flex = lines
    assert (cudnn["median_ms"], cudnn["min_ms"]) == (200.0, 199.0)
    assert cudnn["tflops"] == pytest.approx(585.3, rel=1e-3)
    assert kernel["tflops"] == pytest.approx(1463, rel=1e-3)
    assert kernel["datasheet_share"] == pytest.approx(1463 / 1979, rel=1e-3)
    peak = 8192 * 132 * 1.98e9
    assert (kernel["share"], kernel["bound"]) == (pytest.approx(1.1705e13 / peak / 8e-3, rel=1e-3), "tensor cores")
    assert (prologue["share"], prologue["bound"]) == (0.5, "memory")  # 3 GB at 3 TB/s is 1 ms
    assert "tflops" not in prologue
    assert together["roofline_ms"] == pytest.approx(1 + kernel["roofline_ms"])
    assert kernel["speedup"] == {"SDPA cuDNN": {"alone": 25.0, "prepared": 26.25}}
    assert together["speedup"] == {"SDPA cuDNN": {"alone": 20.0, "prepared": 21.0}}
    assert "median_ms" not in flex
    assert not report.of_datasheet({**CARD, "multiprocessors": 114})  # a PCIe card


def test_the_page() -> None:
    made = made_up()
    report.derive(made["cases"][0]["lines"], CARD)
    text = report.document(json.loads(json.dumps(made)))  # of what was written, too
    for told in (
        "# Attention on one NVIDIA H100 made up",
        "## 14b 720p: 75600 tokens (21x45x80 in 630 tiles of 3x5x8), 40 heads of 128",
        "| SDPA cuDNN | 200 | 199 | 585 | 55 %, tensor cores | 0.40 % |",
        "| SDPA math | not run |",
        "- SDPA math: left out",
        "- flex at density 0.1: FAULT: it broke",
        "- no time",
        "- before: SM clock 1980.0 MHz, 120.5 W, 40.0 °C",
        "| C | 0.1 | 7x3x3 | 8 | 8 | 1463 | 68 %, tensor cores | 74 % | 2 (50 %) | 10 (65 %) | 0.10 % | 5.50 % |",
        "| C | 0.1 | 25.00 / 20.00 / 21.00 |",
    ):
        assert told in text, told
    assert max(len(one) for one in text.split("\n") if one[:1] not in ("|", "-")) <= 118


def test_the_page_of_a_card_without_hopper(capsys: pytest.CaptureFixture[str]) -> None:
    """No line of ours, and no clock: the page says so, and nothing breaks."""
    made = made_up()
    case = made["cases"][0]
    case["lines"] = [case["lines"][0], line("prologue", name="C", variant="C", why_not="it is for Hopper")]
    case["before"] = None
    report.derive(case["lines"], CARD)
    text = report.document(made)
    assert "- C: it is for Hopper" in text
    assert "Times as fast as" not in text
    attention.draw(case)
    assert "SDPA cuDNN" in capsys.readouterr().out


def fake(monkeypatch: pytest.MonkeyPatch, made: Callable[[Inputs], list[Contender]]) -> None:
    """In the place of a card: contenders and a watch that counts calls."""

    class Watch:
        def __init__(self, _: torch.device):
            pass

        def time(self, calls: list[Callable[[], object]]) -> list[float]:
            return [1.0 + bool(call()) for call in calls]

    monkeypatch.setattr(attention, "contenders", lambda inputs, *_: made(inputs))
    monkeypatch.setattr(attention, "Inputs", lambda what, *_: what)
    monkeypatch.setattr(card, "Stopwatch", Watch)
    monkeypatch.setattr(card, "state", lambda _: None)


def test_a_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written after each shape; one that fails says where, and the next one runs."""
    seen = []

    def contenders(what: Shape) -> list[Contender]:
        seen.append(json.loads((tmp_path / "found.json").read_text())["cases"] if len(seen) else None)
        if what.res == "bad":
            raise MemoryError("no more")
        return [Contender(line("sdpa", name="a", density=1.0), lambda: 0), Contender(line("sdpa", name="b"), lambda: 1)]

    fake(monkeypatch, contenders)  # type: ignore[arg-type]
    args = attention.parsed(["--repeats", "4"])
    shapes = [Shape("tiny", res, TileGrid((5, 6, 7), (2, 2, 3)), 3) for res in ("good", "bad", "last")]
    made = {**made_up(), "cases": []}
    attention.run(shapes, args, torch.device("cpu"), Deadline(60), tmp_path / "found", made)
    good, bad, last = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert seen[1:] == [[good], [good, bad]]
    assert [one["samples_ms"] for one in good["lines"]] == [[1.0] * 4, [2.0] * 4]
    assert bad["fault"] == "MemoryError while making the inputs: no more"
    assert [attention.troubled(case) for case in (good, bad, last)] == [False, True, False]
    assert not attention.troubled({**good, "cut": "the budget", "rounds": 3})
    assert attention.troubled({**good, "cut": "the budget", "rounds": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "found.md"]


def test_time_that_is_up_leaves_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However stuck the process is: the file says what it was doing."""
    left = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: left.set() if code == 1 else None)
    made = {**made_up(), "cases": [{"doing": "checking C, kernel 1/4"}]}
    attention.end_at(Deadline(0.01), tmp_path / "found", made)
    assert left.wait(10)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["cut"], found["cases"]) == ("the budget of seconds was spent", made["cases"])


def test_arguments() -> None:
    args = attention.parsed([])
    assert (args.model, args.res, args.density) == (["1.3b", "14b"], ["480p", "720p"], list(DENSITIES))
    assert (args.variant, args.repeats, args.seconds) == (["A", "C", "E"], 20, 500)
    assert attention.parsed(["--smoke"]).repeats == 5
    for wrong in (["--density", "2"], ["--density", "x"], ["--repeats", "0"], ["--model", "3b"], ["--seconds", "0"]):
        with pytest.raises(SystemExit) as left:
            attention.parsed(wrong)
        assert left.value.code == 2


def test_without_a_card_and_without_packages_it_says_so() -> None:
    """One sentence and exit code 2; nothing is imported that a bare machine with a card may lack."""
    missing = ["diffusers", "imageio_ffmpeg", "psutil", "cupy", "triton", "typer", "ftfy"]
    code = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({missing})); sys.argv = ['attention'];"
        "runpy.run_module('benchmarks.attention', run_name='__main__')"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    root = Path(record.__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == "benchmarks.attention needs a CUDA GPU, and torch sees none here.\n"
    assert not found.stdout


# ---- where it ran ---------------------------------------------------------------------------------------------------


def test_provenance_with_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise record.PackageNotFoundError(name)

    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(record, "version", missing)
    monkeypatch.setattr(subprocess, "run", no_git)
    found = record.provenance(["python"])
    assert found["commit"] is None
    assert [found["machine"][name] for name in ("torch", "diffusers", "transformers", "fpsgen")] == [None] * 4
    assert found["machine"]["memory_bytes"] > 2**28


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
    ],
)
def test_names_of_cards(name: str, slug: str) -> None:
    assert card.slug(name) == slug


def test_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def smi(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(command[-1])
        known = not command[-1].startswith("--id")  # as where the UUID is not the host's
        return subprocess.CompletedProcess(command, 0 if known else 6, "1980, 2619, 121.50, [N/A]\n" if known else "")

    uuid = type("Properties", (), {"uuid": "1-2"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: uuid)
    monkeypatch.setattr(subprocess, "run", smi)
    found = card.state(torch.device("cuda", 0))
    assert found == {"clocks.sm": 1980.0, "clocks.mem": 2619.0, "power.draw": 121.5, "temperature.gpu": None}
    assert asked[0] == "--id=GPU-1-2"
