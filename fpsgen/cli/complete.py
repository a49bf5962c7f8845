"""What a shell offers when somebody presses Tab. It must be quick: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fpsgen import assets
from fpsgen.wan.sizes import NAMED

MODELS = ("pocket", "1.3b", "14b")
GRADES = ("quality", "balanced", "fast")


def models(incomplete: str) -> list[str]:
    """Known models; folders and .safetensors files."""
    return [*_beginning(incomplete, MODELS), *_paths(incomplete, ".safetensors")]


def wan_models(incomplete: str) -> list[str]:
    """Models that can be fetched."""
    return _beginning(incomplete, MODELS[1:])


def presets(incomplete: str) -> list[str]:
    """Grades, shipped presets; folders and .toml files."""
    return [*_beginning(incomplete, preset_names()), *_paths(incomplete, ".toml")]


def preset_names() -> list[str]:
    return ["bf16", *GRADES, *sorted(path.stem for path in assets.folder("presets").glob("*.toml"))]


def sizes(incomplete: str) -> list[str]:
    return _beginning(incomplete, NAMED)


def settings(incomplete: str) -> list[str]:
    from fpsgen.cli.preferences import KEYS

    return _beginning(incomplete, KEYS)


def devices(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("cpu", "cuda"))


def kernels(incomplete: str) -> list[str]:
    from fpsgen.kernels.listing import KERNELS

    return _beginning(incomplete, KERNELS)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _paths(incomplete: str, suffix: str) -> list[str]:
    """Paths as they are typed: folders with a slash, and files of that suffix."""
    folder, _, begun = incomplete.rpartition("/")
    head = f"{folder}/" if "/" in incomplete else ""
    try:
        there = sorted(Path(head or ".").expanduser().iterdir())
        found = [path for path in there if path.name.startswith(begun) and (begun or not path.name.startswith("."))]
        return [
            f"{head}{path.name}{'/' if path.is_dir() else ''}"
            for path in found
            if path.is_dir() or path.suffix == suffix
        ]
    except (OSError, RuntimeError):  # no such folder, none that can be read, nobody's home
        return []
