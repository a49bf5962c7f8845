"""`fpsgen generate --gpus`, on a CPU: processes that gloo connects render one video."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.tools.cli import invoke
from tests.tools.videos import read

BASE = ["generate", "a red robot", "--model", "pocket", "--device", "cpu", "--dtype", "fp32", "--seed", "3"]


def command(gpus: int, *args: object, torchrun: bool = False) -> list[str]:
    start = ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m"] if torchrun else []
    return [sys.executable, "-m", *start, "fpsgen", *BASE, "--gpus", f"{gpus}", *map(str, args)]


@contextlib.contextmanager
def begun(
    output: Path, gpus: int = 2, steps: int = 500
) -> Iterator[tuple[subprocess.Popen[str], dict[str, psutil.Process]]]:
    """A run of several processes that has made its first step, and these by their numbers; none is left after it."""
    run = subprocess.Popen(
        command(gpus, "--steps", steps, "-o", output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("step "):
                break
        yield run, {child.environ()["RANK"]: child for child in psutil.Process(run.pid).children()}
    finally:
        run.kill()
        run.communicate()


def ended(run: subprocess.Popen[str]) -> list[str]:
    """The errors that a run tells, which fails."""
    _, told = run.communicate(timeout=40)
    assert run.returncode == 1, told
    return [line for line in told.splitlines() if line.startswith("error:")]


def test_a_device_that_is_one_gpu_is_refused() -> None:
    refused = invoke("a cat", "--gpus", 2, "--device", "cuda:1")
    assert refused.exit_code == 2
    assert "--device cuda:1 is one GPU, and --gpus 2 asks for several" in refused.output


def test_torchrun_with_another_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused = invoke("a cat", "--gpus", 2)
    assert refused.exit_code == 2
    assert "--gpus 2: torchrun has started 4 processes" in refused.output


def test_one_video_is_not_made_by_each_of_torchrun_s_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    refused = invoke("a cat", "--model", "pocket")
    assert refused.exit_code == 2
    assert "torchrun has started 4 processes, and there is one video" in refused.output


@pytest.mark.slow  # each process loads torch
@pytest.mark.parametrize("torchrun", [False, True])
def test_two_processes_make_the_video_of_one(tmp_path: Path, torchrun: bool) -> None:
    own = ("--steps", 3, "--frames", 9, "--preset", "bf16", "--json")
    one = subprocess.run(command(1, *own, "-o", tmp_path / "1.mkv"), capture_output=True, text=True, check=True)
    several = command(2, *own, "-o", tmp_path / "2.mkv", torchrun=torchrun)
    two = subprocess.run(several, capture_output=True, text=True, check=True)
    alone, shared = json.loads(one.stdout), json.loads(two.stdout)
    assert ("gpus" in alone, shared["gpus"]) == (False, 2)
    assert len(list(tmp_path.iterdir())) == 2
    far = abs(read(alone["output"])[1].astype(int) - read(shared["output"])[1].astype(int))
    assert far.max() <= 1  # of 255: one process computes both guidance branches in a batch, in other last bits
    assert far.mean() < 0.01


@pytest.mark.slow
def test_a_number_that_does_not_divide_the_heads_is_refused(tmp_path: Path) -> None:
    run = subprocess.run(command(4, "-o", tmp_path / "v.mp4"), capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.splitlines() == [
        "error: --gpus 4: a model of 3 heads with guidance cannot be shared out evenly over 4 GPUs",
        "hint:  use 1, 2, 3 or 6 of them",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("gpus", [2, 3])  # each a guidance branch; each some tokens
def test_a_process_that_is_killed_ends_all_with_one_sentence(tmp_path: Path, rank: str, gpus: int) -> None:
    with begun(tmp_path / "v.mp4", gpus) as (run, processes):
        processes[rank].kill()
        assert ended(run) == ["error: a process of this run was ended, and so the others end, too"]
        assert psutil.wait_procs([*processes.values()], timeout=10)[1] == []
    assert not (tmp_path / "v.mp4").exists()


@pytest.mark.slow
def test_many_videos_of_standard_input(tmp_path: Path) -> None:
    """With seeds that the first process draws."""
    command = [sys.executable, "-m", "fpsgen", "generate", "--prompts", "-", *BASE[2:-2], "--gpus", "2"]
    command += ["--frames", "5", "--steps", "2", "-o", f"{tmp_path}/"]
    run = subprocess.run(command, input="a cat\na dog\n", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "2 made" in run.stderr
    assert len(list(tmp_path.glob("*.mp4"))) == 2


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    with begun(tmp_path / "v.mkv", 3, 60) as (run, processes):
        processes["2"].kill()
        ended(run)
    for name, resume in (("v.mkv", ["--resume"]), ("whole.mkv", [])):
        subprocess.run(command(3, "--steps", 60, "-o", tmp_path / name, *resume), capture_output=True, check=True)
    resumed, whole = (read(tmp_path / name)[1] for name in ("v.mkv", "whole.mkv"))
    assert (resumed == whole).all()


@pytest.mark.slow
def test_the_launcher_takes_all_with_it(tmp_path: Path) -> None:
    with begun(tmp_path / "v.mp4") as (run, processes):
        run.kill()
        assert psutil.wait_procs([*processes.values()], timeout=10)[1] == []


@pytest.mark.slow
def test_ctrl_c_stops_all(tmp_path: Path) -> None:
    with begun(tmp_path / "v.mp4") as (run, processes):
        os.kill(run.pid, signal.SIGINT)
        begin = time.monotonic()
        _, told = run.communicate(timeout=30)
        assert time.monotonic() - begin < 20
        assert run.returncode == 130, told
        assert psutil.wait_procs([*processes.values()], timeout=10)[1] == []
        assert "stopped" in told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "torchrun has started 1 processes"), ({"WORLD_SIZE": "x"}, "which is no process of a run"),
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT"), ({"WORLD_SIZE": "1", "RANK": "5"}, "which is no process"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}, "MASTER_ADDR and MASTER_PORT"),
    ],
)  # fmt: skip
def test_an_environment_that_torchrun_does_not_make_is_told(
    more: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", **more}.items():
        monkeypatch.setenv(name, value)
    refused = invoke("a cat", "--model", "pocket", "--gpus", 2)
    assert refused.exit_code == 2
    assert words in refused.output
