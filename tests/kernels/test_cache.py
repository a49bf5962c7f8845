"""Compiled kernels on disk: built once, whole or not there, never in the way."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fpsgen.jit import cache, nvrtc
from fpsgen.jit.attention import VARIANTS


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path / "cache"))
    cache._private_folder.cache_clear()
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every compilation, by its text's first line."""
    seen: list[str] = []
    real = nvrtc.compile_cubin
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda source, *rest: seen.append(source[:40]) or real(source, *rest))
    return seen


def test_once_for_each_content(place: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = cache.build(VARIANTS["A"]), cache.build(VARIANTS["A"])
    assert first.fresh
    assert first == replace(again, fresh=True)
    assert first.cubin.parent.parent == place
    cache.build(VARIANTS["C"])
    assert len(builds) == 2
    source, headers = cache.sources("sm90_attention")
    for changed in ((source + "// edited", headers), (source, headers | {"hopper.cuh": headers["hopper.cuh"] + "\n"})):
        monkeypatch.setattr(cache, "sources", lambda name, changed=changed: changed)
        cache.build(VARIANTS["A"])  # an edited header is another content, too
    assert len(builds) == 4
    monkeypatch.setattr(nvrtc, "version", lambda: (99, 0))
    cache.build(VARIANTS["A"])
    assert len(builds) == 5


def build_in_a_process(_: int) -> tuple[int, bytes]:
    count = 0
    real = nvrtc.compile_cubin

    def counted(*arguments: object) -> tuple[bytes, str]:
        nonlocal count
        count += 1
        return real(*arguments)  # type: ignore[arg-type]

    nvrtc.compile_cubin = counted  # type: ignore[assignment]
    head = cache.build(VARIANTS["E"]).cubin.read_bytes()[:4]
    return count, head


def test_eight_processes_build_once(place: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        found = pool.map(build_in_a_process, range(8), chunksize=1)
    assert sum(count for count, _ in found) == 1
    assert {head for _, head in found} == {b"\x7fELF"}
    assert [path.name for path in place.iterdir() if not path.name.startswith(".")] == [
        cache.build(VARIANTS["E"]).cubin.parent.name
    ]


@pytest.mark.parametrize("damage", ["cut", "changed", "no facts", "facts of another kind", "no cubin"])
def test_damage_heals(place: Path, builds: list[str], damage: str) -> None:
    cubin = cache.build(VARIANTS["A"]).cubin
    whole = cubin.read_bytes()
    facts = cubin.with_name("kernel.json")
    match damage:
        case "cut":
            cubin.write_bytes(whole[:1000])
        case "changed":
            cubin.write_bytes(whole[:-1] + b"x")
        case "no facts":
            facts.unlink()
        case "facts of another kind":
            facts.write_text("[1]")
        case "no cubin":
            cubin.unlink()
    assert cache.build(VARIANTS["A"]).cubin.read_bytes() == whole
    assert len(builds) == 2


@pytest.mark.parametrize("kind", ["a file", "no such parent"])
def test_a_folder_that_cannot_be_used(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builds: list[str], kind: str
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(blocked) if kind == "a file" else "/proc/no/such/place")
    built = cache.build(VARIANTS["A"])
    assert "cannot be used" in str(built.note)
    assert "for this process alone" in str(built.note)
    assert built.cubin.read_bytes()[:4] == b"\x7fELF"
    cache.build(VARIANTS["A"])
    assert len(builds) == 1  # once in a process


def test_a_full_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if place in self.parents:
            raise OSError(28, os.strerror(28))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    built = cache.build(VARIANTS["C"])
    assert "No space left on device" in str(built.note)
    assert built.cubin.exists()
    assert [path.name for path in place.iterdir() if path.is_dir()] == []  # nothing half-written


def test_a_lookup_is_quick(place: Path) -> None:
    """Everything but the compiler: no torch, no process, one read."""
    cache.build(VARIANTS["A"])
    begin = time.perf_counter()
    cache.build(VARIANTS["A"])
    assert time.perf_counter() - begin < 0.05


def test_no_compiler_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc.library.cache_clear()
    monkeypatch.setattr(nvrtc, "wheel_folder", lambda wheel: None)
    monkeypatch.setattr(nvrtc.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(nvrtc.NoCompilerError, match="not installed") as caught:
        nvrtc.library()
    assert "cuda13" in str(caught.value.hint)
    nvrtc.library.cache_clear()


def test_the_cache_may_be_removed_at_any_time(place: Path) -> None:
    cache.build(VARIANTS["A"])
    shutil.rmtree(place)
    assert cache.build(VARIANTS["A"]).cubin.exists()


def test_without_locks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no fcntl."""
    monkeypatch.setattr(cache, "fcntl", None)
    assert cache.build(VARIANTS["A"]).note is None
    assert not cache.build(VARIANTS["A"]).fresh


def test_a_compiler_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libnvrtc.so.13").write_text("no library")
    monkeypatch.setattr(nvrtc, "wheel_folder", lambda wheel: tmp_path)
    nvrtc.library.cache_clear()
    with pytest.raises(nvrtc.NoCompilerError, match="cannot be loaded") as caught:
        nvrtc.library()
    assert caught.value.exit_code == 2
    nvrtc.library.cache_clear()
