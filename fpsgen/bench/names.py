"""Who can be compared, by name: known before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from fpsgen.bench.dense_kernels import KERNELS
from fpsgen.errors import UsageError
from fpsgen.presets import BF16, Preset, shipped
from fpsgen.printable import printable

DIFFUSERS = "diffusers"


def check(preset: str, names: Sequence[str]) -> None:
    """UsageError where there is none of a name, or a preset's file is none."""
    for name in names:
        if name not in (DIFFUSERS, *KERNELS, *shipped.GRADES):
            compared(name)
    if preset not in shipped.GRADES:
        shipped.find(preset)


def compared(name: str) -> Preset:
    """The preset that --compare calls `name`."""
    try:
        return shipped.find(name)
    except UsageError as fault:
        if not str(fault).startswith("there is no preset"):
            raise
        known = ", ".join((BF16.name, *shipped.GRADES, *KERNELS, DIFFUSERS))
        hint = f"give one of {known}, a preset of `fpsgen presets`, or its .toml file"
        raise UsageError(f"--compare {printable(name)}: there is nothing of that name", hint) from None
