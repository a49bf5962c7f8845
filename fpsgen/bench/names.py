"""Who can be compared, by name. Names are checked before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fpsgen.bench.dense_kernels import KERNELS
from fpsgen.errors import UsageError, option
from fpsgen.presets import BF16, shipped

DIFFUSERS = "diffusers"
STEPS = "steps:"  # and how many: dense attention with fewer steps


def fewer_steps(name: str) -> int | None:
    """How many steps the contender `name` has; None where it has those of the video. UsageError where that is no
    number."""
    if not name.startswith(STEPS):
        return None
    if not (match := re.fullmatch(STEPS + "([1-9][0-9]{0,3})", name, re.ASCII)):
        usage = f"write a whole number of steps from 1 to the video's own: {option('compare', STEPS + '13')}"
        raise UsageError(f"{option('compare', name)} does not name a number of steps", hint=usage)
    return int(match[1])


def check(preset: str, names: Sequence[str], clips: bool = False) -> list[str]:
    """The names of those that the preset is compared with. They are `names`; bf16 is added where all others have fewer
    steps, because these are never what fidelity is measured against.

    UsageError for a name that nothing has, a preset's file that is damaged, or a preset compared with itself. clips:
    for `bench quality`, where bf16 is torch's own choice like `generate`'s, and diffusers cannot take part.
    """
    fewer = [name for name in names if fewer_steps(name)]
    given, names = names, [BF16.name, *names] if len(fewer) == len(names) else list(names)
    for name in names:
        if name in (DIFFUSERS, *KERNELS, *shipped.GRADES, *fewer):
            continue
        try:
            shipped.find(name)
        except UsageError as fault:
            if not str(fault).startswith("there is no preset"):
                raise
            known = ", ".join((BF16.name, *shipped.GRADES, *KERNELS, DIFFUSERS, f"{STEPS}13"))
            hint = f"give one of {known}, a preset of `fpsgen presets`, or its .toml file"
            raise UsageError(f"{option('compare', name)}: there is no preset or kernel of that name", hint) from None
    if preset not in shipped.GRADES:
        shipped.find(preset)
    if preset in names and (clips or preset != BF16.name):
        told, hint = "is what fewer steps are measured against", f"choose another {option('preset')}"
        if preset in given:
            told, hint = "is compared with itself", f"{hint}, or name another with {option('compare')}"
        raise UsageError(f"{option('preset', preset)} {told}", hint)
    if clips and DIFFUSERS in names:
        hint = f"`fpsgen bench {option('compare', DIFFUSERS)}` makes one video by it"
        raise UsageError(f"{option('compare', DIFFUSERS)}: bench quality compares presets and kernels", hint)
    return names
