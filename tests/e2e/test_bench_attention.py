"""`fpsgen bench attention` through the command line; a CPU stands in for the card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fpsgen import machine
from fpsgen.bench.attention import run
from fpsgen.bench.attention.contenders import Trial
from fpsgen.bench.attention.shapes import DENSITIES, Shape
from fpsgen.cli import app, bench_attention
from tests.tools.attention import CARD, fake, line
from tests.tools.disk import fill_disk

ROOT = Path(__file__).parents[2]


def attention(*args: object) -> Any:
    return CliRunner().invoke(app, ["bench", "attention", *map(str, args)])


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a card, on which everything runs at once; an empty folder."""

    def contenders(what: Shape) -> list[Trial]:
        dense = line("sdpa", name="sdpa-flash", bits=16, density=1.0, window=None)
        ours = line("together", name="fp8-fp16, together", variant="fp8-fp16", density=1.0)
        return [
            Trial(dense, lambda: 1),
            Trial(line("kernel", variant="fp8-fp16", density=1.0)),
            Trial(ours),
        ]

    fake(monkeypatch, contenders)
    on_a_card(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_attention, "chosen_device", lambda smoke: torch.device("cpu"))
    monkeypatch.setattr(machine, "device_name", lambda _: CARD.gpu)


def test_a_record_and_a_report(card: Path) -> None:
    result = attention("--model", "1.3b", "--res", "480p,96x64", "--repeats", 3)
    assert result.exit_code == 0, result.output
    written = ["bench-attention-h100.json", "bench-attention-h100.html"]
    assert result.stdout.splitlines()[-2:] == written
    for told in ("1.3b 480p: 32760 tokens", "1.3b 96x64: 504 tokens", "sdpa-flash", "Times as fast as dense attention"):
        assert told in result.stdout
    assert "1.3b 480p: checking sdpa-flash: runs" in result.stderr  # a log has a line for each contender
    record = json.loads((card / written[0]).read_text())
    assert list(record)[:2] == ["kind", "format"]
    assert (record["kind"], record["format"], record["repeats"]) == ("attention", 1, 3)
    assert [len(one["samples_ms"]) for case in record["cases"] for one in case["lines"]] == [3] * 6
    assert "NVIDIA H100 made up" in (card / written[1]).read_text()


def test_json_alone(card: Path) -> None:
    result = attention("--smoke", "--json", "--no-report")
    from tests.tools.cli import told  # not above, for it reads videos

    found = told(result, "bench attention")
    assert (found["record"], found["report"]) == ("bench-attention-smoke.json", None)
    assert [case["model"] for case in found["cases"]] == ["smoke"]
    assert found["repeats"] == 5
    assert not result.stderr
    record = json.loads((card / found["record"]).read_text())
    assert record == {key: value for key, value in found.items() if key in record}
    assert sorted(path.name for path in card.iterdir()) == [found["record"]]


def settings(monkeypatch: pytest.MonkeyPatch, *args: object) -> run.AttentionJob:
    """What a command would measure."""
    given = []

    def measure(wanted: run.AttentionJob, *_: object) -> None:
        given.append(wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "measure", measure)
    result = attention(*args)
    assert result.exit_code == 130, result.output
    return given[0]


def test_values_with_commas_and_again(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(monkeypatch)
    assert [str(one) for one in found.shapes] == ["1.3b 480p", "1.3b 720p", "14b 480p", "14b 720p"]
    assert (found.densities, found.variants) == (DENSITIES, ("fp8-fp32", "fp8-fp16", "int8-int32"))
    assert (found.repeats, found.seconds) == (20, 500)
    args = ["--model", "14B", "--res", "720p", "--density", "1,1/4", "--density", "0.1", "--variant", "INT8-int32,c,e"]
    found = settings(monkeypatch, *args, "--repeats", 7, "--seconds", 60)
    assert [str(one) for one in found.shapes] == ["14b 720p"]
    assert (found.densities, found.variants) == (("1", "1/4", "0.1"), ("int8-int32", "fp8-fp16"))
    assert (found.repeats, found.seconds) == (7, 60)
    assert (found.tops, found.rest) == ((), "drop")
    found = settings(monkeypatch, "--top", "1/6,0.1")
    assert (found.tops, found.rest, found.densities) == (("1/6", "0.1"), "drop", ("1/6", "0.1"))
    found = settings(monkeypatch, "--top", "1/6", "--rest", "summary", "--density", "1")
    assert (found.tops, found.rest, found.densities) == (("1/6",), "summary", ("1",))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--model", "3b"], "--model 3b: there is no such model"),
        (["--model", "1.3b,,14b"], "--model has an empty value"),
        (["--res", "480p,huge"], "--res huge is not a size"),
        (["--res", "100x100"], "100x100: both sides must be multiples of 16"),
        (["--density", "1,2"], "--density 2 is not a share of token pairs"),
        (["--density", "x"], "--density x is not a share"),
        (["--density", "1/0"], "--density 1/0 is not a share"),
        (["--density", "1e-99999999"], "is not a share"),
        (["--top", "0"], "--top 0 is not a share of key tiles"),
        (["--top", "25 %"], "--top 25 % is not a share of key tiles"),
        (["--rest", "summary"], "there is no --top"),
        (["--variant", "B"], "--variant b: there is no such variant"),
        (["--seconds", "0"], "--seconds 0: must be 10 to 1000000"),
        (["--seconds", "nan"], "--seconds nan: must be"),
        (["--smoke", "--model", "14b"], "--smoke has a shape of its own"),
        (["--report", "x.html", "--no-report"], "contradict each other"),
    ],
)
def test_wrong_values_are_refused_before_a_card_is_looked_for(args: list[str], told: str) -> None:
    result = attention(*args)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "hint:" in result.stderr


def test_without_a_card_it_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = attention("--model", "14b", "--json")
    assert result.exit_code == 2
    assert "fpsgen bench attention needs a CUDA GPU" in result.stderr
    assert json.loads(result.stdout)["hint"].startswith("fpsgen doctor says")


def test_a_tiny_shape_runs_on_a_cpu_by_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles chosen by content beside a window of the same share, which see more and fewer pairs of tokens."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    result = attention("--smoke", "--top", "1/4", "--rest", "summary", "--repeats", 1)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "bench-attention-smoke.json").read_text())
    (case,) = record["cases"]
    assert record["card"] is None
    window, top = (one for one in case["lines"] if one["kind"] == "reference")
    assert (window["wanted"], window["window"], "top" in window, "rest" in window) == ("1/4", [1, 3, 2], False, False)
    assert (top["wanted"], top["window"], top["top"], top["rest"]) == ("top 1/4", None, 0.25, "summary")
    assert top["density"] == pytest.approx(5 / 18 + 13 / 2016)  # of 18 tiles; a mean for each of the other 13
    for one in (window, top):
        assert one["error_to_exact"] < 0.01
        assert one["median_ms"] > 0
        assert one["speedup"]["sdpa-math"]["alone"] > 0
        assert "share" not in one  # of a roofline, which a CPU does not have
    assert "top 25 % with summary" in result.stdout
    page = (tmp_path / "bench-attention-smoke.html").read_text()
    assert "top 25 % with summary" in page
    assert "CUDA events" not in page
    told = (ROOT / "docs" / "bench.md").read_text()
    assert not [key for one in case["lines"] for key in one if f"`{key}`" not in told]


def test_a_base_is_named(card: Path) -> None:
    (card / "results").mkdir()
    base = card / "results" / "attention-h100"
    for _ in range(2):  # what a bench wrote the next may replace
        assert attention("--smoke", "--no-report", "-o", base).exit_code == 0
    assert sorted(path.name for path in base.parent.iterdir()) == ["attention-h100.json"]


def test_nothing_else_is_replaced(card: Path) -> None:
    (card / "mine.json").write_text("{}")
    (card / "folder").mkdir()
    for output, told in [
        ("mine.json", "mine.json exists, and no bench wrote it"),
        ("mine.txt", "a record is a .json file"),
        ("folder", "folder"),
        ("nowhere/at/all.json", "the folder nowhere/at does not exist"),
    ]:
        result = attention("--smoke", "-o", output)
        assert (result.exit_code, told in result.stderr) == (2, True), result.output
    assert sorted(path.name for path in card.iterdir()) == ["folder", "mine.json"]


def test_faults_leave_with_1(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict:
        raise RuntimeError("an illegal address")

    fake(
        monkeypatch,
        lambda _: [Trial(line("sdpa", name="a", density=1.0)), Trial(line(density=1.0), check=broken)],
    )
    result = attention("--smoke", "--no-report")
    assert result.exit_code == 1
    assert "FAULT: RuntimeError: an illegal address" in result.stdout
    assert "failed" in result.stderr


def test_results_outlive_a_disk_that_becomes_full(card: Path) -> None:
    real, results = run.Measurer.run, []
    for form in ((), ("--json",)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run.Measurer, "run", lambda own, patch=patch: (fill_disk(patch, ".json"), real(own)))
            results.append(attention("--smoke", "--no-report", *form))
    assert [result.exit_code for result in results] == [1, 1]
    assert "Times as fast as dense attention" in results[0].stdout
    said = " ".join(results[0].stderr.split())
    assert "error: bench-attention-smoke.json cannot be written: No space left on device" in said
    record = json.loads(results[1].stdout)
    assert (record["record"], "No space left" in record["unwritten"], len(record["cases"])) == (None, True, 1)


def test_a_disk_that_is_full_is_told_before_anything_is_measured(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, ".json")
    result = attention("--smoke", "--no-report")
    assert (result.exit_code, "checking" in result.stderr) == (1, False)
    assert "cannot be written: No space left on device" in " ".join(result.stderr.split())


def test_it_runs_where_packages_are_missing(tmp_path: Path) -> None:
    """A machine with a card and torch, and little else: no diffusers, no ffmpeg, no transformers, nor what others need.

    The whole command, all of torch's own contenders included; torch's kernels for CPUs stand in for the card's.
    """
    missing = [
        "diffusers", "imageio_ffmpeg", "transformers", "psutil", "cupy", "triton", "ftfy", "safetensors",
        "huggingface_hub", "tokenizers", "matplotlib",
    ]  # fmt: skip
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing}))
import pytest, torch
from tests.tools.attention import fake
from tests.e2e.test_bench_attention import on_a_card
from fpsgen.cli import main
with pytest.MonkeyPatch.context() as patch:
    fake(patch)
    on_a_card(patch)
    sys.argv = ["fpsgen", "bench", "attention", "--smoke", "--repeats", "1", "-o", {str(tmp_path / "found")!r}]
    main()
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "no report is written: matplotlib" in found.stderr
    [case] = json.loads((tmp_path / "found.json").read_text())["cases"]
    timed = {one["name"] for one in case["lines"] if "samples_ms" in one}
    assert {"sdpa-flash", "sdpa-math", "norm and RoPE, eager"} <= timed
