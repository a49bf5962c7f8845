"""The values in weight files, one parameter at a time: a tensor, or 8-bit numbers with their scales."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fpsgen.attention.quantize import Quantized
from fpsgen.files import named_in_utf8
from fpsgen.wan.linear import expanded
from fpsgen.weights import ggml
from fpsgen.weights.headers import form_of, headers, opened, unpacking, unpickling
from fpsgen.weights.kinds import Header

Value = Tensor | Quantized

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read(
    files: Sequence[Path], most: int | None = None, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Value]]:
    """Every (name, value) of the parameters in weight files, memory-mapped, one at a time. GGUF's blocks become float32
    values; 8-bit matrices stay what they are, with one scale for each row: [outputs, 1], or as many ones as the
    parameter has dimensions. most: of GGUF, which is not mapped, about so many first values, in a row. wanted: by name,
    whether a parameter is read. ModelError as `headers`."""
    table = {name: header for name, header in headers(files).items() if wanted(name)}
    scales = _scales(files, {header.scale for header in table.values() if header.scale})
    for file in files:
        for name, tensor in _tensors(file, most, table):
            yield name, _value(tensor, table[name], scales)


def _tensors(file: Path, most: int | None, names: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Of what lies in a file the tensors of these names, as they lie there but for GGUF's blocks."""
    form = form_of(file)
    if form == "pickle":
        headers([file])  # which refuses what is more than tensors, as torch then does once more
        with unpickling(file), named_in_utf8(file) as path:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        yield from ((name, tensor) for name, tensor in state.items() if name in names)
    elif form == "gguf":
        with unpacking(file):
            for name, stored, values in ggml.values(file, names, most):
                row = torch.from_numpy(values).view(_DTYPES.get(stored.kind, torch.float32))
                yield name, row.view(stored.shape) if most is None else row
    else:
        with opened(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                if name in names:
                    yield name, weights.get_tensor(name)


def _scales(files: Sequence[Path], names: set[str]) -> dict[str, Tensor]:
    """Tensors by name, which may lie in another file than what they scale."""
    return {name: tensor.float() for file in files if names for name, tensor in _tensors(file, None, names)}


def _value(tensor: Tensor, header: Header, scales: Mapping[str, Tensor]) -> Value:
    if tensor.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
        return tensor
    scale = scales[header.scale] if header.scale else torch.ones(())
    if not header.is_8_bits:
        return tensor.float() * scale.flatten()
    ones = [1] * (tensor.ndim - 1)
    return Quantized(tensor, scale.reshape(-1, *ones).expand(len(tensor), *ones).contiguous())


def copied(value: Quantized, device: torch.device) -> Quantized:
    """Off the memory map."""
    return Quantized(value.numbers.to(device, copy=True), value.scale.to(device, copy=True))


def plain(value: Value, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The values of a parameter, off the memory map."""
    if isinstance(value, Quantized):
        return expanded(copied(value, device), dtype)
    return value.to(device, dtype, copy=True)


def first(value: Value, count: int) -> Tensor:
    """A copy of the first values of a parameter, or of all if there are less."""
    if isinstance(value, Tensor):
        return value.flatten()[:count].clone()
    rows = -(-count // max(value.numbers[0].numel(), 1))
    return Quantized(value.numbers[:rows], value.scale[:rows]).dequantize().flatten()[:count]
