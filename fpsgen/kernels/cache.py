"""Compiled kernels on disk: one folder for each content, published by one rename, built once however many ask.

A folder is named by the hash of everything that the cubin depends on: source, headers, options, version of NVRTC. It
holds the cubin and what is known of it, with a hash of both, so that a file that was cut short or edited is noticed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
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

try:
    import fcntl
except ModuleNotFoundError:  # on Windows two processes may both compile, and one rename wins
    fcntl = None  # type: ignore[assignment]

from fpsgen import assets, files
from fpsgen.errors import UsageError
from fpsgen.kernels import nvrtc

_CUBIN, _FACTS = "kernel.cubin", "kernel.json"
_MOST = 2**26  # bytes of either, a hundred times what one has: whatever is put there, reading it ends
# All that is ever written into the cache: a kernel's folder, its lock, and a folder that was not finished.
_KERNEL = r"\w+-[0-9a-f]{32}"
_OURS = re.compile(rf"({_KERNEL})|\.(?P<lock>{_KERNEL})\.lock|\.({_KERNEL})-[a-z0-9_]{{8}}", re.ASCII)


class Kernel(Protocol):
    """The host side of one `.cu`: a frozen dataclass of its compile-time parameters."""

    SOURCE: ClassVar[str]  # name of the file, without .cu
    architecture: ClassVar[str]  # what it is compiled for, as nvcc has it: sm_90a
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
    """What ptxas says of one entry function: per thread, and per block static shared memory and named barriers."""

    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int
    barriers: int


@dataclass(frozen=True)
class Built:
    """A kernel file with its options, compiled. cubin: for `cupy.RawModule(path=…)`; functions: by entry name."""

    name: str
    options: tuple[str, ...]
    cubin: Path
    functions: dict[str, Resources]
    fresh: bool = False  # compiled by this call
    note: str | None = None  # why it is not in the cache

    @property
    def size(self) -> int:
        """Bytes of the cubin."""
        return self.cubin.stat().st_size


@dataclass(frozen=True)
class Held:
    """What the cache holds under one name, which need not be that of a kernel of today.

    folders: the kernel's own, and any that was not finished. size: bytes of the files in them.
    """

    folders: tuple[Path, ...]
    size: int


def folder() -> Path:
    """Where compiled kernels are kept."""
    return assets.cache("kernels")


def capability(architecture: str) -> tuple[int, int]:
    """The compute capability of the cards that an architecture is for: (9, 0) for sm_90a."""
    return divmod(int("".join(filter(str.isdecimal, architecture))), 10)


def build(kernel: Kernel, within: Path | None = None) -> Built:
    """A kernel, from the cache or compiled now. within: another folder than the cache's.

    Where the cache cannot be written, compiled for this process alone; `note` says why. CompileError where it does
    not compile, spills registers or is serialised; NoCompilerError where there is no NVRTC.
    """
    place = (within or folder()) / name_of(kernel)
    if found := read(kernel, place):
        return found
    if (found := _PRIVATE.get(place)) and found.cubin.exists():
        return replace(found, fresh=False)
    compiled = None
    try:
        with locked(place):
            if found := read(kernel, place):  # another process was faster
                return found
            compiled = compile_checked(kernel)
            return publish(kernel, place, compiled)
    except OSError as fault:
        compiled = compiled or compile_checked(kernel)
        why = f"{place.parent} cannot be used ({fault.strerror or fault})"
        try:
            made = publish(kernel, _private_folder() / place.name, compiled)
        except OSError as again:
            hint = "make room, or let FPSGEN_CACHE_DIR name another folder"
            raise UsageError(f"{why}, nor can {tempfile.gettempdir()} ({again.strerror or again})", hint) from None
        _PRIVATE[place] = replace(made, note=f"{why}: compiled for this process alone")
        return _PRIVATE[place]


def find(kernel: Kernel) -> Built | None:
    """A kernel that is compiled; None if it is not. NoCompilerError as `name_of`."""
    return read(kernel, folder() / name_of(kernel))


def name_of(kernel: Kernel) -> str:
    """The name of its folder in the cache; NoCompilerError without NVRTC, whose version is part of it."""
    content = json.dumps([*sources(kernel.SOURCE), options_of(kernel), nvrtc.version()])
    return f"{kernel.SOURCE}-{hashlib.sha256(content.encode()).hexdigest()[:32]}"


def options_of(kernel: Kernel) -> tuple[str, ...]:
    defines = (f"-D{name}={value}" for name, value in kernel.defines.items())
    return f"-arch={kernel.architecture}", "-std=c++17", "--ptxas-options=-v", *defines


@cache
def sources(name: str) -> tuple[str, dict[str, str]]:
    """A kernel's text and the headers that it may include, by name."""
    kernels = assets.folder("kernels_cuda")
    headers = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted([*kernels.glob("*.cuh"), *kernels.glob("device/*.cuh")])
    }
    return (kernels / f"{name}.cu").read_text(encoding="utf-8"), headers


def compile_checked(kernel: Kernel) -> tuple[bytes, dict]:
    """The kernel's cubin and its functions' resources, as `checked`."""
    return checked(kernel.SOURCE, kernel.architecture, *sources(kernel.SOURCE), options_of(kernel))


def checked(
    name: str, architecture: str, source: str, headers: dict[str, str], options: tuple[str, ...]
) -> tuple[bytes, dict]:
    """A cubin and its functions' resources; CompileError where ptxas spilled, or gave up on asynchronous wgmma."""
    cubin, log = nvrtc.compile_cubin(source, headers, list(options), f"{name}.cu")
    name = f"{name}, for {architecture}"
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
        spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        rest = (r"Used (\d+) registers", r"(\d+) bytes stack frame", r"(\d+) bytes smem", r"used (\d+) barriers")
        registers, stack, shared, barriers = (int(n[1]) if (n := re.search(words, part)) else 0 for words in rest)
        found[entry] = Resources(registers, spilled, stack, shared, barriers)
    return found


def read(kernel: Kernel, place: Path) -> Built | None:
    """A kernel that is there and whole; None otherwise."""
    try:
        facts = json.loads(content(place / _FACTS))
        if hash_of(content(place / _CUBIN), facts) != facts["sha256"]:
            return None
        functions = {entry: Resources(**used) for entry, used in facts["functions"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Built(kernel.SOURCE, options_of(kernel), place / _CUBIN, functions)


def content(path: Path) -> bytes:
    """A cache file's content; OSError where something else stands in its place, or what is far too large."""
    with files.open_regular(path) as file:
        found = file.read(_MOST + 1)
    if len(found) > _MOST:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return found


def hash_of(cubin: bytes, facts: dict) -> str:
    """The hash of a cubin and all else that is known of it."""
    known = json.dumps({**facts, "sha256": None}, sort_keys=True)
    return hashlib.sha256(cubin + known.encode()).hexdigest()


def publish(kernel: Kernel, place: Path, compiled: tuple[bytes, dict]) -> Built:
    """Write a kernel beside its place, then rename it there: it is whole, or it is not there."""
    cubin, functions = compiled
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        (beside / _CUBIN).write_bytes(cubin)
        facts = {"name": kernel.SOURCE, "options": options_of(kernel), "nvrtc": nvrtc.version(), "functions": functions}
        facts["sha256"] = hash_of(cubin, facts)
        (beside / _FACTS).write_text(json.dumps(facts, indent=2), encoding="utf-8")
        beside.chmod(0o777 & ~_umask())  # mkdtemp's is for one user, and a cache may be made by another
        if place.is_dir() and not place.is_symlink():  # damaged
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
        beside.rename(place)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    built = read(kernel, place)
    if built is None:
        raise OSError(f"{place} did not keep what was written")
    return replace(built, fresh=True)


def contents() -> dict[str, Held]:
    """What the cache holds, by the name that a folder or a lock has; nothing of what else lies there, nor links.

    OSError if its folder cannot be read.
    """
    found: dict[str, list[Path]] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder()) as entries:
        for entry in entries:
            if (match := _OURS.fullmatch(entry.name)) and not entry.is_symlink():
                folders = found.setdefault(next(filter(None, match.groups())), [])
                if entry.is_dir() and not match["lock"]:
                    folders.append(Path(entry.path))
    return {name: Held(tuple(folders), sum(map(size, folders))) for name, folders in sorted(found.items())}


def size(place: Path) -> int:
    """Bytes of the files in a folder, links not followed; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(place):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(parent) / name).lstat().st_size
    return total


def remove(name: str) -> Held | None:
    """Take all that the cache holds under a name, and say what it was; None where a process is building it just now.

    OSError where it cannot be removed.
    """
    with locked(folder() / name, wait=False) as ours:
        if not ours:
            return None
        found = contents().get(name, Held((), 0))
        for own in found.folders:
            shutil.rmtree(own)
        lock_of(folder() / name).unlink(missing_ok=True)
    return found


def lock_of(place: Path) -> Path:
    return place.parent / f".{place.name}.lock"


@contextlib.contextmanager
def locked(place: Path, wait: bool = True) -> Iterator[bool]:
    """One process at a time builds or removes a kernel; the lock goes with the process that holds it.

    Yields whether it was had, which without `wait` it may not be.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(100):  # once more where `remove` took away the file that we were waiting for
        with open(lock_of(place), "w", opener=not_a_link) as file:
            had = True
            try:
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                had = False
            if not had or os.fstat(file.fileno()).st_nlink:
                yield had
                return
    raise OSError(errno.ESTALE, "other processes keep removing its lock")


def not_a_link(path: str, flags: int) -> int:
    """Opens a file for `open`; OSError where somebody has put a link or a pipe in its place."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _umask() -> int:
    """The umask of this process; it can only be read by being set."""
    own = os.umask(0)
    os.umask(own)
    return own


# Kernels that the cache could not keep, by the place that they should have had.
_PRIVATE: dict[Path, Built] = {}


@cache
def _private_folder() -> Path:
    """A folder that goes when this process ends."""
    held = contextlib.ExitStack()
    atexit.register(held.close)
    return held.enter_context(files.temporary_folder("kernels"))
