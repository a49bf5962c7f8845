"""What a shell offers when somebody presses Tab. It must be quick: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fpsgen.cli.preferences import KEYS
from fpsgen.wan.sizes import NAMED
from fpsgen.weights.known import MODELS, PIECES


def offered(names: Callable[[], Iterable[str]], *suffixes: str) -> Callable[[str], list[str]]:
    """A completion by names, which are asked for when somebody presses Tab, then by folders and files of these
    suffixes."""

    def complete(incomplete: str) -> list[str]:
        found = [name for name in names() if name.startswith(incomplete)]
        return found + (_paths(incomplete, suffixes) if suffixes else [])

    return complete


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """Paths as they are typed: folders with a slash, and files of these suffixes."""
    folder, slash, begun = incomplete.rpartition("/")
    try:
        paths = sorted(Path(folder + slash or ".").expanduser().iterdir())
        seen = [path for path in paths if path.name.startswith(begun) and (begun or not path.name.startswith("."))]
        return [
            folder + slash + path.name + ("/" if path.is_dir() else "")
            for path in seen
            if path.is_dir() or path.suffix in suffixes
        ]
    except (OSError, RuntimeError):  # no such folder, none that can be read, nobody's home
        return []


def _kernel_names() -> Iterable[str]:
    from fpsgen.kernels.listing import KERNELS

    return KERNELS


def _contender_names() -> Iterable[str]:
    from fpsgen.bench.names import DIFFUSERS, KERNELS, STEPS

    return (*KEYS["preset"].names(), *KERNELS, DIFFUSERS, STEPS)


models = offered(KEYS["model"].names, ".safetensors", ".gguf")
wan_models = offered(lambda: ("1.3b", "14b"))
shapes = offered(lambda: ("1.3b", "14b", "2.2-14b", "5b"))
fetched = offered(lambda: (*MODELS, *PIECES))
trainable = offered(lambda: ("prepare", *KEYS["model"].names()))  # the group's command stands in the model's place
presets = offered(KEYS["preset"].names, ".toml")
contenders = offered(_contender_names, ".toml")
sizes = offered(lambda: NAMED)
devices = offered(lambda: ("cpu", "cuda"))
kernels = offered(_kernel_names)
settings = offered(lambda: KEYS)
