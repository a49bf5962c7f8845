"""All kernels, by the names that users type, and what is known of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fpsgen.errors import UsageError
from fpsgen.kernels import cache, sm90_attention, sm90_prologue
from fpsgen.kernels.cache import Kernel
from fpsgen.printable import meant, typed


@dataclass(frozen=True)
class Named:
    """A kernel that has a name; about: what it is for, in a few words."""

    name: str
    about: str
    kernel: Kernel


def _all() -> Iterator[Named]:
    formats = {"A": ("E4M3", "FP32"), "C": ("E4M3", "FP16"), "E": ("INT8", "INT32")}  # of q and k, of their products
    for letter, (qk, scores) in formats.items():
        name, kernel = f"attention-{letter.lower()}", sm90_attention.VARIANTS[letter]
        yield Named(name, f"{qk} q k, {scores} scores", replace(kernel, RAGGED=True))
        if not kernel.SUM_CODES:  # which makes empty slots free
            yield Named(f"{name}-full", f"{qk} q k, {scores} scores, full tiles", replace(kernel, RAGGED=False))
    for letter, (qk, scores) in formats.items():
        name, before = f"prologue-{letter.lower()}", sm90_prologue.VARIANTS[letter]
        about = f"{qk} q k for {scores} scores"
        yield Named(name, f"{about}, k smoothed", replace(before, SMOOTH_K=True))
        yield Named(f"{name}-unsmoothed", f"{about}, k as it is", replace(before, SMOOTH_K=False))


KERNELS = {named.name: named for named in _all()}


def find(name: str) -> Named:
    """The kernel called `name`; UsageError, with the nearest there is, where there is none."""
    if found := KERNELS.get(name.lower()):
        return found
    raise UsageError(f"there is no kernel {typed(name)}", meant(name.lower(), KERNELS) or "fpsgen kernels lists them")


def stale(held: dict[str, cache.Held]) -> dict[str, cache.Held]:
    """Those that no present kernel has: of other sources, or another compiler. NoCompilerError without NVRTC."""
    present = {cache.name_of(named.kernel) for named in KERNELS.values()}
    return {name: own for name, own in held.items() if name not in present}


def redistributed(kernel: Kernel) -> dict[str, int] | None:
    """Registers of each thread after setmaxnreg, as the source has them; None where all keep what they began with."""
    source, _ = cache.sources(kernel.SOURCE)
    wanted = {"consumer": r"registers_grow<(\d+)>", "producer": r"registers_shrink<(\d+)>"}
    found = {role: int(match[1]) for role, call in wanted.items() if (match := re.search(call, source))}
    return found or None
