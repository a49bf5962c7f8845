"""Where a figure comes from: the commit of this tree and no other, a machine that tells little."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fpsgen import __version__
from fpsgen.bench import provenance

WHO = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]


def git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a copy of fpsgen in it, not tracked yet."""
    monkeypatch.delenv("FPSGEN_COMMIT", raising=False)
    folder = tmp_path / "venv" / "fpsgen" / "bench"
    folder.mkdir(parents=True)
    (folder / "provenance.py").write_text("1\n")
    (tmp_path / "other.txt").write_text("2\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, *WHO, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(provenance, "_HERE", folder / "provenance.py")
    return tmp_path


def test_a_repository_that_does_not_track_fpsgen_is_another_s(tree: Path) -> None:
    """As where a virtual environment lies in somebody's project."""
    assert provenance.commit() is None
    (tree / ".gitignore").write_text("venv/\n")
    assert provenance.commit() is None


def test_the_tree_s_commit(tree: Path) -> None:
    git(tree, "add", "venv")
    git(tree, *WHO, "commit", "--quiet", "-m", "ours")
    head = git(tree, "rev-parse", "HEAD")
    git(tree, *WHO, "tag", "-a", "-m", "a release", "v1")  # which would have a name of its own
    assert provenance.commit() == head
    assert len(head) == 40
    (tree / "other.txt").write_text("3\n")
    assert provenance.commit() == f"{head}-dirty"


def test_the_environment_says_it_where_git_does_not(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSGEN_COMMIT", "abc")
    assert provenance.commit() == "abc"
    git(tree, "add", "venv")
    assert provenance.commit() == git(tree, "rev-parse", "HEAD") + "-dirty"


def test_a_machine_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No git, no package, no /proc, no sysconf, as on Windows: None, and no error."""

    def missing(name: str) -> str:
        raise provenance.PackageNotFoundError(name)

    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(provenance, "version", missing)
    monkeypatch.setattr(provenance, "_CPUS", tmp_path / "cpuinfo")
    monkeypatch.setattr(provenance.platform, "processor", lambda: "")
    monkeypatch.setattr(subprocess, "run", no_git)
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delenv("FPSGEN_COMMIT", raising=False)
    found = provenance.provenance(["fpsgen", "bench"])
    assert (found["commit"], found["command"]) == (None, ["fpsgen", "bench"])
    machine = found["machine"]
    assert [machine[name] for name in ("cpu", "memory_bytes", "torch", "diffusers", "transformers")] == [None] * 5
    assert (machine["cores"], machine["fpsgen"]) == (os.cpu_count(), __version__)


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    (text := Path("/proc/cpuinfo")).exists() or pytest.skip("for Linux")
    machine = provenance.machine()
    assert machine["memory_bytes"] > 2**28
    assert not machine["cpu"] or machine["cpu"] in text.read_text()
