"""LoRA files: what one says before a weight is read, its sum with a transformer's weights, and how ours are written.

W' = W + scale * (alpha / rank * B A + D), with A [rank, inputs] and B [outputs, rank] (arXiv 2106.09685, section 4.1)
and differences D as some files have them, of biases, norms and modulation, too.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fpsgen import __version__, files
from fpsgen.errors import ModelError, UsageError, option
from fpsgen.printable import printable, typed
from fpsgen.wan.config import WanConfig
from fpsgen.weights import headers, kinds, lora_changes, lora_names
from fpsgen.weights.kinds import Contents
from fpsgen.weights.lora_changes import Change, Expert, Shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Where people write which of Wan2.2's experts a LoRA is for. A word alone says it only where no other word follows that
# it could belong to, as in high-res or low_poly.
_NOISE = r"(?i)(high|low|hi|lo)[-_. ]?noise"
_WORD = r"(?i)(?<![a-z])(high|low)(?=$|[-_. ]+(\d|[a-z]{1,2}\d|epoch|lora|model|lightning|lightx2v|t2v|i2v))"
_NO_NAME = r"(high|low)_noise_model|adapter_model|pytorch_lora_weights|(diffusion_pytorch_)?model|lora|transformer"


@dataclass(frozen=True)
class Lora:
    """A LoRA's file, and how strongly it acts. sha256: of the file. expert: the one of two that it is merged with;
    empty for both, or where a model has one transformer."""

    file: Path
    scale: float
    sha256: str
    expert: Expert = ""

    @property
    def told(self) -> str:
        """As it is given, but for its folder."""
        expert = f"{self.expert}=" if self.expert else ""
        return f"{expert}{printable(self.file.name, 60)}" + ("" if self.scale == 1 else f":{self.scale:g}")

    def as_dict(self) -> dict[str, Any]:
        told = {"file": printable(self.file, 4096), "scale": self.scale, "sha256": self.sha256}
        return told | {"expert": self.expert or None}

    @cached_property
    def contents(self) -> Contents:
        return headers.contents(self.file)

    def changes(self, shapes: Shapes, expert: Expert = "") -> dict[str, Change]:
        """What it adds to each parameter of a transformer; `lora_changes.changes` explains."""
        return lora_changes.changes(self.contents, shapes, self.expert, expert)

    @property
    def called(self) -> str:
        """The name of its file, or of that one's folder where the file's own says nothing, and its title. The rest of
        the metadata is about training: captions, and the model that it began with."""
        titles = (self.contents.metadata.get(key, "") for key in ("modelspec.title", "ss_output_name", "title", "name"))
        folder = self.file.absolute().parent.name if re.fullmatch(_NO_NAME, self.file.stem) else ""
        return " ".join((folder, self.file.name, *titles))[:10_000]

    def meant_for(self) -> Expert:
        """Which of two experts the file's name or metadata say that it is for; empty where they say none, or both."""
        said = {"high" if word.lower().startswith("hi") else "low" for word in re.findall(_NOISE, self.contents.label)}
        said = said or {word[0].lower() for word in re.findall(_WORD, self.file.stem)}
        return cast("Expert", said.pop()) if len(said) == 1 else ""


def find(given: str) -> Lora:
    """The LoRA that `FILE` or `FILE:SCALE` means, where the file's name may hold colons itself, perhaps with `high=` or
    `low=` before it, the expert that it is for.

    UsageError where there is no such file, where the scale is no number, or where the file is no LoRA of Wan's.
    """
    expert, equals, rest = given.partition("=")
    if not equals or expert not in ("high", "low") or os.path.exists(given):
        expert, rest = "", given
    name, scale = os.path.expanduser(rest), 1.0
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
        before = f"{expert}=" if expert else ""
        hint = f"write a number behind the file: {option('lora', f'{before}{name}:0.8')}"
        raise UsageError(f"{option('lora', given)}: the scale {typed(last)} is no number", hint)
    file = Path(name)
    if headers.is_pickled(file):
        raise ModelError(f"{printable(file)} is a pickled file", hint="use the .safetensors file of the same LoRA")
    kinds.refuse_other_kinds(contents := headers.contents(file), "LoRA")
    lora_names.read(contents)  # which refuses what is a LoRA of another kind
    with headers.reading(file):
        return Lora(file, scale, files.sha256(file), cast("Expert", expert))


def targets(config: WanConfig) -> dict[str, tuple[int, int]]:
    """The linear layers that a LoRA of `fpsgen train` changes, by their modules' names: outputs and inputs of each."""
    dim, ffn = config.dim, config.ffn_dim
    block = {f"{attention}.{part}": (dim, dim) for attention in ("self_attn", "cross_attn") for part in "qkvo"}
    block |= {"ffn.0": (ffn, dim), "ffn.2": (dim, ffn)}
    return {f"blocks.{n}.{name}": shape for n in range(config.num_layers) for name, shape in block.items()}


def merging(
    loras: Sequence[Lora], shapes: Shapes, device: torch.device, expert: Expert = ""
) -> Callable[[str, Tensor], Tensor]:
    """A function from a parameter's name and value to its value with the LoRAs, in float32 and on `device`; a parameter
    that none changes comes back as it is. The same bits in whatever order they are given: their files' contents order
    them. shapes, expert: as `changes` has them; ModelError as well."""
    ordered = sorted(loras, key=lambda lora: (lora.sha256, lora.scale))
    merged = [(lora, lora.changes(shapes, expert)) for lora in ordered]

    def merge(name: str, value: Tensor) -> Tensor:
        for lora, changed in merged:
            if change := changed.get(name):
                value = _changed(value.to(device).float(), lora, change)
        return value

    return merge


def _changed(value: Tensor, lora: Lora, change: Change) -> Tensor:
    """A parameter in float32 with what one LoRA adds to it."""
    with headers.opened(lora.file, "pt") as file:

        def tensor(name: str) -> Tensor:
            return file.get_tensor(name).to(value.device).float()

        if change.up:
            alpha = float(file.get_tensor(change.alpha)) if change.alpha else change.usual
            product = tensor(change.up)
            if change.down:  # of convolutions, all but the outputs is one axis
                product = product.flatten(1) @ tensor(change.down).flatten(1)
            value = value + lora.scale * alpha / change.rank * product.view_as(value)
        if change.diff:
            value = value + lora.scale * tensor(change.diff)
    return value


def write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write A and B of adapters, by their parameters' names (`blocks.0.self_attn.q.lora_A.weight`), as one file that
    appears when complete; alpha is the rank. UsageError where it cannot be written."""
    import torch
    from safetensors.torch import save

    kept = {f"diffusion_model.{name}": tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    ranks = {name: len(tensor) for name, tensor in kept.items() if name.endswith(".lora_A.weight")}
    kept |= {name.replace(".lora_A.weight", ".alpha"): torch.tensor(float(rank)) for name, rank in ranks.items()}
    told = {"format": "pt", "fpsgen": __version__, "rank": str(max(ranks.values())), **metadata}
    with files.refused(path, "make room there, or choose another place"), files.beside(path) as whole:
        whole.write_bytes(save(kept, told))
        whole.replace(path)
