"""Who can be compared, by name. Names are checked before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from fpsgen.bench.dense_kernels import KERNELS
from fpsgen.errors import UsageError, option
from fpsgen.presets import BF16, shipped

DIFFUSERS = "diffusers"


def check(preset: str, names: Sequence[str], clips: bool = False) -> None:
    """UsageError for a name that nothing has, a preset's file that is damaged, or a preset compared with itself.

    clips: for `bench quality`, where bf16 is torch's own choice like `generate`'s, and diffusers cannot take part.
    """
    for name in names:
        if name in (DIFFUSERS, *KERNELS, *shipped.GRADES):
            continue
        try:
            shipped.find(name)
        except UsageError as fault:
            if not str(fault).startswith("there is no preset"):
                raise
            known = ", ".join((BF16.name, *shipped.GRADES, *KERNELS, DIFFUSERS))
            hint = f"give one of {known}, a preset of `fpsgen presets`, or its .toml file"
            raise UsageError(f"{option('compare', name)}: there is no preset or kernel of that name", hint) from None
    if preset not in shipped.GRADES:
        shipped.find(preset)
    if preset in names and (clips or preset != BF16.name):
        raise UsageError(
            f"{option('preset', preset)} is compared with itself", hint=f"name another with {option('compare')}"
        )
    if clips and DIFFUSERS in names:
        hint = f"`fpsgen bench {option('compare', DIFFUSERS)}` makes one video by it"
        raise UsageError(f"{option('compare', DIFFUSERS)}: bench quality compares presets and kernels", hint)
