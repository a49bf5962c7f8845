"""LoRA files: what one says before a weight is read, its sum with a transformer's weights, and how ours are written.

W' = W + scale * alpha / rank * B A, with A [rank, inputs] and B [outputs, rank] (arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fpsgen import __version__, files
from fpsgen.errors import ModelError, UsageError, option
from fpsgen.printable import printable, typed
from fpsgen.wan.config import WanConfig
from fpsgen.weights import headers, kinds
from fpsgen.weights.headers import some
from fpsgen.weights.kinds import FLOATS

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Dialect(NamedTuple):
    """How the tensors of a LoRA are named. module: what a module of ours is called; parts: what stands behind that for
    A, for B and for alpha, which is the rank where a file has none."""

    module: Callable[[str], str]
    parts: Mapping[str, str]


_OURS = Dialect("diffusion_model.{}".format, {".lora_A.weight": "A", ".lora_B.weight": "B", ".alpha": "alpha"})
DIALECTS = (_OURS,)
_NUMBERS = (*FLOATS, "F64", "I64", "I32", "I16", "I8", "U8")  # what an alpha may be


@dataclass(frozen=True)
class Lora:
    """A LoRA's file, and how strongly it acts. sha256: of the file."""

    file: Path
    scale: float
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        return {"file": printable(self.file, 4096), "scale": self.scale, "sha256": self.sha256}


def find(given: str) -> Lora:
    """The LoRA that `FILE` or `FILE:SCALE` means, where the file's name may hold colons itself.

    UsageError where there is no such file, where the scale is no number, or where the file is no LoRA.
    """
    name, scale = os.path.expanduser(given), 1.0
    before, colon, last = name.rpartition(":")
    if colon and not os.path.exists(name):
        try:
            name, scale = before, float(last)
        except ValueError:
            if os.path.exists(before):
                name, scale = before, math.nan
    if not os.path.exists(name):
        hint = "give a .safetensors file, and its scale behind a colon if that is not 1"
        raise UsageError(f"{option('lora', given)}: there is no file {typed(name)}", hint)
    if not math.isfinite(scale):
        hint = f"write a number behind the file: {option('lora', f'{name}:0.8')}"
        raise UsageError(f"{option('lora', given)}: the scale {typed(last)} is no number", hint)
    file = Path(name)
    if headers.is_pickled(file):
        raise ModelError(f"{printable(file)} is a pickled file", hint="use the .safetensors file of the same LoRA")
    kinds.refuse_other_kinds(headers.contents(file), "LoRA")
    with headers.reading(file), files.open_regular(file) as content:
        return Lora(file, scale, hashlib.file_digest(content, "sha256").hexdigest())


def targets(config: WanConfig) -> dict[str, tuple[int, int]]:
    """The linear layers that a LoRA changes, by the names of their modules, in order: outputs and inputs of each."""
    dim, ffn = config.dim, config.ffn_dim
    block = {f"{attention}.{part}": (dim, dim) for attention in ("self_attn", "cross_attn") for part in "qkvo"}
    block |= {"ffn.0": (ffn, dim), "ffn.2": (dim, ffn)}
    return {f"blocks.{n}.{name}": shape for n in range(config.num_layers) for name, shape in block.items()}


def changes(lora: Lora, config: WanConfig) -> dict[str, dict[str, str]]:
    """What the file calls A, B and perhaps alpha of each module that it changes, by its header alone. ModelError that
    counts and names all that does not fit a transformer of this configuration."""
    shapes, tensors = targets(config), headers.contents(lora.file).tensors
    names = {
        dialect.module(module) + ending: (module, part)
        for dialect in DIALECTS
        for module in shapes
        for ending, part in dialect.parts.items()
    }
    found: dict[str, dict[str, str]] = {}
    misfits: dict[str, list[str]] = {"unknown": [key for key in tensors if key not in names]}
    for key in (key for key in tensors if key in names):
        module, part = names[key]
        found.setdefault(module, {})[part] = key
        if tensors[key].dtype not in (_NUMBERS if part == "alpha" else FLOATS):
            misfits.setdefault(f"neither {', '.join(FLOATS[:-1])} nor {FLOATS[-1]}", []).append(key)
    for module, parts in found.items():
        if absent := {"A", "B"} - parts.keys():
            misfits.setdefault("missing", []).append(f"{' and '.join(sorted(absent))} of {module}")
            continue
        outputs, inputs = shapes[module]
        a, b = (tensors[parts[part]].shape for part in "AB")
        alpha = tensors[parts["alpha"]].shape if "alpha" in parts else ()
        rank = a[0] if a else 0
        if (a, b) != ((rank, inputs), (outputs, rank)) or math.prod(alpha) != 1:
            told = f"{module} {list(b)} x {list(a)}, not {[outputs, 'rank']} x {['rank', inputs]}".replace("'", "")
            misfits.setdefault("of another shape", []).append(told)
        elif not rank:
            misfits.setdefault("of rank 0", []).append(parts["A"])
    if message := "; ".join(f"{len(keys)} {misfit}: {some(keys)}" for misfit, keys in misfits.items() if keys):
        transformer = f"this transformer of {config.num_layers} layers of width {config.dim}"
        hint = "use a LoRA that was made for this model"
        raise ModelError(f"{printable(lora.file)} does not fit {transformer}; tensors {message}", hint)
    return found


def merging(loras: Sequence[Lora], config: WanConfig, device: torch.device) -> Callable[[str, Tensor], Tensor]:
    """A function from a parameter's name and value to its value with the LoRAs, in float32 and on `device`; a parameter
    that none changes comes back as it is. The same bits in whatever order they are given: their files' contents order
    them. ModelError as `changes`."""
    ordered = sorted(loras, key=lambda lora: (lora.sha256, lora.scale))
    merged = [(lora, changes(lora, config)) for lora in ordered]

    def merge(name: str, value: Tensor) -> Tensor:
        for lora, modules in merged:
            if parts := modules.get(name.removesuffix(".weight")):
                with headers.opened(lora.file, "pt") as file:
                    a, b = (file.get_tensor(parts[part]).to(device).float() for part in "AB")
                    alpha = float(file.get_tensor(parts["alpha"])) if "alpha" in parts else len(a)
                value = value.to(device).float() + lora.scale * alpha / len(a) * (b @ a)
        return value

    return merge


def write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write A and B of adapters, by their parameters' names (`blocks.0.self_attn.q.lora_A.weight`), as one file that
    appears when complete; alpha is the rank. UsageError where it cannot be written."""
    import torch
    from safetensors.torch import save

    kept = {_OURS.module(name): tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    ranks = {name: len(tensor) for name, tensor in kept.items() if name.endswith(".lora_A.weight")}
    kept |= {name.replace(".lora_A.weight", ".alpha"): torch.tensor(float(rank)) for name, rank in ranks.items()}
    told = {"format": "pt", "fpsgen": __version__, "rank": str(max(ranks.values())), **metadata}
    with files.refused(path, "make room there, or choose another place"), files.beside(path) as whole:
        whole.write_bytes(save(kept, told))
        whole.replace(path)
