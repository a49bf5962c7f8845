"""Files that ship with fpsgen and are not Python: kernels, presets, the pocket model.

In a wheel they lie inside the package; in an editable install `kernels_cuda/` and `presets/` lie beside it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder `kernels_cuda`, `presets` or `pocket`."""
    for path in (_PACKAGE / "_assets" / name, _PACKAGE.parent / name):
        if path.is_dir():
            return path
    raise FileNotFoundError(f"this installation of fpsgen lacks its {name} folder")


def existing(path: Path) -> Path:
    """The nearest of a path and what is above it that exists: where its disk can be asked for room."""
    return next(above for above in (path, *path.absolute().parents) if above.exists())
