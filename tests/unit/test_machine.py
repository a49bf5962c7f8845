"""What is known of a machine, of a card without having one, and where a figure comes from."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from fpsgen import __version__, machine

WHO = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]


def git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a copy of fpsgen in it, not tracked yet."""
    monkeypatch.delenv("FPSGEN_COMMIT", raising=False)
    folder = tmp_path / "venv" / "fpsgen"
    folder.mkdir(parents=True)
    (folder / "machine.py").write_text("1\n")
    (tmp_path / "other.txt").write_text("2\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, *WHO, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(machine, "_HERE", folder / "machine.py")
    return tmp_path


def test_a_repository_that_does_not_track_fpsgen_is_another_s(tree: Path) -> None:
    """As where a virtual environment lies in somebody's project."""
    assert machine._commit() is None
    (tree / ".gitignore").write_text("venv/\n")
    assert machine._commit() is None


def test_the_tree_s_commit(tree: Path) -> None:
    git(tree, "add", "venv")
    git(tree, *WHO, "commit", "--quiet", "-m", "ours")
    head = git(tree, "rev-parse", "HEAD")
    git(tree, *WHO, "tag", "-a", "-m", "a release", "v1")  # which would have a name of its own
    assert machine._commit() == head
    assert len(head) == 40
    (tree / "other.txt").write_text("3\n")
    assert machine._commit() == f"{head}-dirty"


def test_the_environment_says_it_where_git_does_not(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSGEN_COMMIT", "abc")
    assert machine._commit() == "abc"
    git(tree, "add", "venv")
    assert machine._commit() == git(tree, "rev-parse", "HEAD") + "-dirty"


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No git, no package, no /proc, as on Windows: None, and no error."""

    def missing(name: str) -> str:
        raise machine.PackageNotFoundError(name)

    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(machine, "version", missing)
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(subprocess, "run", no_git)
    monkeypatch.delenv("FPSGEN_COMMIT", raising=False)
    found = machine.provenance(["fpsgen", "bench"])
    assert (found["commit"], found["command"]) == (None, ["fpsgen", "bench"])
    here = found["machine"]
    assert [here[name] for name in ("cpu", "torch", "diffusers", "transformers")] == [None] * 4
    assert (here["cores"], here["fpsgen"]) == (os.cpu_count(), __version__)


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    (text := Path("/proc/cpuinfo")).exists() or pytest.skip("for Linux")
    here = machine.provenance([])["machine"]
    assert here["memory_bytes"] > 2**28
    assert not here["cpu"] or here["cpu"] in text.read_text()


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
    assert machine.slug(name) == slug


def test_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def smi(command: list[str], **_: object) -> subprocess.CompletedProcess:
        asked.append(command[-1])
        known = not command[-1].startswith("--id")  # as where the UUID is not the host's
        return subprocess.CompletedProcess(command, 0 if known else 6, "1980, 2619, 121.50, [N/A]\n" if known else "")

    uuid = type("Properties", (), {"uuid": "1-2"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: uuid)
    monkeypatch.setattr(subprocess, "run", smi)
    found = machine.card_state(torch.device("cuda", 0))
    assert found == {"clocks.sm": 1980.0, "clocks.mem": 2619.0, "power.draw": 121.5, "temperature.gpu": None}
    assert asked[0] == "--id=GPU-1-2"


@pytest.mark.parametrize(("smi", "clock", "driver"), [("580.1, 1980, 700.00", 1.98e9, "580.1"), (None, 1.83e9, None)])
def test_a_card_has_the_highest_clock_that_is_known(
    smi: str | None, clock: float, driver: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without nvidia-smi, an H100's of its datasheet; the record says whose it is."""
    about = {"name": "NVIDIA H100", "major": 9, "minor": 0, "multi_processor_count": 132, "total_memory": 80 * 2**30}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(**about, L2_cache_size=50))
    monkeypatch.setattr(machine, "_printed", lambda command: smi or "")
    found = machine.card(torch.device("cuda", 0))
    assert (found.gpu, found.capability, found.multiprocessors) == ("NVIDIA H100", "9.0", 132)
    assert (found.clock_hz, found.driver) == (clock, driver)
    assert ("nvidia-smi" in found.clock_source) == (smi is not None)


def test_no_state_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"uuid": "1-2"}))
    monkeypatch.setattr(subprocess, "run", absent)
    assert machine.card_state(torch.device("cuda", 0)) is None


def test_a_card_is_lost_once_it_raises_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert machine.is_alive(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert machine.is_alive(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert not machine.is_alive(torch.device("cuda", 0))


_FAULTS = """
import resource, torch
from fpsgen import machine

def faults_of(tensors):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.empty(2**24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

machine.reuse_memory()
faults_of(20)  # about five of them take new memory, because a block just freed is too short to be aligned in
print(faults_of(19))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other ways")
def test_memory_that_tensors_give_back_serves_the_next_ones() -> None:
    """19 tensors of 64 MiB, one after the other: the system clears no page for any of them."""

    def faults(**settings: str) -> int:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | settings
        run = subprocess.run([sys.executable, "-c", _FAULTS], env=env, capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert faults() < 32  # the pages of one tensor, were they of 2 MiB
    assert faults(MALLOC_MMAP_THRESHOLD_="1000000") >= 19 * 32  # settings of the user's own win


def test_processes_beside_each_other_share_the_host_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: types.SimpleNamespace(available=1000))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert machine.free_bytes(torch.device("cpu")) == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "x")
    assert machine.free_bytes(torch.device("cpu")) == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # as torchrun and `--gpus` set it
    assert machine.free_bytes(torch.device("cpu")) == 250
