"""What several tests need and one compiler makes of the same input: made once in a session, shared by its workers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

try:
    import fcntl
except ModuleNotFoundError:  # on Windows two workers may both make it, and one rename wins
    fcntl = None  # type: ignore[assignment]

from fpsgen.kernels import disassembly, nvrtc
from fpsgen.kernels.disassembly import Code

FOLDER = "FPSGEN_TEST_MADE"  # the variable that names the session's folder


def made(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, which `make` writes beside it where no process has done so before."""
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            beside = path.with_name(f"{path.name}.{os.getpid()}")
            make(beside)
            beside.replace(path)
    return path


@contextlib.contextmanager
def compilations() -> Iterator[None]:
    """Cubins of the same text, options and version of NVRTC, and nvdisasm's listings of the same cubin, are kept."""
    compile_cubin, disassembled = nvrtc.compile_cubin, disassembly.disassembled
    listed: dict[tuple[str, bytes], dict[str, Code]] = {}

    def kept_cubin(source: str, headers: dict[str, str], options: list[str], name: str = "kernel.cu") -> tuple:
        asked = json.dumps([source, headers, options, name, nvrtc.version()])
        place = Path(os.environ[FOLDER]) / f"{hashlib.sha256(asked.encode()).hexdigest()}.cubin"

        def make(beside: Path) -> None:
            cubin, log = compile_cubin(source, headers, options, name)
            beside.write_bytes(log.encode() + b"\0" + cubin)

        log, _, cubin = made(place, make).read_bytes().partition(b"\0")
        return cubin, log.decode()

    def kept_listing(cubin: Path) -> dict[str, Code]:
        asked = str(disassembly.tool()), hashlib.sha256(cubin.read_bytes()).digest()
        if asked not in listed:
            listed[asked] = disassembled(cubin)
        return listed[asked]

    with (
        mock.patch.object(nvrtc, "compile_cubin", kept_cubin),
        mock.patch.object(disassembly, "disassembled", kept_listing),
    ):
        yield
