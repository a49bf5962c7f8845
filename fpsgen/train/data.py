"""A folder of training data: latents and the embeddings of their captions, in shards with an index.

    index.json                what all samples have in common, and where each of them came from
    shard-00000.safetensors   a few samples; those of the next in shard-00001.safetensors, and so on

The tensors of a shard's sample i, counted from 0:

    i.latents           float32 [channels, T, h, w], as the model has them
    i.text.0, 1, …      bfloat16 [tokens, text_dim], the embedding of each of its captions, without padding
    i.weight            uint8 [T, h, w], may be absent: how much each cell counts more, as value / 255
    i.level, i.noise_seed, i.velocity   float32 [K], int64 [K], bfloat16 [K, channels, T, h, w], may be absent: the
                        dense model's velocity at (1 - level) latents + level noise, with the first caption, unguided

The first shard has the negative prompt's embedding as well, `negative`. A shard appears when it is complete, and is
then entered in the index: a run that was killed goes on with the next shard.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen import files
from fpsgen.errors import ModelError, UsageError, option
from fpsgen.files import open_regular
from fpsgen.printable import printable
from fpsgen.settings import DEFAULTS, Settings
from fpsgen.values import from_dict
from fpsgen.wan import sizes
from fpsgen.wan.config import SHAPES, WanConfig
from fpsgen.weights import headers, load
from fpsgen.weights.kinds import Header
from fpsgen.weights.layout import PARTS
from fpsgen.weights.models import Model

VERSION = 1
INDEX = "index.json"
_MOST, _BYTES = 16, 2**26  # samples and bytes of latents and velocities in a shard: what a killed run makes again
_MEND = "copy the folder again, or prepare the data anew in another folder"
# With what the model made its clips, by the names of `Settings`.
SAMPLING: dict[str, type | tuple[type, ...]] = {
    "steps": int,
    "guidance": (int, float),
    "shift": (int, float),
    "solver": str,
    "sigmas": str,
}


class Taught(NamedTuple):
    """A teacher's velocities. levels: float32 [K]; noise_seeds: int64 [K], for `solvers.noise`; velocities: bfloat16
    [K, channels, T, h, w]."""

    levels: Tensor
    noise_seeds: Tensor
    velocities: Tensor


class Sample(NamedTuple):
    """latents: float32 [channels, T, h, w]; texts: bfloat16 [length, text_dim] of each caption, padded with zeros;
    weight: uint8 [T, h, w]."""

    latents: Tensor
    texts: list[Tensor]
    weight: Tensor | None = None
    taught: Taught | None = None


@dataclass(frozen=True)
class Origin:
    """Where a sample came from. prompt: the first caption; seed: of the noise that it was rendered from; source: the
    video's file."""

    prompt: str
    seed: int | None = None
    source: str | None = None


@dataclass(frozen=True)
class Shard:
    file: str
    sha256: str
    samples: tuple[Origin, ...]


@dataclass(frozen=True, kw_only=True)
class DataIndex:
    """What all samples have in common. text_encoder, vae: by `load.identity`; size: width and height; text_length: of
    padded embeddings; negative: the prompt; made: how, in plain JSON."""

    version: int = VERSION
    family: str
    text_encoder: str
    vae: str
    size: tuple[int, int]
    frames: int
    latent_shape: tuple[int, int, int]
    text_dim: int
    text_length: int
    negative: str
    made: dict[str, Any]
    shards: tuple[Shard, ...] = ()

    @property
    def channels(self) -> int:
        """Of the family's latents; whatever is in no table has Wan2.1's."""
        return SHAPES[self.family].out_channels if self.family in SHAPES else WanConfig.out_channels

    @property
    def stride(self) -> int:
        """Pixels per latent."""
        return DEFAULTS[self.family].stride if self.family in DEFAULTS else sizes.STRIDE

    @property
    def origins(self) -> list[Origin]:
        """Of all samples, in their order."""
        return [origin for shard in self.shards for origin in shard.samples]

    @property
    def samples_per_shard(self) -> int:
        """As many as one shard of these samples has."""
        one = self.channels * prod(self.latent_shape) * (4 + 2 * self.made.get("teacher", 0))
        return max(1, min(_MOST, _BYTES // one))

    @property
    def sampling(self) -> dict[str, Any]:
        """With which settings the model made the clips, by the names of `Settings`; of videos, nothing."""
        return {name: self.made[name] for name in SAMPLING if name in self.made}

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        told = asdict(self)
        for shard in told["shards"]:
            shard["samples"] = [
                {name: value for name, value in one.items() if value is not None} for one in shard["samples"]
            ]
        return json.loads(json.dumps(told))


def index_of(model: Model, settings: Settings, **made: Any) -> DataIndex:
    """The index of data of a model in the settings' size, without shards. made: as DataIndex has it."""
    return DataIndex(
        family=model.family,
        text_encoder=load.identity(model.checkpoint, "text_encoder"),
        vae=load.identity(model.checkpoint, "vae"),
        size=(settings.width, settings.height),
        frames=settings.frames,
        latent_shape=settings.latent_shape,
        text_dim=model.config.text_dim,
        text_length=load.load_tokenizer(model.checkpoint).length,
        negative=settings.negative,
        made=made,
    )


class Data:
    """The samples of a folder, memory-mapped; by `Data.open`. Here and below, UsageError says what is wrong with it."""

    def __init__(self, folder: Path, index: DataIndex):
        self.folder, self.index = folder, index
        self._places = [(shard, place) for shard in index.shards for place in range(len(shard.samples))]
        self._intact: set[str] = set()

    @classmethod
    def open(cls, folder: Path) -> Data:
        """Looks at the index and at the shards' headers."""
        if not folder.is_dir():
            raise UsageError(f"there is no folder {printable(folder)}", hint="make it with `fpsgen train prepare`")
        data = cls(folder, read_index(folder))
        if not len(data):
            told = f"{printable(folder)} holds no complete sample yet"
            raise UsageError(told, hint="run the same `fpsgen train prepare` again: it continues from there")
        return data

    def check(self, model: Model) -> None:
        """UsageError where the data are another model's, so that its latents, embeddings or a teacher's velocities
        would mean nothing."""
        own = {"family": self.index.family, "text_encoder": self.index.text_encoder, "vae": self.index.vae}
        own |= {"transformer": self.index.made.get("weights", "")} if self.index.made.get("teacher") else {}
        for part, there in own.items():
            if there != (model.family if part == "family" else load.identity(model.checkpoint, part)):
                what = PARTS[part].words if part in PARTS else part
                told = f"{printable(self.folder)} holds data of another model than {printable(model.name)}"
                raise UsageError(f"{told}, of another {what}", hint="prepare data with this model, in another folder")
        if self.index.text_length != load.load_tokenizer(model.checkpoint).length:
            told = f"{printable(self.folder / INDEX)} is not what was written: the model reads texts of another length"
            raise UsageError(told, hint=_MEND)

    def __len__(self) -> int:
        return len(self._places)

    @cached_property
    def negative(self) -> Tensor:
        """The negative prompt's embedding, bfloat16 [length, text_dim]."""
        return padded(self._read(self.index.shards[0], "negative")["negative"], self.index.text_length)

    def sample(self, number: int) -> Sample:
        """The sample of a number, counted from 0; what a shard contains is checked when it is first read."""
        shard, place = self._places[number]
        own = self._read(shard, f"{place}.")
        texts = itertools.takewhile(own.__contains__, (f"{place}.text.{caption}" for caption in itertools.count()))
        taught = [own[name] for one in ("level", "noise_seed", "velocity") if (name := f"{place}.{one}") in own]
        return Sample(
            own[f"{place}.latents"],
            [padded(own[name], self.index.text_length) for name in texts],
            own.get(f"{place}.weight"),
            Taught(*taught) if taught else None,
        )

    def _read(self, shard: Shard, begin: str) -> dict[str, Tensor]:
        """The tensors whose names begin so."""
        path = self.folder / shard.file
        with _damage():
            if shard.file not in self._intact:
                with headers.reading(path), open_regular(path) as content:
                    if hashlib.sha256(content.read()).hexdigest() != shard.sha256:
                        raise ModelError(f"{printable(path)} is damaged: its content is not what was written", _MEND)
                self._intact.add(shard.file)
            with headers.opened(path, "pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys() if name.startswith(begin)}  # noqa: SIM118


@contextmanager
def _damage() -> Iterator[None]:
    """What is wrong with a file ends in a hint that helps with data."""
    try:
        yield
    except ModelError as fault:
        raise UsageError(f"{fault}", hint=_MEND) from None


def read_index(folder: Path) -> DataIndex:
    """The index of a folder whose shards' headers fit to it."""
    path = folder / INDEX
    with _damage():
        told = headers.read_json(path)
        if told.get("version") != VERSION:
            raise ModelError(f"{printable(path)} has not version {VERSION}, which this fpsgen reads", _MEND)
        try:
            index = from_dict(DataIndex, told)
            width, height = index.size
            names = [_name(number) for number in range(len(index.shards))]
            sound = index.as_dict() == told and all(isinstance(origin.prompt, str) for origin in index.origins)
            sound &= isinstance(index.made, dict)
            sound &= all(isinstance(value, SAMPLING[name]) for name, value in index.sampling.items())
            sound &= index.latent_shape == sizes.latent_shape(index.frames, height, width, index.stride)
            if not sound or [shard.file for shard in index.shards] != names:  # none outside of the folder
                raise ValueError
            for number, shard in enumerate(index.shards):
                _check_shard(index, number, folder / shard.file)
        except (TypeError, ValueError, AttributeError, KeyError):
            raise ModelError(f"{printable(path)} is not an index of training data", _MEND) from None
    return index


def _check_shard(index: DataIndex, number: int, path: Path) -> None:
    """ModelError where a shard's tensors are not those that the index says, by its header alone."""
    tensors, rest = headers.contents(path).tensors, "is another or missing"
    wanted = ["negative"] if number == 0 else []
    for place in range(len(index.shards[number].samples)):
        taught = ("noise_seed", "velocity") if f"{place}.level" in tensors else ()
        wanted += [f"{place}.{name}" for name in ("latents", "text.0", *taught)]
    for name in dict.fromkeys([*wanted, *tensors]):
        if name not in tensors or tensors[name] != _header(index, name, tensors):
            raise ModelError(f"{printable(path)} does not fit its index: {printable(name, 60)} {rest}", _MEND)


def _header(index: DataIndex, name: str, tensors: Mapping[str, Header]) -> Header | None:
    """What a tensor's header must be; None for one that belongs to no sample."""
    place, _, what = name.partition(".")
    rows, *_ = *tensors[name].shape, 0
    levels = tensors[f"{place}.level"].shape[:1] if f"{place}.level" in tensors else ()
    return {
        "latents": Header((index.channels, *index.latent_shape), "F32"),
        "text": Header((min(rows, index.text_length), index.text_dim), "BF16"),
        "weight": Header(index.latent_shape, "U8"),
        "level": Header(levels, "F32"),
        "noise_seed": Header(levels, "I64"),
        "velocity": Header((*levels, index.channels, *index.latent_shape), "BF16"),
    }.get("text" if name == "negative" else what.partition(".")[0])


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


class DataWriter:
    """Writes samples into a folder, which may have shards of the same samples from a run that was stopped."""

    def __init__(self, folder: Path, index: DataIndex):
        """index: without shards. UsageError where the folder holds something else, or cannot be written."""
        self.folder, self.index = folder, index
        with self._room():
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{option('output', folder)} is not a folder", hint=self._elsewhere)
            folder.mkdir(parents=True, exist_ok=True)
            files.check_writable(folder / INDEX)
            others = [path.name for path in folder.iterdir() if not path.name.startswith(".fpsgen-")]
        if INDEX in others:
            self.index = read_index(folder)
            self._check_alike(index.as_dict(), self.index.as_dict())
        elif others:
            told = f"{option('output', folder)} exists, and contains other things than training data"
            raise UsageError(told, hint=self._elsewhere)

    _elsewhere = f"choose another folder with {option('output')}"

    def _check_alike(self, wanted: dict[str, Any], there: dict[str, Any]) -> None:
        wanted, there = wanted | wanted.pop("made"), there | there.pop("made")
        for field in dict.fromkeys([*wanted, *there]):
            own, new = there.get(field), wanted.get(field)
            if field != "shards" and own != new:
                told = f"{option('output', self.folder)} holds data of another run: {field} {printable(own)}, not {new}"
                raise UsageError(told, hint=f"repeat that run's options, or {self._elsewhere}")

    def put(self, samples: Sequence[tuple[Origin, Sample]], negative: Tensor) -> None:
        """Write one more shard. Texts, and the negative prompt's, are of any dtype, padded or not."""
        number = len(self.index.shards)
        tensors = {"negative": trimmed(negative)} if number == 0 else {}
        for place, (_, sample) in enumerate(samples):
            own = {f"text.{caption}": trimmed(text) for caption, text in enumerate(sample.texts)}
            own |= {"latents": sample.latents.float()}
            if sample.weight is not None:
                own |= {"weight": sample.weight}
            if sample.taught is not None:
                own |= dict(zip(("level", "noise_seed", "velocity"), sample.taught, strict=True))
            tensors |= {f"{place}.{name}": tensor.cpu().contiguous() for name, tensor in own.items()}
        body, path = safetensors.torch.save(tensors), self.folder / _name(number)
        origins = tuple(origin for origin, _ in samples)
        shard = Shard(path.name, hashlib.sha256(body).hexdigest(), origins)
        index = replace(self.index, shards=(*self.index.shards, shard))
        with self._room():
            if not number:  # from here on the folder is known for what it is
                files.write_json(self.folder / INDEX, self.index.as_dict())
            with files.beside(path) as whole:
                whole.write_bytes(body)
                whole.replace(path)
            _check_shard(index, number, path)
            files.write_json(self.folder / INDEX, index.as_dict())
        self.index = index

    def _room(self) -> Any:
        hint = f"make room there, or {self._elsewhere}; complete shards are kept, and the same command continues"
        return files.refused(self.folder, hint, "output")


def write(folder: Path, index: DataIndex, negative: Tensor, samples: Iterable[tuple[Origin, Sample]]) -> None:
    """Write samples that were made elsewhere, in the model's latents and embeddings. index: by `index_of`. Those that
    the folder has from an earlier run are passed over; `UsageError` as `DataWriter` has it."""
    writer = DataWriter(folder, index)
    left = itertools.islice(samples, len(writer.index.origins), None)
    while shard := list(itertools.islice(left, index.samples_per_shard)):
        writer.put(shard, negative)


def trimmed(text: Tensor) -> Tensor:
    """An embedding [1, length, text_dim] or [length, text_dim] as it is kept: bfloat16, without the padding's zeros."""
    rows = text.detach().reshape(-1, text.shape[-1]).cpu()
    kept = int(rows.any(1).nonzero().max()) + 1 if rows.any() else 0
    return rows[:kept].to(torch.bfloat16).clone()


def padded(text: Tensor, length: int) -> Tensor:
    """[length, text_dim]: an embedding that was `trimmed`, as the text encoder gave it."""
    return F.pad(text, (0, 0, 0, length - len(text)))
