"""Files that are not Python: kernels, presets, prompts, the pocket model and its judge; and the cache.

In a wheel they lie inside the package; in an editable install `kernels_cuda/` and `presets/` lie beside it.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from fpsgen.errors import UsageError

_PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder `kernels_cuda`, `presets`, `pocket` or `judge`."""
    for path in (_PACKAGE / "_assets" / name, _PACKAGE.parent / name):
        if path.is_dir():
            return path
    raise FileNotFoundError(f"this installation of fpsgen lacks its {name} folder")


def prompts(use: str, family: str) -> tuple[str, ...]:
    """What is rendered where users bring no prompts: use is `calibrate` or `quality`; family is the model's."""
    table = tomllib.loads((_PACKAGE / "_assets" / "prompts.toml").read_text(encoding="utf-8"))
    return tuple(table[use]["pocket" if family == "pocket" else "wan"])


def cache(name: str) -> Path:
    """The folder `name` of FPSGEN_CACHE_DIR, or of the user's cache: for what can be made anew."""
    given, base = os.environ.get("FPSGEN_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return (Path(given) if given else Path(base) / "fpsgen").expanduser() / name
    except RuntimeError:  # somebody unknown, or a container's user without a home
        hint = "let FPSGEN_CACHE_DIR name a folder to keep things in"
        raise UsageError(f"{given or base}: there is no such home folder", hint) from None


def existing(path: Path) -> Path:
    """The nearest of a path and what is above it that exists: where its disk can be asked for room."""
    return next(above for above in (path, *path.absolute().parents) if above.exists())
