"""What people type by mistake: `generate` refuses each in one sentence with its fix, exit code 2 and no file, before
anything loads."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools.cli import invoke
from tests.tools.wrong_inputs import cases, furnish

CASES = cases()
IN_PROCESS = [case for case in CASES if case[1][-2:] != ["--gpus", "65"]]  # which a process refuses that it starts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    furnish(folder)
    return folder


def check(code: int, stdout: str, stderr: str, says: str) -> None:
    assert (code, stdout) == (2, ""), stderr
    flat = " ".join(line for line in stderr.splitlines() if not line.startswith("note: "))
    assert flat.startswith("error: ")
    assert flat.count("error: ") == flat.count("hint:  ") == 1, flat
    assert says in flat
    assert "Traceback" not in flat


@pytest.mark.parametrize(("says", "words"), IN_PROCESS, ids=range(len(IN_PROCESS)))
def test_a_wrong_input_costs_one_sentence(
    says: str, words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "none"))
    before = sorted(place.rglob("*"))
    result = invoke(*words, input="")
    check(result.exit_code, result.stdout, result.stderr, says)
    assert sorted(place.rglob("*")) == before
    assert not loads


@pytest.mark.slow
@pytest.mark.parametrize(("says", "words"), CASES, ids=range(len(CASES)))
def test_a_process_says_it_within_three_seconds(says: str, words: list[str], place: Path) -> None:
    """By the clock, or, on a machine that has no core to spare, by the time that it computes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "fpsgen", "generate", *words],
        cwd=place, input="", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    waited, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    check(ran.returncode, ran.stdout, ran.stderr, says)
    assert min(waited, computed) <= 3
