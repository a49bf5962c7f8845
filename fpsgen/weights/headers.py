"""What weight files and their companions say before a weight is read: names, shapes, dtypes, JSON. Imports no torch.

Names that come from a file are made printable where they enter a sentence.
"""

from __future__ import annotations

import errno
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fpsgen.errors import ModelError
from fpsgen.files import named_in_utf8, open_regular
from fpsgen.printable import printable
from fpsgen.weights import kinds
from fpsgen.weights.kinds import FETCH_AGAIN, Contents, Header
from fpsgen.weights.pickled import ForeignError, NoTableError, pickled_headers

EMBEDDING = "shared.weight"  # transformers' name of the text encoder's token embedding
TRUSTED = "use a checkpoint from its publisher"
_NO_MEMORY = "Cannot allocate memory"
_LONGEST_JSON = 64 << 20  # bytes
_FOREIGN = "it does not begin as a .safetensors file does"
_LONGEST_HEADER = 100_000_000  # bytes, by safetensors' own rule
Rename = Callable[[str], str]


class UnreadableError(ModelError):
    """A file that lies there, and that its owner lets nobody else read."""


def read_json(path: Path) -> dict:
    """The JSON object in a file; ModelError that says what is wrong with it."""
    try:
        with open_regular(path) as file:  # a pipe, say, would have us wait
            text = file.read(_LONGEST_JSON)
    except FileNotFoundError:
        raise ModelError(f"{printable(path.parent)} holds no {path.name}", hint=FETCH_AGAIN) from None
    except OSError as fault:
        raise unreadable(path, fault) from None
    kinds.refuse_plain(path, text[: kinds.FIRST_BYTES], "json", "text")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as damage:
        endless = "a number or brackets without end"  # of which Python speaks in terms of its own settings
        why = printable(damage) if isinstance(damage, (json.JSONDecodeError, UnicodeError)) else endless
        raise ModelError(f"{printable(path)} is not valid JSON: {why}", hint=FETCH_AGAIN) from None
    if not isinstance(value, dict):
        raise ModelError(f"{printable(path)} holds no JSON object", hint=FETCH_AGAIN)
    return value


def shards(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a component, by its index where there is one. Their number is never assumed."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        names = sorted(set(weight_map(index).values()))
    elif (folder / f"{stem}.safetensors").exists():
        names = [f"{stem}.safetensors"]
    else:  # numbered ones; model.fp16.safetensors, say, is the same once more
        names = sorted(path.name for path in folder.glob(f"{stem}-*-of-*.safetensors"))
    if not names:
        raise ModelError(f"{printable(folder)} holds no {stem}.safetensors", hint="fetch the missing file")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(
            f"{printable(folder)} lacks {len(missing)} of {len(names)} weight files: {some(missing)}",
            hint="fetch the missing files",
        )
    return [folder / name for name in names]


def weight_map(index: Path) -> dict[str, str]:
    """Parameter -> name of a file beside it, of an index file."""
    table = read_json(index).get("weight_map")
    if not (isinstance(table, dict) and all(isinstance(name, str) for name in table.values())):
        raise ModelError(f"{printable(index)} holds no weight_map", hint=FETCH_AGAIN)
    if elsewhere := [name for name in table.values() if Path(name).name != name or "\0" in name]:
        told = f"{printable(index)} names files that are not in its folder: {some(elsewhere)}"
        raise ModelError(told, hint=FETCH_AGAIN)
    return table


def contents(file: Path) -> Contents:
    """What a weight file says of itself. ModelError where it holds no tensors, is damaged or cannot be read."""
    if is_pickled(file):
        with unpickling(file):
            return Contents(file, pickled_headers(file))
    with opened(file, "numpy") as weights:
        names = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118 (safe_open is no mapping)
        found = {key: Header(tuple(view.get_shape()), view.get_dtype()) for key, view in names.items()}
        return Contents(file, found, weights.metadata() or {})


def is_pickled(file: Path) -> bool:
    """Whether a file is torch's zip archive, not safetensors. ModelError where its first bytes tell that it is neither,
    or where it cannot be read."""
    try:
        with open_regular(file) as content:
            start = content.read(kinds.FIRST_BYTES)
    except OSError as fault:
        raise unreadable(file, fault) from None
    kinds.refuse_plain(file, start)
    return start.startswith(b"PK\3\4") or file.suffix == ".pth"


def headers(files: Sequence[Path]) -> dict[str, Header]:
    """Every tensor of weight files by name, none of them read. ModelError where two files hold one name."""
    found: dict[str, Header] = {}
    for file in files:
        some_of = contents(file).tensors
        if twice := sorted(found.keys() & some_of.keys()):
            told = f"{printable(file)} repeats {len(twice)} parameters of other files: {some(twice)}"
            raise ModelError(told, hint="remove the file that does not belong there")
        found.update(some_of)
    return found


def renamed(found: Mapping[str, Header], rename: Rename) -> dict[str, Header]:
    """Headers under other names; ModelError where two become one, but for the text encoder's embedding, which files
    may hold under both of its names."""
    result: dict[str, Header] = {}
    for key, header in found.items():
        name = rename(key)
        if name in result and name != EMBEDDING:
            told = f"its weights hold {printable(name, 60)} twice, once as {printable(key, 60)}"
            raise ModelError(told, hint="use a file that holds each parameter once")
        result.setdefault(name, header)
    return result


@contextmanager
def opened(file: Path, framework: str) -> Iterator[safe_open]:
    """A safetensors file, memory-mapped; ModelError that says what is wrong with it."""
    try:
        with named_in_utf8(file) as path, safe_open(path, framework=framework) as weights:
            yield weights
    except SafetensorError as damage:
        if (cut := _cut(file)) == _FOREIGN and file.suffix != ".safetensors":
            raise ModelError(
                f"{printable(file)} is not a .safetensors file", hint="give the file or the folder of a model's weights"
            ) from None
        raise ModelError(f"{printable(file)} is damaged: {cut or printable(damage)}", hint=FETCH_AGAIN) from None
    except OSError as fault:
        raise unreadable(file, fault) from None


def _cut(file: Path) -> str | None:
    """That a safetensors file is shorter than its header says, or does not begin as one."""
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
def unpickling(file: Path) -> Iterator[None]:
    """Whatever keeps a `.pth` file from being read, by us or by torch, ends in a ModelError that says so."""
    try:
        yield
    except pickle.UnpicklingError as fault:  # torch's names nothing in so few words
        named = f": {printable(fault, 60)}" if isinstance(fault, ForeignError) else ""
        told = f"{printable(file)} contains more than tensors, which could run code{named}"
        raise ModelError(told, hint=TRUSTED) from None
    except NoTableError:
        raise ModelError(f"{printable(file)} is not a table of plain tensors", hint=TRUSTED) from None
    except MemoryError:
        raise
    except OSError as fault:
        raise unreadable(file, fault) from None
    except zipfile.BadZipFile:
        raise ModelError(f"{printable(file)} is damaged, or older than PyTorch 1.6", hint=FETCH_AGAIN) from None
    except StopIteration:
        told = f"{printable(file)} is a zip archive, not a weight file"
        raise ModelError(told, hint="unpack it, and give what was inside") from None
    except Exception as damage:  # damaged bytes lead to errors of any kind
        if _NO_MEMORY in str(damage):  # said of a file that cannot be mapped
            raise MemoryError(str(file)) from None
        told = str(damage).partition(". ")[0] or type(damage).__name__
        raise ModelError(f"{printable(file)} is damaged: {printable(told)}", hint=FETCH_AGAIN) from None


def unreadable(path: Path, fault: OSError) -> Exception:
    """The error for a path that cannot be read; what lacks memory to be mapped is told as that."""
    if fault.errno == errno.ENOMEM or _NO_MEMORY in str(fault):
        return MemoryError(str(path))
    told = f"{printable(path)} cannot be read: {printable(fault.strerror or fault)}"
    if isinstance(fault, PermissionError):
        return UnreadableError(told, hint="ask its owner for permission to read it")
    return ModelError(told, hint=FETCH_AGAIN)


def some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(printable(name, 80) for name in names[:most]) + (", …" if len(names) > most else "")
