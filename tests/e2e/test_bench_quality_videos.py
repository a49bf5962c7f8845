"""`fpsgen bench quality`: the videos that it keeps, and what VBench says of them."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from fpsgen.bench import vbench
from tests.tools.bench_quality import Quality
from tests.tools.cli import told
from tests.tools.videos import read


def test_videos_are_kept(quality: Quality, tmp_path: Path) -> None:
    record = quality.record("--videos", "clips")
    for one in record["contenders"]:
        for clip in one["clips"]:
            path = tmp_path / clip["video"]
            assert path.parent == tmp_path / "clips" / one["name"]
            assert path.stem.endswith(f"-{clip['seed']}")
            meta, frames = read(path)
            assert (meta["size"], len(frames)) == ((96, 64), 9)
    count = sum(len(one["clips"]) for one in record["contenders"])
    again = quality("--json", "--no-report", "--videos", "clips")
    assert f"note: {count} videos exist in clips already: the new ones will replace them" in again.stderr
    assert told(again, "bench quality")["contenders"] == record["contenders"]
    (tmp_path / "clips" / "bf16" / "other.mp4").write_bytes(b"")
    assert "holds a video of another run: other.mp4" in quality.refused("--videos", "clips")


@pytest.fixture
def fake_vbench(tmp_path: Path) -> Path:
    """Does as VBench's program: exit status 0 whatever happens, results named by the time, and a python of its own."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    inner = folder / "python"
    inner.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program = folder / "vbench"
    program.write_text(
        f"#!{sys.executable}\n"
        "import argparse, json, os, pathlib, shutil\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('command', choices=['evaluate'])\n"
        "for name in ('videos_path', 'dimension', 'output_path'):\n"
        "    parser.add_argument(f'--{name}', required=True)\n"
        "parser.add_argument('--mode', choices=['custom_input'], required=True)\n"
        "args = parser.parse_args()\n"
        "assert pathlib.Path(shutil.which('python')).parent == pathlib.Path(__file__).parent, 'another python'\n"
        "videos = sorted(os.listdir(args.videos_path))\n"
        "if args.dimension == 'dynamic_degree':\n"
        "    print('CUDA is not there\\n')\n"
        "    raise SystemExit(0)\n"
        "out = pathlib.Path(args.output_path)\n"
        "out.mkdir(parents=True)\n"
        "(out / 'results_now_full_info.json').write_text('[]')\n"
        "each = [{'video_path': v, 'video_results': 0.25} for v in videos]\n"
        "score = len(videos) + len(args.dimension) / 100\n"
        "(out / 'results_now_eval_results.json').write_text(json.dumps({args.dimension: [score, each]}))\n"
    )
    for path in (inner, program):
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return program


def test_vbench_judges_each_folder(quality: Quality, fake_vbench: Path, tmp_path: Path) -> None:
    for _ in range(2):  # results of an earlier run do not stand in the way
        record = quality.record("--videos", "clips", "--vbench", "--vbench-bin", fake_vbench)
    for one in record["contenders"]:
        wanted = {name: pytest.approx(2 + len(name) / 100) for name in vbench.DIMENSIONS} | {"dynamic_degree": None}
        assert one["vbench"] == wanted
        assert f"VBench gave no dynamic_degree of {one['name']}: CUDA is not there" in record["notes"]
    assert "VBench" in quality("--no-report", "--videos", "clips", "--vbench", "--vbench-bin", fake_vbench).stdout


def test_vbench_on_path(quality: Quality, fake_vbench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(fake_vbench.parent), os.environ["PATH"]]))
    assert quality.record("--videos", "clips", "--vbench")["contenders"][0]["vbench"]["imaging_quality"] == 2.15


def test_without_vbench_its_commands_are_told(
    quality: Quality, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = quality("--no-report", "--videos", "my clips", "--vbench")
    assert result.exit_code == 0, result.output
    assert {one["vbench"] for one in json.loads((tmp_path / "bench.json").read_text())["contenders"]} == {None}
    said = result.stdout
    assert "python -m venv vbench-env" in said
    assert "vbench-env/bin/pip install vbench" in said
    assert "cd 'my clips'" in said
    for folder in ("rough.toml", "bf16"):
        run = "vbench evaluate --mode custom_input --dimension aesthetic_quality --videos_path"
        assert f"{run} {folder} --output_path vbench-results/{folder}/aesthetic_quality" in said
