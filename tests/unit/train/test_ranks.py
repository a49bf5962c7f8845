"""Training on several processes, which torchrun starts: as one does, and ended as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fpsgen.train import state
from fpsgen.train.loop import train
from tests.tools.training import job, log, render

ROOT = Path(__file__).parents[3]


def run(processes: int, model: Path, out: Path, **given: Any) -> subprocess.CompletedProcess[str]:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *start, "-m", "tests.tools.training", str(model), str(out), json.dumps(given)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def sentences(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """What a run that failed said, besides torchrun."""
    assert ended.returncode == 1, ended.stderr
    return [line for line in ended.stderr.splitlines() if line.lower().startswith("error: ")]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in log(out)]


# Of equal weights the losses differ by the order of sums alone; each step of lr 1e-4 multiplies what it has become.
ALIKE = 1e-4


@pytest.mark.slow  # through the command line two processes are in tests/e2e/test_train.py
def test_two_processes_learn_as_one_and_one_goes_on_for_two(wan_folder: Path, tmp_path: Path) -> None:
    """With uneven batches, so that one process has passes that count nothing, and with a rendering after each step."""
    settings = {"steps": 4, "batch": 3, "micro": 1, "lr": 1e-4, "save_every": 2, "warm_up": 0, "check_every": 1}
    train(job(wan_folder, tmp_path / "one", settings=settings, check=render), lambda event: None)
    killed = run(2, wan_folder, tmp_path / "two", settings=settings, kill_at=[1, 3])
    assert len(sentences(killed)) == 1
    assert losses(tmp_path / "two")[:2] == pytest.approx(losses(tmp_path / "one")[:2], abs=ALIKE)
    train(job(wan_folder, tmp_path / "two", settings=settings, check=render), lambda event: None)
    one, two = (state.about(tmp_path / own / "checkpoints" / "step-4")["best"][1] for own in ("one", "two"))
    assert two == pytest.approx(one, abs=ALIKE)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=ALIKE)


def test_a_process_that_fails_ends_all_with_one_sentence(wan_folder: Path, tmp_path: Path) -> None:
    settings = {"steps": 4, "batch": 2, "warm_up": 0, "save_every": 1, "check_every": 1}
    ended = run(2, wan_folder, tmp_path, settings=settings, raise_at=[1, 2])
    (sentence,) = sentences(ended)
    assert "process 1 of 2" in sentence
    assert "a fault of process 1 alone" in sentence
    assert (tmp_path / "checkpoints" / "step-1").is_dir()


@pytest.mark.slow  # as the first
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_ends_all_with_one_sentence(wan_folder: Path, tmp_path: Path, lost: int) -> None:
    settings = {"steps": 4, "batch": 3, "warm_up": 0, "save_every": 1, "check_every": 1}
    (sentence,) = sentences(run(3, wan_folder, tmp_path, settings=settings, kill_at=[lost, 2]))
    assert "a process of this run was ended" in sentence


@pytest.mark.slow  # a minute
@pytest.mark.parametrize("own", [{}, {"lora": 4}, {"optimizer": "muon", "from_scratch": True, "distil": 0.0}])
def test_curves_are_alike_over_50_steps_and_after_a_kill(wan_folder: Path, tmp_path: Path, own: dict[str, Any]) -> None:
    settings = {"steps": 50, "batch": 4, "micro": 2, "lr": 1e-4, "save_every": 10, "warm_up": 20, "recompute": True}
    settings |= {"check_every": 25, **own}
    assert run(1, wan_folder, tmp_path / "one", settings=settings).returncode == 0
    two = run(2, wan_folder, tmp_path / "two", settings=settings)
    assert two.returncode == 0, two.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=ALIKE)
    assert len(sentences(run(2, wan_folder, tmp_path / "killed", settings=settings, kill_at=[1, 25]))) == 1
    assert run(1, wan_folder, tmp_path / "killed", settings=settings).returncode == 0
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "one"), abs=ALIKE)
