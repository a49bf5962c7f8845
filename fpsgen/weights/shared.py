"""Parts that models share, wherever they lie: in a model's folder, or anywhere in the hub's cache.

A transformer in a file of its own needs a text encoder, a VAE and a tokenizer, and all Wan models have the same ones,
but for the 5B's VAE. They count as there where their own files are whole, whether or not the model around them is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fpsgen.errors import ModelError
from fpsgen.printable import printable
from fpsgen.wan.config import SHAPES, WanConfig
from fpsgen.weights import cached, headers, kinds, layout
from fpsgen.weights.configs import check_image_config, check_kinds_of_parts
from fpsgen.weights.headers import read_json, shards
from fpsgen.weights.known import MODELS, PIECES
from fpsgen.weights.layout import PARTS, TOKENIZERS

# By part: the field of a `Checkpoint` that has its configuration, and its piece in `known.PIECES`.
CONFIGS = {"text_encoder": "text_config", "vae": "vae_config", "image_encoder": "image_config"}
_PIECE = {"text_encoder": "text-encoder", "vae": "vae", "image_encoder": "image-encoder", "tokenizer": "tokenizer"}
_SECOND_BIAS = re.compile(r"encoder\.block\.1\.layer\.0\.SelfAttention\.relative_attention_bias\.weight")
Fields = dict[str, Any]


def piece(part: str, config: WanConfig) -> str:
    """The name in `known.PIECES` of a part, as a transformer of that shape needs it."""
    return "vae-2.2" if part == "vae" and config.time_per_token else _PIECE[part]


def needed(config: WanConfig) -> list[str]:
    """The parts that a transformer of that shape works with."""
    return [part for part in CONFIGS if part != "image_encoder" or config.image_dim]


def fits(config: WanConfig) -> Callable[[Fields], bool]:
    """Whether the fields of a part are those of one that a transformer of that shape works with."""
    widths = (
        ("vae_config", "z_dim", config.out_channels),
        ("text_config", "d_model", config.text_dim),
        ("image_config", "hidden_size", config.image_dim),
    )
    return lambda fields: all(fields.get(name, {}).get(key, width) == width for name, key, width in widths)


def in_file(part: str, file: Path) -> Fields:
    """The fields of a `Checkpoint` that a part's one file gives; ModelError where it is another kind. umT5 has a bias
    in each layer, T5 in the first one alone."""
    fields = layout.fields_of(part, [file])
    if part == "text_encoder" and fields["text_config"]["num_layers"] > 1:
        names = map(PARTS[part].rename, headers.contents(file).tensors)
        if not any(map(_SECOND_BIAS.fullmatch, names)):
            raise ModelError(f"{printable(file)} is a T5 encoder, not umT5", "use Wan's umT5")
    return fields


def in_folder(part: str, folder: Path, alone: bool = False) -> Fields:
    """The same of a model's folder in either format, or, `alone`, of a part's own folder; empty where it is not there.
    ModelError as `in_file`."""
    for name in original_names(part):
        if (folder / name).is_file():
            return in_file(part, folder / name)
    place = folder if alone else folder / part
    if not any(place.glob(f"{PARTS[part].stem}*.safetensors")):
        return {}
    fields = layout.fields_of(part, shards(place, PARTS[part].stem))
    if (place / "config.json").is_file():
        config = read_json(place / "config.json")
        if part == "image_encoder":
            config = check_image_config(config)
        else:
            check_kinds_of_parts(*((config, {}) if part == "vae" else ({}, config)))
        fields |= {CONFIGS[part]: config}
    return fields


def original_names(part: str) -> list[str]:
    """What the original's file of a part may be called."""
    own = {PARTS[part].file, *(PIECES["vae-2.2"].files if part == "vae" else ())}
    return sorted(own)


def tokenizer_in(folder: Path) -> Path | None:
    """Where a model's folder has its tokenizer."""
    places = (*(folder / place for place in TOKENIZERS.values()), folder)
    return next((place for place in places if (place / "tokenizer.json").is_file()), None)


def found(part: str, config: WanConfig) -> Fields:
    """The fields of the first part in the hub's cache that a transformer of that shape works with; empty where none
    does."""
    check = fits(config)
    for folder in folders():
        with contextlib.suppress(ModelError, OSError):
            if (fields := in_folder(part, folder)) and check(fields):
                return fields
    return {}


def tokenizer() -> Path | None:
    """A tokenizer in the hub's cache."""
    return next(filter(None, map(tokenizer_in, folders())), None)


def lacking(kind: str) -> list[str]:
    """The names in `known.PIECES` of what a transformer of that kind needs and the hub's cache has nowhere."""
    config = SHAPES[kind]
    absent = [piece(part, config) for part in needed(config) if not found(part, config)]
    return absent + ["tokenizer"] * (tokenizer() is None)


def folders() -> Iterator[Path]:
    """Folders of models in the hub's cache, whole or not: first those of Wan-AI's, which this module knows best."""
    named = dict.fromkeys(source.repository for known in MODELS.values() for source in known.sources.values())
    for repository in (*named, *(each for each in cached.repositories() if each not in named)):
        yield from cached.snapshots(repository)


def kind_of(file: Path) -> str:
    """What a file is, by `kinds`; "unreadable" where it cannot be read."""
    try:
        return kinds.kind_of(headers.contents(file)).name
    except (ModelError, OSError):
        return "unreadable"
