"""Models by name: which there are, which one is taken where nothing was said, and opening it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsgen import assets
from fpsgen.attention.tiles import Shape3, TileGrid, default_tile
from fpsgen.errors import ModelError, UsageError, option
from fpsgen.printable import printable
from fpsgen.settings import DEFAULTS, Settings, check_settings, defaults_of
from fpsgen.wan import config, sizes
from fpsgen.wan.config import WanConfig
from fpsgen.weights import headers, hub, layout
from fpsgen.weights.cached import Cached
from fpsgen.weights.headers import read_json
from fpsgen.weights.layout import Checkpoint

POCKET = "pocket"
_LARGEST_TILE = 64  # tokens along one axis
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
    defaults: Settings
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

    def tiles(self, latent_shape: Shape3, tile: Shape3 | None = None) -> TileGrid:
        """The tokens of a video's latents in tiles: of that size, or of the model's own."""
        grid = self.config.grid(latent_shape)
        return TileGrid(grid, tile or self.tile(grid))

    def tile(self, grid: Shape3) -> Shape3:
        if self.card:
            t, h, w = self.card["tile"]
            return t, h, w
        return default_tile(grid)


def absent(key: str) -> Model:
    """Wan2.1 `1.3b` or `14b` without its files: shapes and defaults, for what is worked out beforehand."""
    nothing: Any = ()
    own, text, vae = config.FAMILIES[key], config.TEXT_CONFIG, config.VAE_CONFIG
    checkpoint = Checkpoint("original", own, nothing, nothing, vae, nothing, text, Path())
    return Model(key, Path(), checkpoint, DEFAULTS[key])


class NoWeightsError(ModelError):
    """There is a GPU and no model worth it; `key` is the one to fetch, `size` how much that is, in words."""

    def __init__(self, key: str):
        form, cached = hub.nearest(key)
        super().__init__(
            f"Wan2.1 {key} is incomplete on this machine: {cached.why}"
            if cached.why
            else "there are no Wan2.1 weights on this machine",
            hint=f"{hub.pull_hint(key)}, or try the built-in toy: {option('model', 'pocket')}",
        )
        self.key, self.size, self.repository = key, hub.to_fetch(key), hub.REPOSITORIES[key][form]


def find(name: str) -> Model:
    """The model called `pocket`, `1.3b` or `14b`, of a hub id, in the folder `name`, or whose transformer is the
    file `name`; ModelError where there is none."""
    key = name.lower()
    if not key.strip():
        raise UsageError("the model's name is empty", hint=f"name one, or leave {option('model')} out for the default")
    if key == POCKET:
        return open_folder(assets.folder(POCKET), POCKET)
    if key in hub.REPOSITORIES:
        form, cached = hub.nearest(key)
        absent = ModelError(f"Wan2.1 {key} is not on this machine", hint=hub.pull_hint(key))
        return _downloaded(cached, key, key if form == "original" else cached.repository, absent)
    path = Path(name)
    try:
        path = path.expanduser()
        if path.is_dir():
            return open_folder(path, name)
        if path.exists():
            return open_file(path)
    except (OSError, RuntimeError, ValueError) as fault:  # a RuntimeError for the home of somebody unknown
        told = getattr(fault, "strerror", None) or fault
        raise ModelError(f"there is no model {printable(name, 100)}: {printable(told)}", _names()) from None
    if hub.ID.fullmatch(name) and path.suffix not in _WEIGHT_FILES:
        hint = f"fpsgen models pull {name}"
        absent = ModelError(f"{name} is neither a folder here nor a downloaded model", hint)
        return _downloaded(hub.look(name), name, name, absent)
    raise ModelError(f"there is no model {printable(name, 100)}", hint=_names())


def _names() -> str:
    known = ", ".join((POCKET, *hub.REPOSITORIES))
    return f"give one of {known}, a folder, a .safetensors file or a hub id"


def _downloaded(cached: Cached, name: str, to_pull: str, absent: ModelError) -> Model:
    """The model of a repository, if the cache holds all of it. to_pull: its name for `fpsgen models pull`."""
    if cached.state == "here" and cached.folder:
        return open_folder(cached.folder, name)
    raise absent if cached.state == "not here" else hub.refusal(cached, to_pull)


def choose(size: tuple[int, int] | None, cuda: bool) -> tuple[Model, str | None]:
    """The model for a size where the user named none, and a sentence about it where it may surprise.

    With CUDA: 14B above 480p and 1.3B else, or the other one where only that is on disk. Without: the pocket.
    """
    if not cuda:
        note = f"on a CPU the pocket model is used: it is tiny and knows few words ({option('model')} picks another)"
        return find(POCKET), note
    wanted = preferred(size)
    other = "1.3b" if wanted == "14b" else "14b"
    if folder := hub.on_disk(wanted):
        return open_folder(folder, wanted), None
    cached = hub.nearest(wanted)[1]
    if cached.state == "unreadable":
        raise hub.refusal(cached, wanted)  # it lies there: nothing is to be fetched
    if folder := hub.on_disk(other):
        incomplete = cached.state == "incomplete"
        state = f"is incomplete (see `fpsgen models check {wanted}`)" if incomplete else "is not on this machine"
        return open_folder(folder, other), f"Wan2.1 {wanted} {state}; using {other}"
    raise NoWeightsError(wanted)


def preferred(size: tuple[int, int] | None) -> str:
    """The model for a size, were both on disk."""
    return "14b" if size is not None and sizes.named_size(*size) == "720p" else "1.3b"


def open_folder(folder: Path, name: str) -> Model:
    """Read a folder's configuration; ModelError that says what is wrong with it."""
    try:
        checkpoint = layout.recognise(folder)
        card = _read_card(folder / "pocket.json") if (folder / "pocket.json").exists() else None
        defaults = defaults_of(checkpoint.config.dim) if card is None else _from_card(card)
    except ModelError as error:
        raise ModelError(f"model {printable(name)} cannot be used: {error}", hint=error.hint) from None
    return Model(name, folder, checkpoint, defaults, card)


def open_file(file: Path) -> Model:
    """A transformer in a file of its own; text encoder, VAE and tokenizer lie beside it or come from a Wan2.1 model on
    disk. ModelError that says what the file is where it is none."""
    if headers.is_pickled(file) and headers.contents(file).channels:
        told = f"{printable(file)} is a transformer in a pickled file"
        raise ModelError(told, hint="use the .safetensors file of the same model")
    try:
        checkpoint = layout.with_transformer(file, _elsewhere)
    except layout.MissingPartsError as error:
        raise ModelError(f"{error}", hint=f"put them beside it, or {hub.pull_hint('1.3b')}") from None
    return Model(printable(file.name), file.parent, checkpoint, defaults_of(checkpoint.config.dim))


def _elsewhere() -> Checkpoint | None:
    """A Wan2.1 checkpoint in the hub's cache: they all share text encoder, VAE and tokenizer."""
    folders = (folder for key in hub.REPOSITORIES if (folder := hub.on_disk(key)))
    return next(map(layout.recognise, folders), None)


def _read_card(path: Path) -> dict:
    """A pocket model's card, its words fit to be shown."""
    card = read_json(path)
    if isinstance(card.get("knows"), str):
        card["knows"] = printable(card["knows"], 1000)
    return card


def _from_card(card: dict) -> Settings:
    """Defaults that a pocket model's card names; ModelError that names the field which does not fit."""
    for field, fits in _CARD.items():
        try:
            fine = fits(card[field]) if field in card else field in _MAY_LACK
        except (AttributeError, TypeError, ValueError, OverflowError, UsageError):
            fine = False
        if not fine:
            told = f"{field} = {config.shown(card[field])}" if field in card else f"it has no {field}"
            raise ModelError(f"its pocket.json is not a card: {told}", "copy it again from the source of the model")
    width, height = card["size"]
    plain = {field: card[field] for field in ("frames", "fps", "steps", "negative")}
    return Settings(width, height, **plain, guidance=float(card["guidance"]), shift=float(card["shift"]))


def _is_size(size: Any) -> bool:
    width, height = size
    sizes.parse_resolution(f"{width}x{height}")
    sizes.check_model_size(width, height)
    return all(type(side) is int for side in size)


def _legal(**setting: Any) -> bool:
    """Whether a frame or step count, guidance or shift is one that users may give; they raise where it is none."""
    check_settings(**({"frames": None, "steps": None, "guidance": None, "shift": None} | setting))
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in setting.values())


# What a pocket model's card must say, and whether a value does. Texts end in a video's metadata, hence as UTF-8.
_CARD: dict[str, Callable[[Any], object]] = {
    "size": _is_size,
    "frames": lambda value: type(value) is int and _legal(frames=value),
    "fps": lambda value: type(value) is int and 1 <= value <= 240,
    "steps": lambda value: type(value) is int and _legal(steps=value),
    "guidance": lambda value: _legal(guidance=value),
    "shift": lambda value: _legal(shift=value),
    "tile": lambda value: len(value) == 3 and all(type(n) is int and 1 <= n <= _LARGEST_TILE for n in value),
    "version": lambda value: type(value) is int and 0 <= value < 10**9,
    "knows": lambda value: value.encode() is not None,
    "negative": lambda value: value.encode() is not None,
    "subjects": lambda value: type(value) is list and all(text.encode() for text in value),
    "tries": lambda value: type(value) is list and all(text.encode() for text in value),
}
_MAY_LACK = ("subjects", "tries")
