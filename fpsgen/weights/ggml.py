"""GGUF files: what one says of its tensors, and their values by the arithmetic of the `gguf` package. Imports no torch.

Names are the original's, or llama.cpp's for a text encoder; dimensions are written from the last to the first. Those of
a tensor that was reshaped to be rounded are in the metadata (`comfy.gguf.orig_shape.NAME`, ComfyUI-GGUF
`tools/convert.py`). The package's own reader makes Python objects of each token in a vocabulary, which takes ten
seconds for umT5's, and believes any count; hence the header is followed here. Source: ggml `docs/gguf.md`, versions 2
and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpsgen.files import open_regular
from fpsgen.weights.kinds import FLOATS, Header

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"GGUF"
_RESHAPED = "comfy.gguf.orig_shape."
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_DIMENSIONS = 8
_LONGEST_TEXT = 1 << 20  # bytes of a text that says what a file is
_AT_ONCE = 1 << 18  # values that are made float32 at once: several copies of so few stay in a processor's cache


class GGUFError(ValueError):
    """What is wrong with a GGUF file: the rest of a sentence that begins with its name."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor's values lie. shape: the parameter's; kind: ggml's name of the type; size: in bytes."""

    shape: tuple[int, ...]
    kind: str
    offset: int
    size: int

    @property
    def header(self) -> Header:
        return Header(self.shape, self.kind)


@dataclass(frozen=True)
class Catalogue:
    """A file's header. metadata: its texts."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


class _Cursor:
    """Reads values from bytes, one after the other; struct.error or a GGUFError beyond the end."""

    def __init__(self, data: mmap.mmap):
        self.data, self.place = data, 4

    def one(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self.data, self.place)
        self.place += struct.calcsize(f"<{letter}")
        return value

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.place:
            raise GGUFError("is damaged: it ends within its header")
        self.place += count

    def text(self) -> str:
        length = self.one("Q")
        start = self.place
        self.skip(length)
        if length > _LONGEST_TEXT:
            return ""
        return self.data[start : self.place].decode(errors="replace")

    def value(self, kind: int, kept: bool) -> Any:
        """A metadata value; of arrays None unless it is `kept`, and numbers all the same."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.one(_letter(kind))
        inner, count = self.one("I"), self.one("Q")
        if inner in (_STRING, _ARRAY):
            for _ in range(count):
                self.value(inner, False)
            return None
        letter = _letter(inner)
        if kept and count <= _MOST_DIMENSIONS:
            return [self.one(letter) for _ in range(count)]
        self.skip(count * struct.calcsize(f"<{letter}"))
        return None


def _letter(kind: int) -> str:
    if kind not in _SCALARS:
        raise GGUFError(f"has metadata of an unknown type, {kind}")
    return _SCALARS[kind]


def catalogue(file: Path) -> Catalogue:
    """A file's header. GGUFError or OSError where it cannot be read."""
    with open_regular(file) as content, mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _catalogue(_Cursor(data), len(data))
        except (struct.error, RecursionError, OverflowError):
            raise GGUFError("is damaged: it ends within its header") from None


def _catalogue(cursor: _Cursor, size: int) -> Catalogue:
    version, count, pairs = cursor.one("I"), cursor.one("Q"), cursor.one("Q")
    if version not in (2, 3):
        raise GGUFError(f"is a GGUF file of version {version}; fpsgen reads versions 2 and 3")
    texts: dict[str, str] = {}
    shapes: dict[str, list[int]] = {}
    alignment: Any = 32
    for _ in range(pairs):
        key = cursor.text()
        value = cursor.value(cursor.one("I"), key.startswith(_RESHAPED))
        if isinstance(value, str):
            texts[key] = value
        elif key.startswith(_RESHAPED) and isinstance(value, list) and all(type(n) is int for n in value):
            shapes[key.removeprefix(_RESHAPED)] = value
        elif key == "general.alignment":
            alignment = value
    found: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name, dimensions = cursor.text(), cursor.one("I")
        if name in found or dimensions > _MOST_DIMENSIONS:
            raise GGUFError("is damaged: it names a tensor twice, or one of more than 8 dimensions")
        shape = tuple(cursor.one("Q") for _ in range(dimensions))[::-1]
        found[name] = (shape, cursor.one("I"), cursor.one("Q"))
    if not isinstance(alignment, int) or alignment < 1:
        raise GGUFError("is damaged: its alignment is no count")
    begin = -(-cursor.place // alignment) * alignment
    tensors = {name: _stored(name, *told, begin, shapes.get(name)) for name, told in found.items()}
    end = max((each.offset + each.size for each in tensors.values()), default=0)
    if end > size:
        raise GGUFError(f"is damaged: it ends after {size:,} of {end:,} bytes")
    if sum(each.size for each in tensors.values()) > size:  # memory is needed for each
        raise GGUFError("is damaged: its tensors overlap")
    return Catalogue(tensors, texts)


def _stored(name: str, shape: tuple[int, ...], number: int, offset: int, begin: int, own: list[int] | None) -> Stored:
    """own: its shape by the metadata."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if number not in GGML_QUANT_SIZES:
        raise GGUFError(f"holds numbers of a type that fpsgen does not know, {number}")
    kind = GGMLQuantizationType(number)
    block, size = GGML_QUANT_SIZES[kind]
    if shape and shape[-1] % block:
        raise GGUFError(f"is damaged: rows of {shape[-1]} numbers are no blocks of {block}")
    if own is not None and prod(own) != prod(shape):
        raise GGUFError(f"is damaged: {prod(shape)} numbers are to be a tensor of shape {own}")
    if kind.name not in FLOATS and not _is_read(kind.name):
        raise GGUFError(f"holds {kind.name} numbers, which fpsgen does not read")
    return Stored(tuple(own) if own is not None else shape, kind.name, begin + offset, prod(shape) // block * size)


@cache
def _is_read(kind: str) -> bool:
    """Whether the package can make float32 values of a type."""
    import gguf
    import numpy as np

    number = gguf.GGMLQuantizationType[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[number][1]), np.uint8), number)
    except NotImplementedError:
        return False
    return True


def values(file: Path, names: Container[str], most: int | None = None) -> Iterator[tuple[str, Stored, np.ndarray]]:
    """The tensors of these names: each one's float32 values in a row, or the bytes of one whose type is among `FLOATS`.
    most: how many values are wanted of each, or a few more; all by default."""
    import gguf
    import numpy as np

    tensors = catalogue(file).tensors
    with open_regular(file) as content:
        for name, stored in tensors.items():
            if name not in names:
                continue
            kind = gguf.GGMLQuantizationType[stored.kind]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            count = stored.size if most is None else min(stored.size, -(-most // block) * size)
            content.seek(stored.offset)
            raw = np.fromfile(content, np.uint8, count)
            if stored.kind in FLOATS:
                yield name, stored, raw
                continue
            blocks, made = raw.reshape(-1, size), np.empty((count // size, block), np.float32)
            step = _AT_ONCE // block
            for n in range(0, len(blocks), step):
                with np.errstate(all="ignore"):  # of damaged scales, which give what they give
                    made[n : n + step] = gguf.quants.dequantize(blocks[n : n + step], kind)
            yield name, stored, made.ravel()
