"""Compiled kernels on disk: one folder for each content, published by one rename, built once however many ask.

A folder is named by the hash of everything that the cubin depends on: source, headers, options, version of NVRTC. It
holds the cubin and what is known of it, its own hash included, so that a file that was cut short is noticed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Protocol

from fpsgen import assets
from fpsgen.jit import nvrtc

_ARCHITECTURE = "sm_90a"
_CUBIN, _FACTS = "kernel.cubin", "kernel.json"


class Kernel(Protocol):
    """The host side of one `.cu`: a frozen dataclass of its compile-time parameters."""

    SOURCE: ClassVar[str]  # name of the file, without .cu
    THREADS: ClassVar[int]  # of a block

    def __hash__(self) -> int: ...

    @property
    def defines(self) -> dict[str, int]: ...

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        ...


@dataclass(frozen=True)
class Resources:
    """What ptxas says of one entry function: per thread, in bytes, and per block."""

    registers: int
    spilled_bytes: int
    stack_bytes: int


@dataclass(frozen=True)
class Built:
    """A kernel file with its options, compiled. cubin: for `cupy.RawModule(path=…)`; functions: by entry name."""

    name: str
    options: tuple[str, ...]
    cubin: Path
    functions: dict[str, Resources]
    fresh: bool = False  # compiled by this call
    note: str | None = None  # why it is not in the cache


def folder() -> Path:
    """Where compiled kernels are kept: FPSGEN_CACHE_DIR, or the user's cache."""
    if given := os.environ.get("FPSGEN_CACHE_DIR"):
        return Path(given).expanduser() / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fpsgen" / "kernels"


def build(kernel: Kernel) -> Built:
    """A kernel, from the cache or compiled now.

    Where the cache cannot be written, compiled for this process alone; `note` says why. CompileError where it does
    not compile, spills registers or is serialised; NoCompilerError where there is no NVRTC.
    """
    name = kernel.SOURCE
    source, headers = sources(name)
    options = options_of(kernel)
    place = folder() / f"{name}-{key(source, headers, options)}"
    if found := read(name, options, place):
        return found
    try:
        with locked(place):
            if found := read(name, options, place):  # another process was faster
                return found
            return publish(name, options, place, compile_checked(name, source, headers, options))
    except OSError as fault:
        private = Path(_private_folder().name) / place.name
        made = read(name, options, private) or publish(
            name, options, private, compile_checked(name, source, headers, options)
        )
        why = f"{folder()} cannot be used ({fault.strerror or fault}): compiled for this process alone"
        return replace(made, note=why)


def options_of(kernel: Kernel) -> tuple[str, ...]:
    """The compiler's."""
    defines = (f"-D{name}={value}" for name, value in kernel.defines.items())
    return f"-arch={_ARCHITECTURE}", "-std=c++17", "--ptxas-options=-v", *defines


@cache
def sources(name: str) -> tuple[str, dict[str, str]]:
    """A kernel's text and the headers that it may include, by name."""
    kernels = assets.folder("kernels_cuda")
    headers = {path.name: path.read_text() for path in sorted([*kernels.glob("*.cuh"), *kernels.glob("device/*.cuh")])}
    return (kernels / f"{name}.cu").read_text(), headers


def key(source: str, headers: dict[str, str], options: tuple[str, ...]) -> str:
    content = json.dumps([source, headers, options, nvrtc.version()])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def compile_checked(name: str, source: str, headers: dict[str, str], options: tuple[str, ...]) -> tuple[bytes, dict]:
    """The cubin and its functions' resources; CompileError where ptxas spilled, or gave up on asynchronous wgmma."""
    cubin, log = nvrtc.compile_cubin(source, headers, list(options))
    if serialised := re.findall(r"\(C75\d\d\)", log):  # 0 spills, and yet several times slower
        raise nvrtc.CompileError(f"{name}: ptxas serialised the tensor cores' work {sorted(set(serialised))}: {log}")
    functions = resources(log)
    if spilling := [entry for entry, used in functions.items() if used.spilled_bytes]:
        raise nvrtc.CompileError(f"{name}: {', '.join(spilling)} spills registers: {log}")
    return cubin, {entry: asdict(used) for entry, used in functions.items()}


def resources(log: str) -> dict[str, Resources]:
    """From the log of `--ptxas-options=-v`, by entry function."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        entry = part.split("'")[0]
        registers = re.search(r"Used (\d+) registers", part)
        stack = re.search(r"(\d+) bytes stack frame", part)
        spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        found[entry] = Resources(int(registers[1]) if registers else 0, spilled, int(stack[1]) if stack else 0)
    return found


def read(name: str, options: tuple[str, ...], place: Path) -> Built | None:
    """A kernel that is there and whole; None otherwise."""
    try:
        facts = json.loads((place / _FACTS).read_text())
        if hashlib.sha256((place / _CUBIN).read_bytes()).hexdigest() != facts["sha256"]:
            return None
        functions = {entry: Resources(**used) for entry, used in facts["functions"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Built(name, options, place / _CUBIN, functions)


def publish(name: str, options: tuple[str, ...], place: Path, compiled: tuple[bytes, dict]) -> Built:
    """Write a kernel beside its place, then rename it there: it is whole, or it is not there."""
    cubin, functions = compiled
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        (beside / _CUBIN).write_bytes(cubin)
        facts = {
            "name": name,
            "options": options,
            "nvrtc": nvrtc.version(),
            "sha256": hashlib.sha256(cubin).hexdigest(),
            "functions": functions,
        }
        (beside / _FACTS).write_text(json.dumps(facts, indent=2))
        if place.exists():  # damaged, or `read` had found it
            shutil.rmtree(place)
        beside.rename(place)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    built = read(name, options, place)
    if built is None:
        raise OSError(f"{place} did not keep what was written")
    return replace(built, fresh=True)


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """One process at a time builds a kernel; the lock goes with the process that holds it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{place.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def _private_folder() -> tempfile.TemporaryDirectory:
    """A folder that goes when this process ends."""
    return tempfile.TemporaryDirectory(prefix="fpsgen-kernels-")
