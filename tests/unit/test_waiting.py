"""How torch's threads wait for each other: asleep, so that a busy machine's cores are free for who can use them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["fpsgen", "fpsgen.cli", "benchmarks", "recipes", "tests.conftest"])
@pytest.mark.parametrize(("own", "expected"), [(None, "passive"), ("active", "active")])
def test_openmp_is_told_to_sleep_before_torch_loads_unless_somebody_chose(
    package: str, own: str | None, expected: str
) -> None:
    code = f"""
import os, sys
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            seen.append(os.environ.get("OMP_WAIT_POLICY"))
            raise ModuleNotFoundError("torch, which takes seconds, is not loaded here", name="torch")
sys.meta_path.insert(0, Watch())
try:
    import {package}
except ModuleNotFoundError as absent:
    assert absent.name == "torch", absent
print(os.environ.get("OMP_WAIT_POLICY"), *seen)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"OMP_WAIT_POLICY": own} if own else {})
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert set(ran.stdout.split()) == {expected}


@pytest.mark.slow
def test_two_videos_at_once_take_little_more_than_twice_the_time_of_one() -> None:
    """Needs a machine that does nothing else. The cores are shared by two, and each has its own imports and start."""
    from benchmarks.waiting import measure

    assert measure(rounds=3)["sleeping"]["ratio"] <= 2.3
