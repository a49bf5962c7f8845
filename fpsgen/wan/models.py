"""Models by name: which there are, which one is taken where nothing was said, and opening it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen import assets
from fpsgen.attention.tiles import Shape3, default_tile
from fpsgen.errors import ModelError, UsageError
from fpsgen.wan import config, hub, layout, sizes
from fpsgen.wan.checkpoint import read_json
from fpsgen.wan.config import WanConfig
from fpsgen.wan.layout import Checkpoint
from fpsgen.wan.sizes import Defaults, defaults_of

POCKET = "pocket"
# Names of files that hold weights, so that such a path is not taken for a hub id.
_WEIGHT_FILES = (".safetensors", ".gguf", ".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class Model:
    """A checkpoint on disk and what is known of it before anything loads.

    Pocket models carry a card (`pocket.json`): they render at one size, know few words and have a tile of
    their own.
    """

    name: str
    folder: Path
    checkpoint: Checkpoint
    defaults: Defaults
    card: dict | None = None

    @property
    def config(self) -> WanConfig:
        return self.checkpoint.config

    @property
    def family(self) -> str:
        """1.3b, 14b or pocket: whose presets it takes; of models that are none of these, by their width."""
        return POCKET if self.card else sizes.family_of(self.config.dim)

    @property
    def told(self) -> str:
        """Its name for records and metadata: of a pocket model with the version, to which its weights are bound."""
        return f"pocket v{self.card['version']}" if self.card else self.name

    def tile(self, grid: Shape3) -> Shape3:
        if self.card:
            t, h, w = self.card["tile"]
            return t, h, w
        return default_tile(grid)


def absent(key: str) -> Model:
    """Wan2.1 `1.3b` or `14b` without its files: shapes and defaults, for what is worked out beforehand."""
    nothing: Any = ()
    checkpoint = Checkpoint("original", config.FAMILIES[key], nothing, nothing, {}, nothing, {}, Path())
    return Model(key, Path(), checkpoint, sizes.DEFAULTS[key])


class NoWeightsError(ModelError):
    """There is a GPU and no model worth it; `key` is the one to fetch."""

    def __init__(self, key: str):
        super().__init__(
            "there are no Wan2.1 weights on this machine",
            hint=f"{hub.pull_hint(key)}, or try the built-in toy: --model pocket",
        )
        self.key = key


def find(name: str) -> Model:
    """The model called `pocket`, `1.3b` or `14b`, of a hub id, in the folder `name`, or whose transformer is the
    file `name`; ModelError where there is none."""
    key = name.lower()
    if not key.strip():
        raise UsageError("--model is empty", hint="leave it out for the default")
    if key == POCKET:
        return open_folder(assets.folder(POCKET), POCKET)
    if key in hub.REPOSITORIES:
        return _known(key)
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return open_folder(path, name)
        if path.suffix == ".safetensors" and path.is_file():
            return open_file(path)
        if path.exists():
            hint = "give a folder, or a transformer in a .safetensors file"
            raise ModelError(f"{name} is no checkpoint that fpsgen reads", hint)
    except (OSError, RuntimeError) as fault:  # a RuntimeError for the home of somebody unknown
        raise ModelError(f"there is no model {name[:100]}: {getattr(fault, 'strerror', fault)}") from None
    if hub.ID.fullmatch(name) and path.suffix not in _WEIGHT_FILES:
        if folder := hub.snapshot(name):
            return _open_snapshot(folder, name)
        raise ModelError(f"{name} is no folder here, nor downloaded", hint=f"fpsgen models pull {name}")
    known = ", ".join((POCKET, *hub.REPOSITORIES))
    raise ModelError(
        f"there is no model {name[:100]}",
        hint=f"give one of {known}, a folder, a .safetensors file or a hub id",
    )


def _known(key: str) -> Model:
    """The known model `key` in the format that is whole on disk; ModelError that says what is wrong where none is."""
    if folder := hub.on_disk(key):
        return _open_snapshot(folder, key)
    for repository in hub.REPOSITORIES[key].values():
        if folder := hub.snapshot(repository):
            return _open_snapshot(folder, repository)
    raise ModelError(f"Wan2.1 {key} is not on this machine", hint=hub.pull_hint(key))


def _open_snapshot(folder: Path, name: str) -> Model:
    """`open_folder` of a download, with the commands that mend it."""
    try:
        return open_folder(folder, name)
    except ModelError as error:
        hint = f"fpsgen models pull {name} fetches what is absent; with --force, everything anew"
        raise ModelError(str(error), hint) from None


def choose(size: tuple[int, int] | None, cuda: bool) -> tuple[Model, str | None]:
    """The model for a size where the user named none, and a sentence about it where it may surprise.

    With CUDA: 14B above 480p and 1.3B else, or the other one where only that is on disk. Without: the pocket.
    """
    if not cuda:
        note = "on a CPU the pocket model renders: tiny, and it knows few words (--model picks another)"
        return find(POCKET), note
    wanted = preferred(size)
    other = "1.3b" if wanted == "14b" else "14b"
    if folder := hub.on_disk(wanted):
        return open_folder(folder, wanted), None
    if folder := hub.on_disk(other):
        return open_folder(folder, other), f"Wan2.1 {wanted} is not on this machine; using {other}"
    raise NoWeightsError(wanted)


def preferred(size: tuple[int, int] | None) -> str:
    """The model for a size, were both on disk."""
    return "14b" if size is not None and sizes.named_size(*size) == "720p" else "1.3b"


def open_folder(folder: Path, name: str) -> Model:
    """Read a folder's configuration; ModelError that says what is wrong with it."""
    try:
        checkpoint = layout.recognise(folder)
        card = read_json(folder / "pocket.json") if (folder / "pocket.json").exists() else None
        defaults = defaults_of(checkpoint.config.dim) if card is None else _from_card(card)
    except ModelError as error:
        raise ModelError(f"model {name} cannot be used: {error}", hint=error.hint) from None
    return Model(name, folder, checkpoint, defaults, card)


def open_file(file: Path) -> Model:
    """A transformer in a file of its own; text encoder and VAE come from a Wan2.1 model on disk."""
    folder = next((folder for key in hub.REPOSITORIES if (folder := hub.on_disk(key))), None)
    if folder is None:
        raise ModelError(
            f"{file} is a transformer; its text encoder and VAE are not on this machine", hint=hub.pull_hint("1.3b")
        )
    try:
        checkpoint = layout.with_transformer(file, layout.recognise(folder))
    except ModelError as error:
        raise ModelError(f"model {file} cannot be used: {error}", hint=error.hint) from None
    return Model(file.name, file.parent, checkpoint, defaults_of(checkpoint.config.dim))


def _from_card(card: dict) -> Defaults:
    try:
        width, height = (int(side) for side in card["size"])
        kinds = {"frames": int, "fps": int, "steps": int, "guidance": float, "shift": float, "negative": str}
        defaults = Defaults(width, height, **{key: kind(card[key]) for key, kind in kinds.items()})
        sizes.parse_resolution(f"{width}x{height}")
        sizes.check_model_size(width, height)
        sizes.check_settings(defaults.frames, defaults.steps, defaults.guidance, defaults.shift)
        t, h, w = (int(side) for side in card["tile"])
        if not (1 <= defaults.fps <= 240 and min(t, h, w) >= 1 and int(card["version"]) >= 0):
            raise ValueError("fps, tile or version")
        if not (isinstance(card["knows"], str) and isinstance(card["negative"], str)):
            raise TypeError("knows or negative")
        return defaults
    except (KeyError, TypeError, ValueError, OverflowError, UsageError) as fault:
        raise ModelError(f"its pocket.json is not one: {fault!r}") from None
