"""What a `.pth` file says of its tensors, read without torch and without running anything.

torch.save writes a zip archive: `NAME/data.pkl` describes the tensors, `NAME/data/KEY` holds the values of one storage.
The description is a pickle, a program for a small stack machine. Here it is followed opcode by opcode; nothing is
imported and nothing called. Only names of torch, and of what holds a table, are known at all.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from fpsgen.files import open_regular
from fpsgen.weights.kinds import Header

# torch's storage classes and dtypes, by safetensors' names and with bytes per value.
_DTYPES = {
    "Float": ("F32", 4), "Half": ("F16", 2), "BFloat16": ("BF16", 2), "Double": ("F64", 8), "Long": ("I64", 8),
    "Int": ("I32", 4), "Short": ("I16", 2), "Char": ("I8", 1), "Byte": ("U8", 1), "Bool": ("BOOL", 1),
}  # fmt: skip
_NAMES = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}  # of dtypes that have no storage class
_MOST = 64 << 20  # bytes of a description; that of Wan2.1's text encoder has 40 thousand
_MOST_COPIES = 4  # of what is stored: tensors may share it, and repeat one value endlessly
_MARK = object()


class ForeignError(pickle.UnpicklingError):
    """A pickle that names more than tensors and tables."""


class NoTableError(Exception):
    """A pickle that holds no table of plain tensors."""


@dataclass(frozen=True)
class _Name:
    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int


class _Other:
    """A value that is neither a table nor a plain tensor; whatever is put into it is gone."""

    def update(self, *_: object) -> None: ...

    extend = update


def pickled_headers(file: Path) -> dict[str, Header]:
    """Every tensor of a `.pth` file by name. Raises OSError, ForeignError, NoTableError; any other error means that the
    file is damaged."""
    with open_regular(file) as content, zipfile.ZipFile(content) as archive:
        records = {info.filename: info for info in archive.infolist()}
        description = next(name for name in records if name.endswith("/data.pkl") and name.count("/") == 1)
        table = _follow(_stored(content, records[description]))
    folder = description.removesuffix("data.pkl")
    if not (isinstance(table, dict) and table):
        raise NoTableError
    tensors, size = {}, 0
    for name, value in table.items():
        if not (isinstance(name, str) and isinstance(value, tuple) and value and isinstance(value[0], Header)):
            raise NoTableError
        header, storage, last, width = value
        if (last + 1) * width > records[f"{folder}data/{storage.key}"].file_size:
            raise ValueError(f"{name} is longer than what is stored of it")
        tensors[name] = header
        size += prod(header.shape) * width
    if size > _MOST_COPIES * file.stat().st_size:
        raise ValueError("its tensors are far larger than what is stored of them")
    return tensors


def _stored(content: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    """A record as it lies there: torch neither packs it nor always writes its checksum."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > _MOST:
        raise ValueError("its description is compressed, or too long")
    content.seek(info.header_offset)
    start = content.read(30)
    content.seek(int.from_bytes(start[26:28], "little") + int.from_bytes(start[28:30], "little"), 1)
    return content.read(info.file_size)


def _follow(program: bytes) -> object:
    """What a description leaves on the stack."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def above_mark() -> list[Any]:
        place = next((n for n in reversed(range(len(stack))) if stack[n] is _MARK), None)  # near, however deep it is
        if place is None:
            raise ValueError("its description closes what it does not open")
        values = stack[place + 1 :]
        del stack[place:]
        return values

    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack[-1]
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode.name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "APPEND" | "APPENDS":
                values = above_mark() if opcode.name == "APPENDS" else [stack.pop()]
                stack[-1].extend(values)
            case "SETITEM" | "SETITEMS":
                values = above_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                names = [key if isinstance(key, (str, int)) else _Other() for key in values[::2]]
                stack[-1].update(zip(names, values[1::2], strict=True))
            case "GLOBAL":
                stack.append(_named(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(module, name))
            case "BINPERSID":
                _, kind, key, _, count = stack.pop()
                stack.append(_Storage(kind.name.removesuffix("Storage"), key, count))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BUILD":  # attributes of a table, such as its versions
                stack.pop()
            case _ if isinstance(argument, (int, float, str, bytes)):  # a value that is written out
                stack.append(argument)
            case _:
                raise ValueError(f"its description has the opcode {opcode.name}")
    raise ValueError("its description has no end")


def _named(module: str, name: str) -> _Name:
    if module.split(".")[0] != "torch" and (module, name) != ("collections", "OrderedDict"):
        raise ForeignError(f"{module}.{name}")
    return _Name(module, name)


def _made(maker: _Name, arguments: tuple[Any, ...]) -> object:
    """What calling `maker` would give: a table, a tensor with its storage, the place of its last value in that and the
    bytes of each, or something else."""
    if maker.name == "OrderedDict" and not arguments:
        return {}
    if maker.name == "_rebuild_parameter":
        return arguments[0]
    if maker.name not in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        return _Other()
    storage, offset, shape, stride = arguments[:4]
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride)) or len(shape) != len(stride):
        raise ValueError("a tensor's shape is invalid")
    name = arguments[6].name if len(arguments) > 6 else storage.kind
    dtype, width = _DTYPES.get(storage.kind, (_NAMES.get(name, name), 1))
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if prod(shape) else -1
    if last >= max(storage.count, 0):
        raise ValueError("a tensor reaches beyond its storage")
    return Header(tuple(shape), dtype), storage, last, width
