"""NVIDIA's run-time compiler, through ctypes: it needs neither a GPU nor a driver, so a laptop can compile for a card.

CuPy has bindings, but drops a cubin's last byte and chooses the architecture itself; and it is not there without CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from fpsgen.errors import FpsgenError, UsageError

# Wheels that carry it, newest first; extras cuda13 and cuda12 install one, and so does a CUDA build of torch.
_WHEELS = {13: "nvidia-cuda-nvrtc", 12: "nvidia-cuda-nvrtc-cu12"}
_INSTALL = 'pip install "fpsgen[cuda13]"'


class CompileError(FpsgenError):
    """A kernel did not compile; the compiler's log is the message's end."""


class NoCompilerError(UsageError):
    """NVRTC is not installed, or cannot be loaded."""


def compile_cubin(
    source: str, headers: dict[str, str], options: list[str], name: str = "kernel.cu"
) -> tuple[bytes, str]:
    """The cubin of `source` and the compiler's log; `headers` are what it may include, by name. name: for its errors.

    CompileError where it does not compile, NoCompilerError where there is nothing to compile with.
    """
    nvrtc, text = chosen(), ctypes.c_char_p
    names = [name.encode() for name in headers]
    bodies = [body.encode() for body in headers.values()]
    program = ctypes.c_void_p()
    included = len(names), (text * len(names))(*bodies), (text * len(names))(*names)
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), *included))
    try:
        given = [option.encode() for option in options]
        result = nvrtc.nvrtcCompileProgram(program, len(given), (text * len(given))(*given))
        log = output(program, "ProgramLog").decode(errors="replace").rstrip("\0").strip()
        if result:
            raise CompileError(f"{name} does not compile: {log}")
        return output(program, "CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def output(program: ctypes.c_void_p, name: str) -> bytes:
    """What NVRTC has under a name: the log or the cubin."""
    nvrtc, size = chosen(), ctypes.c_size_t()
    check(nvrtc[f"nvrtcGet{name}Size"](program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    check(nvrtc[f"nvrtcGet{name}"](program, buffer))
    return buffer.raw


@cache
def version() -> tuple[int, int]:
    """Major and minor version of CUDA that NVRTC belongs to."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    check(chosen().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


@cache
def library() -> ctypes.CDLL:
    """NVRTC from a wheel, or from a CUDA toolkit where the system's linker finds one; NoCompilerError without."""
    try:
        if found := found_library():
            return found
    except OSError as fault:
        raise NoCompilerError(f"NVRTC, which compiles kernels, cannot be loaded: {fault}", _INSTALL) from None
    raise NoCompilerError("NVRTC, which compiles kernels, is not installed", _INSTALL)


def found_library() -> ctypes.CDLL | None:
    """OSError where it is there and cannot be loaded."""
    driver = driver_version() or (99, 0)  # one for CUDA 12 does not load what CUDA 13 compiled
    in_turn = sorted(_WHEELS, key=lambda major: (major > driver[0], -major))
    folders = [folder for major in in_turn if (folder := wheel_folder(_WHEELS[major]))]
    for folder in folders:
        if found := loaded(folder):
            return found
    name = ctypes.util.find_library("nvrtc")
    return ctypes.CDLL(name) if name else None


def loaded(folder: Path) -> ctypes.CDLL | None:
    """The NVRTC that lies in a folder. OSError where it is there and cannot be loaded."""
    # NVRTC 13.0 opens this by its bare name, which the linker finds only if it is loaded already.
    for builtins in sorted(folder.glob("libnvrtc-builtins.so.*")):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    for path in sorted(folder.glob("libnvrtc.so.*")):
        return ctypes.CDLL(str(path))
    return None


_beside: list[ctypes.CDLL] = []


def chosen() -> ctypes.CDLL:
    """The NVRTC that compiles now: that of `using`, or else the machine's."""
    return _beside[-1] if _beside else library()


@contextlib.contextmanager
def using(folder: Path) -> Iterator[None]:
    """Compile with the NVRTC of another folder meanwhile: what a machine that has it would run.

    NoCompilerError where there is none.
    """
    try:
        found = loaded(folder)
    except OSError as fault:
        raise NoCompilerError(f"NVRTC cannot be loaded from {folder}: {fault}") from None
    if not found:
        raise NoCompilerError(f"there is no NVRTC in {folder}")
    _beside.append(found)
    version.cache_clear()
    try:
        yield
    finally:
        _beside.pop()
        version.cache_clear()


@cache
def driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the installed driver runs, asked of itself: torch without CUDA cannot tell."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return number.value // 1000, number.value % 1000 // 10


def wheel_folder(wheel: str) -> Path | None:
    """Where an installed wheel has its libraries."""
    try:
        found = files(wheel) or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).parent for file in found if file.name.startswith("libnvrtc.so")), None)


def check(result: int) -> None:
    """CompileError for what NVRTC says went wrong outside a kernel."""
    if result:
        nvrtc = chosen()
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(f"NVRTC: {nvrtc.nvrtcGetErrorString(result).decode()}")
