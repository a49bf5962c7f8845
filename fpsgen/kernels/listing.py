"""All kernels, by the names that users type, and what is known of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fpsgen.errors import UsageError
from fpsgen.kernels import cache, sm90_attention, sm90_elementwise, sm90_prologue, sm90_select
from fpsgen.kernels.cache import Kernel
from fpsgen.printable import meant, typed


@dataclass(frozen=True)
class Named:
    """A kernel that has a name; about: what it is for, in a few words."""

    name: str
    about: str
    kernel: Kernel


def _all() -> Iterator[Named]:
    for variant, kernel in sm90_attention.VARIANTS.items():
        name, about = f"attention-{variant}", _formats(variant)
        yield Named(name, about, kernel)
        if kernel.SCORES != "INT32":
            yield Named(f"{name}-120", f"{about}, tiles of at most 120 tokens", replace(kernel, KEYS=120))
    for variant, before in sm90_prologue.VARIANTS.items():
        name, about = f"prologue-{variant}", _formats(variant)
        for smooth, words, smoothed in (("", "k smoothed", True), ("-unsmoothed", "k not smoothed", False)):
            plain = replace(before, SMOOTH_K=smoothed)
            yield Named(f"{name}{smooth}", f"{about}, {words}", plain)
            yield Named(f"{name}{smooth}-summary", f"{about}, {words}, with a summary", replace(plain, SUMMARY=True))
    for room, chooser in sm90_select.VARIANTS.items():
        yield Named(f"select-{room}", f"key tiles by their content, of {room} at most", chooser)
    for precision, between in sm90_elementwise.VARIANTS.items():
        form = {"16bit": "16 bits"}.get(precision, precision.upper())
        yield Named(f"elementwise-{precision}", f"norms, residual, GELU; the next product's input in {form}", between)


def _formats(variant: str) -> str:
    qk, scores = variant.upper().split("-")
    return f"q and k in {qk}, scores in {scores}"


KERNELS = {named.name: named for named in _all()}


def find(name: str) -> Named:
    """The kernel called `name` now or formerly (attention-c); UsageError, with the nearest name, if there is none."""
    parts = name.lower().split("-")
    if found := KERNELS.get("-".join([*parts[:1], *map(sm90_attention.variant_named, parts[1:])])):
        return found
    raise UsageError(f"there is no kernel {typed(name)}", meant(name.lower(), KERNELS) or "fpsgen kernels lists them")


def stale(held: dict[str, cache.Held]) -> dict[str, cache.Held]:
    """Compiled kernels that no present source and compiler make. NoCompilerError without NVRTC."""
    present = {cache.name_of(named.kernel) for named in KERNELS.values()}
    return {name: own for name, own in held.items() if name not in present}


def redistributed(kernel: Kernel) -> dict[str, int] | None:
    """Registers of each thread after setmaxnreg, as the source has them; None where all keep what they began with."""
    source, _ = cache.sources(kernel.SOURCE)
    wanted = {"consumer": r"registers_grow<(\d+)>", "producer": r"registers_shrink<(\d+)>"}
    found = {role: int(match[1]) for role, call in wanted.items() if (match := re.search(call, source))}
    return found or None
