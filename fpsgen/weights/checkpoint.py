"""Weights from files into modules, after what is in them was compared with what is wanted.

Safetensors, and `.pth` as far as it is nothing but tensors: pickled code is never run. Everything is
memory-mapped, so a tensor is copied once, to where it will live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fpsgen.errors import ModelError
from fpsgen.files import named_in_utf8
from fpsgen.printable import printable
from fpsgen.weights.headers import Rename, faults, headers, is_pickled, opened, renamed, unpickling


def read(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of weight files, memory-mapped, one at a time."""
    for file in files:
        if is_pickled(file):
            yield from _unpickle(file).items()
            continue
        with opened(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                yield key, weights.get_tensor(key)


def _unpickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` file, whose headers were looked at. torch, too, refuses to run what a pickle may hold."""
    headers([file])
    with unpickling(file), named_in_utf8(file) as path:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def check_parameters(model: nn.Module, files: Sequence[Path], rename: Rename) -> None:
    """Compare files with a module, by headers alone; ModelError that counts and names all that does not fit."""
    found = renamed(headers(files), rename)
    wanted = {name: tuple(value.shape) for name, value in model.named_parameters()}  # tied ones once
    if told := faults(wanted, found):
        which = files[0] if len(files) == 1 else files[0].parent
        hint = "use the fp32, fp16 or bf16 files of a Wan2.1 text-to-video model"
        raise ModelError(f"{printable(which)} does not fit Wan2.1; parameters {told}", hint=hint)


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
        if name not in state:  # the text encoder's embedding may be there twice, see `renamed`
            state[name] = tensor.to(device, dtype(name), copy=True)  # off the memory map
    model.load_state_dict(state, assign=True, strict=False)  # the check was stricter, but for tied parameters
    model.eval().requires_grad_(False)
