"""Weight files: what is in them, reading them piece by piece, and the report of what does not fit.

Safetensors, and `.pth` as far as it is nothing but tensors: pickled code is never run. Everything is
memory-mapped, so a header costs milliseconds and a tensor is copied once, to where it will live.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fpsgen.errors import ModelError

FETCH_AGAIN = "fetch the file again"
EMBEDDING = "shared.weight"  # transformers' name of the text encoder's token embedding
_LFS_POINTER = b"version https://git-lfs"
Rename = Callable[[str], str]

# By safetensors' names. Others (FP8, INT8, GGUF blocks) need scales that Wan2.1's own formats do not carry.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Header:
    """What a file says of a tensor without its being read; dtype by safetensors' name for it."""

    shape: tuple[int, ...]
    dtype: str


def read_json(path: Path) -> dict:
    """The JSON object in a file; ModelError that says what is wrong with it."""
    if not path.is_file():  # a pipe, say, would have us wait
        raise ModelError(f"{path.parent} holds no {path.name}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise ModelError(f"{path} cannot be read: {fault.strerror or fault}") from None
    except (ValueError, RecursionError) as damage:
        raise ModelError(f"{path} is not valid JSON: {damage}", hint=FETCH_AGAIN) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object", hint=FETCH_AGAIN)
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
        raise ModelError(f"{folder} holds no {stem}.safetensors")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(f"{folder} lacks {len(missing)} of {len(names)} weight files: {some(missing)}")
    return [folder / name for name in names]


def weight_map(index: Path) -> dict[str, str]:
    """Parameter -> name of a file beside it, of an index file."""
    table = read_json(index).get("weight_map")
    if not (isinstance(table, dict) and all(isinstance(name, str) for name in table.values())):
        raise ModelError(f"{index} holds no weight_map", hint=FETCH_AGAIN)
    if elsewhere := [name for name in table.values() if Path(name).name != name]:
        raise ModelError(f"{index} names files that do not lie beside it: {some(elsewhere)}", hint=FETCH_AGAIN)
    return table


def read(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of weight files, memory-mapped, one at a time."""
    for file in files:
        if file.suffix == ".pth":
            yield from _unpickle(file).items()
            continue
        with _opened(file) as weights:
            for key in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield key, weights.get_tensor(key)


def headers(files: Sequence[Path]) -> dict[str, Header]:
    """Every tensor of weight files by name, none of them read. ModelError where two files hold one name."""
    found: dict[str, Header] = {}
    for file in files:
        some_of = _pickled_headers(file) if file.suffix == ".pth" else _safetensors_headers(file)
        if twice := sorted(found.keys() & some_of.keys()):
            raise ModelError(f"{file} repeats {len(twice)} parameters of other files: {some(twice)}")
        found.update(some_of)
    return found


def renamed(found: Mapping[str, Header], rename: Rename) -> dict[str, Header]:
    """Headers under other names; ModelError where two become one, but for the text encoder's embedding, which files
    may hold under both of its names."""
    result: dict[str, Header] = {}
    for key, header in found.items():
        name = rename(key)
        if name in result and name != EMBEDDING:
            raise ModelError(f"its weights hold {name} twice, once as {key}")
        result.setdefault(name, header)
    return result


def _refuse_pointer(file: Path) -> None:
    """Git without its large-file extension leaves a line of text where the weights should be."""
    try:
        with file.open("rb") as content:
            start = content.read(len(_LFS_POINTER))
    except OSError as fault:
        raise ModelError(f"{file} cannot be read: {fault.strerror or fault}") from None
    if start == _LFS_POINTER:
        raise ModelError(f"{file} is a Git LFS pointer, not the file itself", hint="git lfs pull")


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    _refuse_pointer(file)
    try:
        with safe_open(file, framework="pt") as weights:
            yield weights
    except SafetensorError as damage:
        raise ModelError(f"{file} is damaged: {damage}", hint=FETCH_AGAIN) from None
    except OSError as fault:
        raise ModelError(f"{file} cannot be read: {fault.strerror or fault}") from None


def _safetensors_headers(file: Path) -> dict[str, Header]:
    found = {}
    with _opened(file) as weights:
        for key in weights.keys():  # noqa: SIM118
            view = weights.get_slice(key)
            found[key] = Header(tuple(view.get_shape()), view.get_dtype())
    return found


def _pickled_headers(file: Path) -> dict[str, Header]:
    return {
        key: Header(tuple(tensor.shape), _NAMES.get(tensor.dtype, str(tensor.dtype)))
        for key, tensor in _unpickle(file).items()
    }


def _unpickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file. Whatever else a pickle may hold is refused, not run."""
    _refuse_pointer(file)
    if not zipfile.is_zipfile(file):
        raise ModelError(f"{file} is damaged, or older than PyTorch 1.6", hint=FETCH_AGAIN)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{file} holds more than tensors, which could run code", hint="use a checkpoint from its publisher"
        ) from None
    except OSError as fault:
        raise ModelError(f"{file} cannot be read: {fault.strerror or fault}") from None
    except Exception as damage:  # torch's unpickler meets damaged bytes with errors of any kind
        raise ModelError(f"{file} is damaged: {str(damage).partition('. ')[0]}", hint=FETCH_AGAIN) from None
    if not (isinstance(state, dict) and state and all(map(_is_weight, state, state.values()))):
        raise ModelError(f"{file} is no table of plain tensors", hint="use a checkpoint from its publisher")
    return state


def _is_weight(key: object, value: object) -> bool:
    """Whether an entry of a pickle is a name with a plain tensor that has values."""
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and not (value.is_nested or value.is_quantized or value.is_meta)
        and value.layout == torch.strided
    )


def faults(wanted: Mapping[str, Sequence[int]], found: Mapping[str, Header]) -> str:
    """What keeps the tensors `found` from being the parameters `wanted`, counted and named; "" if nothing does."""
    foreign = [f"{name} {found[name].dtype}" for name in wanted if name in found and found[name].dtype not in DTYPES]
    misshaped = [
        f"{name} {list(found[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != tuple(shape)
    ]
    kinds = (
        ("missing", [name for name in wanted if name not in found]),
        ("unexpected", [name for name in found if name not in wanted]),
        ("of another shape", misshaped),
        (f"neither {', '.join(list(DTYPES)[:-1])} nor {list(DTYPES)[-1]}", foreign),
    )
    return "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in kinds if names)


def check_parameters(model: nn.Module, files: Sequence[Path], rename: Rename) -> None:
    """Compare files with a module, by headers alone; ModelError that counts and names all that does not fit."""
    found = renamed(headers(files), rename)
    wanted = {name: tuple(value.shape) for name, value in model.named_parameters()}  # tied ones once
    if told := faults(wanted, found):
        raise ModelError(f"{files[0].parent} does not fit Wan2.1; parameters {told}")


def fill(
    model: nn.Module,
    files: Sequence[Path],
    rename: Rename,
    device: torch.device,
    dtype: Callable[[str], torch.dtype],
) -> None:
    """Give a module built on the meta device its parameters from `files`, each cast to `dtype(name)` as it is read.

    rename: from a file's name to the module's. Raises ModelError, before anything is copied, see `check_parameters`.
    """
    check_parameters(model, files, rename)
    state: dict[str, Tensor] = {}
    for key, tensor in read(files):
        name = rename(key)
        if name not in state:  # see `renamed`
            state[name] = tensor.to(device, dtype(name), copy=True)  # off the memory map
    model.load_state_dict(state, assign=True, strict=False)  # the check was stricter, but for tied parameters
    model.eval().requires_grad_(False)


def some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
