"""Model names, and where their folders are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from fpsgen import assets
from fpsgen.attention.tiles import Shape3, default_tile
from fpsgen.errors import ModelError
from fpsgen.wan.checkpoint import WEIGHTS, read_json, shards
from fpsgen.wan.config import WAN_1_3B, WanConfig
from fpsgen.wan.sizes import DEFAULTS, Defaults

REPOSITORIES = {
    "1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
}
# By parameter count: transformer and VAE in float32, text encoder in float32 as the Diffusers folders hold it.
DOWNLOAD_GB = {"1.3b": 29, "14b": 80}
POCKET = "pocket"
# The components that have weights, and how their files' names begin.
WEIGHT_STEMS = {"transformer": WEIGHTS, "vae": WEIGHTS, "text_encoder": "model"}


@dataclass(frozen=True)
class Model:
    """A model folder on disk and what is known of it before anything loads.

    Pocket models carry a card (`pocket.json`): they render at one size, know few words and have a tile of
    their own.
    """

    name: str
    folder: Path
    config: WanConfig
    defaults: Defaults
    pocket: dict | None = None

    def tile(self, grid: Shape3) -> Shape3:
        if self.pocket:
            t, h, w = self.pocket["tile"]
            return t, h, w
        return default_tile(grid)


def find(name: str) -> Model:
    """The model called `pocket`, `1.3b` or `14b`, or in the folder `name`; ModelError where there is none."""
    key = name.lower()
    if key == POCKET:
        return open_folder(assets.folder(POCKET), POCKET)
    if key in REPOSITORIES:
        folder = on_disk(key)
        if folder is None:
            raise ModelError(f"Wan2.1 {name} is not on this machine", hint=download_hint(key))
        return open_folder(folder, key)
    if not Path(name).is_dir():
        known = ", ".join((POCKET, *REPOSITORIES))
        raise ModelError(f"there is no model {name}", hint=f"give --model one of {known}, or a Diffusers folder")
    return open_folder(Path(name), name)


def choose(size: tuple[int, int] | None, cuda: bool) -> tuple[Model, str | None]:
    """The model for a size where the user named none, and a sentence about it where it may surprise.

    With CUDA: 14B above 480p and 1.3B else, or the other one where only that is on disk. Without: the pocket.
    """
    if not cuda:
        note = "no CUDA GPU here, so the pocket model renders: tiny, and it knows few words (--model picks another)"
        return find(POCKET), note
    large = size is not None and size[0] * size[1] > 832 * 480
    wanted, other = ("14b", "1.3b") if large else ("1.3b", "14b")
    if folder := on_disk(wanted):
        return open_folder(folder, wanted), None
    if folder := on_disk(other):
        return open_folder(folder, other), f"Wan2.1 {wanted} is not on this machine; using {other}"
    raise ModelError(
        "there are no Wan2.1 weights on this machine",
        hint=f"{download_hint(wanted)}, or try the built-in toy: --model pocket",
    )


def download_hint(key: str) -> str:
    return f"hf download {REPOSITORIES[key]} (about {DOWNLOAD_GB[key]} GB)"


def on_disk(key: str) -> Path | None:
    """The downloaded snapshot of a known model, or None where it is absent or not whole."""
    try:
        folder = Path(snapshot_download(REPOSITORIES[key], local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    try:
        check_files(folder)
    except ModelError:  # an interrupted download
        return None
    return folder


def open_folder(folder: Path, name: str) -> Model:
    """Read a Diffusers folder's configuration; ModelError that says what is wrong with it."""
    try:
        check_files(folder)
        config = WanConfig.from_diffusers(read_json(folder / "transformer" / "config.json"))
        pocket = read_json(folder / "pocket.json") if (folder / "pocket.json").exists() else None
        defaults = DEFAULTS["1.3b" if config.dim <= WAN_1_3B.dim else "14b"] if pocket is None else _from_card(pocket)
    except ModelError as error:
        raise ModelError(f"model {name} cannot be used: {error}", hint=error.hint) from None
    return Model(name, folder, config, defaults, pocket)


def check_files(folder: Path) -> None:
    """Refuse a folder that lacks a file, before the first of its many gigabytes is read."""
    if absent := [part for part in (*WEIGHT_STEMS, "tokenizer") if not (folder / part).is_dir()]:
        parts = ", ".join((*WEIGHT_STEMS, "tokenizer"))
        raise ModelError(f"{folder} lacks {', '.join(absent)}", hint=f"a Wan2.1 Diffusers folder holds {parts}")
    for part, stem in WEIGHT_STEMS.items():
        read_json(folder / part / "config.json")
        shards(folder / part, stem)
    if not any((folder / "tokenizer" / file).exists() for file in ("tokenizer.json", "spiece.model")):
        raise ModelError(f"{folder / 'tokenizer'} holds no tokenizer.json")


def _from_card(card: dict) -> Defaults:
    try:
        width, height = card["size"]
        keys = ("frames", "fps", "steps", "guidance", "shift", "negative")
        return Defaults(width, height, **{key: card[key] for key in keys})
    except (KeyError, TypeError, ValueError) as fault:
        raise ModelError(f"its pocket.json is not one: {fault!r}") from None
