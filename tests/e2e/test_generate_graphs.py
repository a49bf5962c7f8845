"""`fpsgen generate` with CUDA graphs, which a CPU stands in for, and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from fpsgen import pipeline
from fpsgen.wan import graphs
from tests.tools.cli import Runner, invoke
from tests.tools.graphs import Recorder
from tests.tools.videos import metadata, read


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(graphs, "on_cuda", recorder)
    monkeypatch.setattr(pipeline, "why_not", lambda *_: None)
    return recorder


def test_the_video_is_the_same(run: Runner, as_on_a_gpu: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(steps=4)
    assert as_on_a_gpu.events == ["capture", "replay", "replay", "replay"]
    assert report["graphs"]["captured"] == 1
    assert report["graphs"]["why_not"] is None
    assert metadata(report["output"])["graphs"] == report["graphs"]
    monkeypatch.setattr(pipeline, "why_not", graphs.why_not)
    output = run.directory / "plain.mp4"
    given = ("--res", "96x64", "--frames", 5, "--steps", 4, "--seed", 1, "--model", run.folder, "-o", output)
    result = invoke("a cat surfing", *given, "--no-graphs", "--verbose")
    assert result.exit_code == 0, result.output
    assert "no CUDA graphs: nobody asked for them" in result.stderr
    assert len(as_on_a_gpu.events) == 4
    assert (read(output)[1] == read(report["output"])[1]).all()


@pytest.mark.parametrize("verbose", [False, True])
def test_how_many_there_are_is_a_detail(run: Runner, as_on_a_gpu: Recorder, verbose: bool) -> None:
    given = ("--res", "96x64", "--frames", 5, "--steps", 2, "--model", run.folder, "-o", run.directory / "v.mp4")
    result = invoke("a cat surfing", *given, *(["--verbose"] if verbose else []))
    assert ("1 CUDA graph was captured" in result.stderr) is verbose


def test_a_capture_that_fails_is_told_once_and_costs_nothing(run: Runner, as_on_a_gpu: Recorder) -> None:
    expected = read(run(steps=4)["output"])[1]
    as_on_a_gpu.fails = 2
    report = run(steps=4)
    assert report["graphs"] == {"captured": 0, "seconds": 0.0, "why_not": report["graphs"]["why_not"]}
    assert "the first cause" in report["graphs"]["why_not"]
    assert (read(report["output"])[1] == expected).all()
    as_on_a_gpu.fails = 3
    given = ("--res", "96x64", "--frames", 5, "--steps", 4, "--model", run.folder, "-o", run.directory / "v.mp4")
    assert invoke("a cat surfing", *given).stderr.count("the first cause") == 1


def test_a_cpu_has_none(run: Runner) -> None:
    assert run()["graphs"]["captured"] == 0
    given = ("--res", "96x64", "--frames", 5, "--steps", 2, "--model", run.folder, "-o", run.directory / "v.mp4")
    assert "CUDA graphs" not in invoke("a cat surfing", *given).stderr
    assert "no CUDA graphs: nobody asked for them" in invoke("a cat surfing", *given, "--verbose").stderr


@pytest.mark.parametrize("device", [(), ("--device", "cpu")])
def test_where_they_cannot_be_they_are_refused(
    run: Runner, loads: list[str], tmp_path: Path, device: tuple[str, ...]
) -> None:
    result = invoke("a cat", "--model", run.folder, "--graphs", *device, "-o", tmp_path / "v.mp4")
    assert result.exit_code == 2
    assert "--graphs" in result.stderr
    assert "hint:" in result.stderr
    assert not loads
    assert not list(tmp_path.glob("*.mp4"))
