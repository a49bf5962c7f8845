"""What weight files and their companions say before a weight is read: names, shapes, dtypes, JSON. Imports no torch.

Names that come from a file are made printable where they enter a sentence.
"""

from __future__ import annotations

import errno
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from fpsgen.errors import ModelError
from fpsgen.files import named_in_utf8, open_regular
from fpsgen.printable import printable
from fpsgen.weights import ggml, kinds, scaled
from fpsgen.weights.kinds import FETCH_AGAIN, Contents, Header, some
from fpsgen.weights.pickled import ForeignError, NoTableError, pickled_headers

EMBEDDING = "shared.weight"  # transformers' name of the text encoder's token embedding
TRUSTED = "use a checkpoint from its publisher"
_NO_MEMORY = "Cannot allocate memory"
_LONGEST_JSON = 64 << 20  # bytes
_FOREIGN = "it does not begin as a .safetensors file does"
_LONGEST_HEADER = 100_000_000  # bytes, by safetensors' own rule
_LONGEST_NOTE = 4096  # bytes of what a file says of a layer's format


class UnreadableError(ModelError):
    """A file exists, but this user has no permission to read it."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError inside into a ModelError that says why `path` cannot be read, or into a MemoryError."""
    try:
        yield
    except OSError as fault:
        if fault.errno == errno.ENOMEM or _NO_MEMORY in str(fault):
            raise MemoryError(str(path)) from None
        message = f"{printable(path)} cannot be read: {printable(fault.strerror or fault)}"
        if isinstance(fault, FileNotFoundError):
            message = f"{printable(path.parent)} holds no {printable(path.name)}"
        if isinstance(fault, PermissionError):
            raise UnreadableError(message, hint="ask its owner for permission to read it") from None
        raise ModelError(message, hint=FETCH_AGAIN) from None


def read_json(path: Path) -> dict:
    """The JSON object in a file; a ModelError says what is wrong with it."""
    try:
        with reading(path), open_regular(path) as file:  # a pipe, say, would have us wait
            text = file.read(_LONGEST_JSON)
        kinds.refuse_plain(path, text[: kinds.FIRST_BYTES], "json", "text")
        value = json.loads(text)
    except (ValueError, RecursionError) as damage:
        endless = "a number or brackets without end"  # of which Python speaks in terms of its own settings
        why = printable(damage) if isinstance(damage, (json.JSONDecodeError, UnicodeError)) else endless
        raise ModelError(f"{printable(path)} is not valid JSON: {why}", hint=FETCH_AGAIN) from None
    if not isinstance(value, dict):
        raise ModelError(f"{printable(path)} holds no JSON object", hint=FETCH_AGAIN)
    for key, own in value.items() if b"\\u" in text else ():
        try:  # half of a pair of surrogates is no text, and would fail wherever it is written
            json.dumps([key, own], ensure_ascii=False).encode()
        except UnicodeError:
            told = f"{printable(path)} has {printable(key, 60)} = {printable(repr(own), 60)}, which cannot be"
            raise ModelError(f"{told}: it holds half a character", hint=FETCH_AGAIN) from None
    return value


def shards(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a component, by its index where there is one. Their number is never assumed."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        names = _names_in(index)
    elif (folder / f"{stem}.safetensors").exists():
        names = [f"{stem}.safetensors"]
    else:  # numbered ones; model.fp16.safetensors, say, is the same once more
        names = sorted(path.name for path in folder.glob(f"{stem}-*-of-*.safetensors"))
    if not names:
        raise ModelError(f"{printable(folder)} holds no {stem}.safetensors", hint="fetch the missing file")
    if missing := [name for name in names if not (folder / name).is_file()]:
        message = f"{printable(folder)} lacks {len(missing)} of {len(names)} weight files: {some(missing)}"
        raise ModelError(message, hint="fetch the missing files")
    return [folder / name for name in names]


def _names_in(index: Path) -> list[str]:
    """The files that an index names; ModelError if one would not lie beside it."""
    table = read_json(index).get("weight_map")
    if not (isinstance(table, dict) and all(isinstance(name, str) for name in table.values())):
        raise ModelError(f"{printable(index)} holds no weight_map", hint=FETCH_AGAIN)
    names = sorted(set(table.values()))
    if elsewhere := [name for name in names if Path(name).name != name or "\0" in name]:
        message = f"{printable(index)} names files that are not in its folder: {some(elsewhere)}"
        raise ModelError(message, hint=FETCH_AGAIN)
    return names


def contents(*files: Path) -> Contents:
    """What a weight file, or the files of one component, say of themselves; a weight and its scale are one parameter.
    ModelError where one holds no tensors, is damaged or cannot be read, and where two hold one name."""
    tensors: dict[str, Header] = {}
    notes: dict[str, bytes] = {}
    metadata: dict[str, str] = {}
    for file in files:
        more, own, told = _table(file)
        twice = [name for name in tensors.keys() & more.keys() if not scaled.is_passed_over(name)]
        if twice:
            message = f"{printable(file)} repeats {len(twice)} parameters of other files: {some(sorted(twice))}"
            raise ModelError(message, hint="remove the file that does not belong there")
        tensors, notes, metadata = tensors | more, notes | own, {**told, **metadata}
    folded, fault = scaled.fold(tensors, scaled.formats(notes, metadata))
    return Contents(files[0] if len(files) == 1 else files[0].parent, folded, metadata, fault)


def _table(file: Path) -> tuple[dict[str, Header], dict[str, bytes], Mapping[str, str]]:
    """A file's tensors as they lie in it, what it says of the formats of layers, and its metadata."""
    form = form_of(file)
    if form == "pickle":
        with unpickling(file):
            return pickled_headers(file), {}, {}
    if form == "gguf":
        with unpacking(file):
            found = ggml.catalogue(file)
            return {name: stored.header for name, stored in found.tensors.items()}, {}, found.metadata
    with opened(file, "numpy") as weights:
        views = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118 (safe_open is no mapping)
        tensors = {key: Header(tuple(view.get_shape()), view.get_dtype()) for key, view in views.items()}
        notes = {
            key: weights.get_tensor(key).tobytes()
            for key, header in tensors.items()
            if key.endswith(scaled.FORMAT) and header.dtype == "U8" and prod(header.shape) <= _LONGEST_NOTE
        }
        return tensors, notes, weights.metadata() or {}


def trained_for(file: Path) -> str | None:
    """The preset that a weight file of `fpsgen train` was made for; of another file, None."""
    preset = contents(file).metadata.get("trained_for")
    return preset and printable(preset)


def form_of(file: Path) -> Literal["pickle", "gguf", "safetensors"]:
    """How a weight file is packed: torch's zip archive, GGUF or safetensors. ModelError where its first bytes tell that
    it is none of them, or where it cannot be read."""
    with reading(file), open_regular(file) as content:
        start = content.read(kinds.FIRST_BYTES)
    kinds.refuse_plain(file, start)
    if start.startswith(ggml.MAGIC) and not kinds.is_safetensors(start):
        return "gguf"
    return "pickle" if start.startswith(b"PK\3\4") or file.suffix == ".pth" else "safetensors"


def is_pickled(file: Path) -> bool:
    """Whether a file is torch's zip archive. ModelError as `form_of`."""
    return form_of(file) == "pickle"


def headers(files: Sequence[Path]) -> dict[str, Header]:
    """Every parameter of weight files by name, none of them read. ModelError as `contents`, and where scales of 8-bit
    weights are missing or do not fit."""
    if not files:
        return {}
    found = contents(*files)
    kinds.refuse_fault(found)
    return dict(found.tensors)


def renamed(tensors: Mapping[str, Header], rename: Callable[[str], str]) -> dict[str, Header]:
    """Headers under other names; ModelError where two become one, but for the text encoder's embedding, which files
    may hold under both of its names."""
    result: dict[str, Header] = {}
    for key, header in tensors.items():
        name = rename(key)
        if name in result and name != EMBEDDING:
            message = f"its weights hold {printable(name, 60)} twice, once as {printable(key, 60)}"
            raise ModelError(message, hint="use a file that holds each parameter once")
        result.setdefault(name, header)
    return result


@contextmanager
def opened(file: Path, framework: str) -> Iterator[safe_open]:
    """A safetensors file, memory-mapped; ModelError that says what is wrong with it."""
    try:
        with reading(file), named_in_utf8(file) as path, safe_open(path, framework=framework) as weights:
            yield weights
    except SafetensorError as damage:
        if (cut := _cut(file)) == _FOREIGN and file.suffix != ".safetensors":
            hint = "give the file or the folder of a model's weights"
            raise ModelError(f"{printable(file)} is not a .safetensors file", hint) from None
        raise ModelError(f"{printable(file)} is damaged: {cut or printable(damage)}", hint=FETCH_AGAIN) from None


def _cut(file: Path) -> str | None:
    """A sentence if a safetensors file is shorter than its header says, or does not begin like one."""
    try:
        size = file.stat().st_size
        with open_regular(file) as content:
            length, start = int.from_bytes(content.read(8), "little"), content.read(1)
            if start != b"{" or length > _LONGEST_HEADER:
                return _FOREIGN
            if size < 8 + length:
                return f"it ends after {size:,} bytes, within its header"
            header = json.loads(start + content.read(min(length, _LONGEST_JSON) - 1))
        header.pop("__metadata__", None)
        wanted = 8 + length + max(int(tensor["data_offsets"][1]) for tensor in header.values())
    except Exception:  # whatever damaged bytes lead to
        return None
    return f"it ends after {size:,} of {wanted:,} bytes" if size < wanted else None


@contextmanager
def unpacking(file: Path) -> Iterator[None]:
    """Turn what goes wrong while a GGUF file is read into a ModelError."""
    try:
        with reading(file):
            yield
    except ggml.GGUFError as fault:
        raise ModelError(f"{printable(file)} {fault}", hint=FETCH_AGAIN) from None


@contextmanager
def unpickling(file: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a `.pth` file is read, by us or by torch, into a ModelError that explains it."""
    message, hint = "", FETCH_AGAIN
    try:
        with reading(file):
            yield
    except (ModelError, MemoryError):
        raise
    except pickle.UnpicklingError as fault:  # torch's names nothing in so few words
        named = f": {printable(fault, 60)}" if isinstance(fault, ForeignError) else ""
        message, hint = f"contains more than tensors, which could run code{named}", TRUSTED
    except NoTableError:
        message, hint = "is not a table of plain tensors", TRUSTED
    except zipfile.BadZipFile:
        message = "is damaged, or older than PyTorch 1.6"
    except StopIteration:
        message, hint = "is a zip archive, not a weight file", "unpack it, and give what was inside"
    except Exception as damage:  # damaged bytes lead to errors of any kind
        if _NO_MEMORY in str(damage):  # said of a file that cannot be mapped
            raise MemoryError(str(file)) from None
        message = f"is damaged: {printable(str(damage).partition('. ')[0] or type(damage).__name__)}"
    if message:
        raise ModelError(f"{printable(file)} {message}", hint)
