"""Presets by name: those that ship with fpsgen, `bf16`, and files."""

from __future__ import annotations

from math import log, prod
from pathlib import Path

from fpsgen import assets
from fpsgen.errors import UsageError, option
from fpsgen.presets import BF16, Preset, file
from fpsgen.printable import meant
from fpsgen.wan.sizes import NAMED, parse_resolution

# From true to fast. One of each ships for every family and size that has any.
GRADES = ("quality", "balanced", "fast")


def names() -> list[str]:
    """The names of all presets that ship, without `bf16`."""
    return sorted(path.stem for path in assets.folder("presets").glob("*.toml"))


def load(name: str) -> Preset:
    return file.parse((assets.folder("presets") / f"{name}.toml").read_bytes(), name)


def has_grades(family: str) -> bool:
    """Whether presets of all grades ship for a family."""
    return any(name.startswith(f"{family}-") and name.endswith(f"-{GRADES[0]}") for name in names())


def of_grade(grade: str, family: str, width: int, height: int) -> Preset:
    """The shipped preset of a grade for a model, and for the size that is nearest, by the ratio of pixels, of those
    that it has any for; UsageError where none ships for its family."""
    if not has_grades(family):
        told = f"{option('preset', grade)}: no preset of any grade comes with fpsgen for {family}"
        raise UsageError(told, hint=f"use {option('preset', BF16.name)}, or make one with `fpsgen calibrate`")
    if family == "pocket":
        return load(f"{family}-{grade}")
    sizes = [size for size in NAMED if f"{family}-{size}-{grade}" in names()]
    size = min(sizes, key=lambda name: abs(log(prod(NAMED[name]) / (width * height))))
    return load(f"{family}-{size}-{grade}")


def size_of(preset: Preset) -> tuple[int, int] | None:
    """Width and height that a preset was measured at, or ships for; None where it is for any."""
    if preset.measured:
        return parse_resolution(preset.measured.size)
    if preset.name in names():
        return next((size for name, size in NAMED.items() if name in preset.name.split("-")), None)
    return None


def find(name: str) -> Preset:
    """`bf16`, a shipped preset by its full name, or that of a file; UsageError that says what is wrong with it."""
    if name == BF16.name:
        return BF16
    if name in names():
        return load(name)
    path = Path(name)
    try:
        there = path.expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # `read` tells what is wrong
        there = True
    if there and name:
        return file.read(path, name)
    near = meant(name, (BF16.name, *GRADES, *names()), "; ")
    raise UsageError(
        f"there is no preset {name[:200]!r}: neither a file nor one that comes with fpsgen has that name{near}",
        hint="`fpsgen presets` lists them; or give a preset's .toml file",
    )
