"""fpsgen: videos by Wan2.1 and Wan2.2, fast and true. Importing this package imports no torch.

What programs call is here, and imported where it is first used; docs/python.md describes it.
"""

import os
from typing import TYPE_CHECKING, Any

# torch's threads wait 10 microseconds for each other and then sleep, instead of spinning for milliseconds: where
# another program needs the cores too, spinning made a video take 5 to 12 times as long. Without the short wait the
# pocket's many short barriers cost more on a quiet machine. OpenMP reads this when torch loads; your own values win.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # of 10 ns; GNU's OpenMP, which torch's Linux builds have

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fpsgen.api import Video as Video
    from fpsgen.api import generate as generate
    from fpsgen.attached import attach as attach
    from fpsgen.attached import detach as detach
    from fpsgen.errors import FpsgenError as FpsgenError

_MODULES = {"generate": "api", "Video": "api", "attach": "attached", "detach": "attached", "FpsgenError": "errors"}

__all__ = ["FpsgenError", "Video", "__version__", "attach", "detach", "generate"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
