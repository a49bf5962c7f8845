"""Model names, and where their folders are on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from fpsgen import assets
from fpsgen.attention.tiles import Shape3, default_tile
from fpsgen.errors import ModelError
from fpsgen.wan.config import WAN_1_3B, WanConfig
from fpsgen.wan.sizes import DEFAULTS, Defaults

REPOSITORIES = {
    "1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
}
# By parameter count: transformer and VAE in float32, text encoder in float32 as the Diffusers folders hold it.
DOWNLOAD_GB = {"1.3b": 29, "14b": 80}
POCKET = "pocket"
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer")


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
            repository = REPOSITORIES[key]
            raise ModelError(f"Wan2.1 {name} is not on this machine", hint=f"fetch it: hf download {repository}")
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
        hint=f"fetch them (about {DOWNLOAD_GB[wanted]} GB): hf download {REPOSITORIES[wanted]}\n"
        "or try the built-in toy: --model pocket",
    )


def on_disk(key: str) -> Path | None:
    """The downloaded snapshot of a known model, or None where it is absent or not whole."""
    try:
        folder = Path(snapshot_download(REPOSITORIES[key], local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return None if _absent(folder) else folder


def open_folder(folder: Path, name: str) -> Model:
    """Read a Diffusers folder's configuration; ModelError that says what is wrong with it."""
    if absent := _absent(folder):
        raise ModelError(
            f"{folder} is no complete Wan2.1 Diffusers folder: it lacks {', '.join(absent)}",
            hint=f"a complete one holds {', '.join(COMPONENTS)}",
        )
    try:
        config = WanConfig.from_diffusers(_read_json(folder / "transformer" / "config.json"))
        card = folder / "pocket.json"
        pocket = _read_json(card) if card.exists() else None
    except ModelError as error:
        raise ModelError(f"{folder} cannot be used: {error}", hint=error.hint) from None
    if pocket:
        width, height = pocket["size"]
        keys = ("frames", "fps", "steps", "guidance", "shift", "negative")
        defaults = Defaults(width, height, **{key: pocket[key] for key in keys})
    else:
        defaults = DEFAULTS["1.3b" if config.dim <= WAN_1_3B.dim else "14b"]
    return Model(name, folder, config, defaults, pocket)


def _absent(folder: Path) -> list[str]:
    return [part for part in COMPONENTS if not (folder / part).is_dir()]


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.name} is missing from {path.parent.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as damage:
        raise ModelError(f"{path.name} is not valid JSON: {damage}") from None
