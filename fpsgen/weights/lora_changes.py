"""What a LoRA file adds to each parameter of a transformer, by its header alone, or why it does not fit."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from fpsgen.errors import ModelError
from fpsgen.printable import printable
from fpsgen.wan.config import WAN_1_3B, WAN_5B, WAN_14B
from fpsgen.weights import headers, lora_names
from fpsgen.weights.headers import some
from fpsgen.weights.kinds import FLOATS, Contents
from fpsgen.weights.lora_names import LoraTensor, Part

Expert = Literal["", "high", "low"]
Shapes = Mapping[str, Sequence[int]]  # of a transformer's parameters, by name

_NUMBERS = (*FLOATS, "F64", "I64", "I32", "I16", "I8", "U8")  # what an alpha may be
_NOT_FLOATS = f"neither {', '.join(FLOATS[:-1])} nor {FLOATS[-1]}"
_NAMES = {WAN_1_3B.dim: "1.3b", WAN_5B.dim: "5b", WAN_14B.dim: "14b"}  # of models, by width
_HINT = "use a LoRA that was made for this model"
_LARGEST_ALPHA = 1e9  # ranks are below 1e4


class Change(NamedTuple):
    """What one file adds to one parameter: alpha / rank times `up` times `down`, or times `up` alone, and `diff`. All
    are names of tensors, empty where there is none; usual: alpha where `alpha` is empty."""

    up: str = ""
    down: str = ""
    alpha: str = ""
    usual: float = 1.0
    rank: int = 1
    diff: str = ""


def changes(contents: Contents, shapes: Shapes, given: Expert = "", expert: Expert = "") -> dict[str, Change]:
    """By the parameter's name. given: the expert that the file was given to, empty for both; expert: the transformer
    whose `shapes` these are, empty where a model has one. ModelError that counts and names all that does not fit."""
    if given and expert and given != expert:
        return {}
    found, unknown = lora_names.read(contents)
    if any(own.second for own in found.values()):
        if not expert:
            told = f"{printable(contents.file)} holds a second set of tensors, for a low-noise expert"
            raise ModelError(f"{told}, and this model has one transformer", hint=_HINT)
        found = {key: own for key, own in found.items() if own.second is (expert == "low")}
        if given and not found:
            told = f"{printable(contents.file)} holds nothing for the {expert}-noise expert"
            raise ModelError(told, hint="give it to the other expert, or to none in particular")
    _refuse_other_sizes(contents, found, shapes)
    fitting = _Fitting(contents, shapes, _usual_alpha(contents, expert == "low"))
    fitting.misfits["unknown"] = unknown
    modules: dict[str, dict[Part, str]] = {}
    for key, own in found.items():
        modules.setdefault(own.module, {})[own.part] = key
    for module, parts in modules.items():
        fitting.module(module, parts)
    if message := "; ".join(f"{len(keys)} {misfit}: {some(keys)}" for misfit, keys in fitting.misfits.items() if keys):
        transformer = f"this transformer of {_depth(shapes)} layers of width {_width(shapes)}"
        raise ModelError(f"{printable(contents.file)} does not fit {transformer}; tensors {message}", _HINT)
    return fitting.changes


class _Fitting:
    """Modules of a file, compared with a transformer's parameters one by one."""

    def __init__(self, contents: Contents, shapes: Shapes, alpha: float | None):
        self.tensors, self.shapes, self.alpha = contents.tensors, shapes, alpha
        self.changes: dict[str, Change] = {}
        self.misfits: dict[str, list[str]] = {}

    def module(self, module: str, parts: Mapping[Part, str]) -> None:
        weight = next((name for name in (f"{module}.weight", module) if name in self.shapes), "")
        bias = f"{module}.bias" if f"{module}.bias" in self.shapes else ""
        for part, key in parts.items():
            if not (bias if part in ("bias of B", "diff_b") else weight):
                self._misfit("unknown", key)
            elif self.tensors[key].dtype not in (_NUMBERS if part == "alpha" else FLOATS):
                self._misfit(_NOT_FLOATS, f"{key} {self.tensors[key].dtype}")
        if parts.keys() & {"A", "B", "alpha", "bias of B"}:
            if absent := {"A", "B"} - parts.keys():
                self._misfit("missing", f"{' and '.join(sorted(absent))} of {module}")
            elif weight:
                self._pair(module, weight, bias, parts)
        for part, name in (("diff", weight), ("diff_b", bias)):
            if name and part in parts:
                self._diff(name, parts[part])

    def _pair(self, module: str, weight: str, bias: str, parts: Mapping[Part, str]) -> None:
        outputs, *inputs = self.shapes[weight]
        a, b = (self.tensors[parts[part]].shape for part in ("A", "B"))
        alpha = self.tensors[parts["alpha"]].shape if "alpha" in parts else ()
        rank = a[0] if a else 0
        ones = [1] * (len(inputs) - 1)  # of a convolution
        if (a, b) != ((rank, *inputs), (outputs, rank, *ones)) or not inputs or math.prod(alpha) != 1:
            told = f"{module} {list(b)} x {list(a)}, not {[outputs, 'rank', *ones]} x {['rank', *inputs]}"
            self._misfit("of another shape", told.replace("'", ""))
        elif not rank:
            self._misfit("of rank 0", parts["A"])
        else:
            usual = float(rank) if self.alpha is None else self.alpha
            change = Change(parts["B"], parts["A"], parts.get("alpha", ""), usual, rank)
            self.changes[weight] = change
            if bias and "bias of B" in parts:
                self._fits(parts["bias of B"], bias)
                self.changes[bias] = change._replace(up=parts["bias of B"], down="")

    def _diff(self, name: str, key: str) -> None:
        self._fits(key, name)
        self.changes[name] = self.changes.get(name, Change())._replace(diff=key)

    def _fits(self, key: str, name: str) -> None:
        have, wanted = self.tensors[key].shape, tuple(self.shapes[name])
        if have != wanted:
            self._misfit("of another shape", f"{key} {list(have)}, not {list(wanted)}")

    def _misfit(self, kind: str, told: str) -> None:
        self.misfits.setdefault(kind, []).append(told)


def _refuse_other_sizes(contents: Contents, found: Mapping[str, LoraTensor], shapes: Shapes) -> None:
    """ModelError where the file is for a transformer of another width, of more layers, or with an image's part."""
    into = r"blocks\.\d+\.(self_attn\.[qkvo]|cross_attn\.[qo]|ffn\.0)$"  # layers that take the residual stream
    widths = Counter(
        contents.tensors[key].shape[1]
        for key, own in found.items()
        if own.part == "A" and len(contents.tensors[key].shape) == 2 and re.match(into, own.module)
    )
    file, width = printable(contents.file), _width(shapes)
    if widths and (most := widths.most_common(1)[0][0]) != width:
        raise ModelError(f"{file} is for a model of {_named(most)}; this one has {_named(width)}", hint=_HINT)
    layers, depth = _depth([own.module for own in found.values()]), _depth(shapes)
    if layers > depth:
        more = [key for key, own in found.items() if _depth([own.module]) > depth]
        told = f"{file} is for a model of {layers} layers or more; this one has {depth}"
        raise ModelError(f"{told} (tensors without a place: {len(more)}, {some(more)})", hint=_HINT)
    here = {name.removesuffix(".weight").removesuffix(".bias") for name in shapes}
    if more := [key for key, own in found.items() if own.module not in here and lora_names.is_of_image(own.module)]:
        told = f"{file} is for a model that sees an image through CLIP, as Wan2.1's image-to-video model does"
        raise ModelError(f"{told}; this one does not (tensors without a place: {len(more)}, {some(more)})", hint=_HINT)


def _named(width: int) -> str:
    return f"width {width}" + (f" ({_NAMES[width]})" if width in _NAMES else "")


def _width(shapes: Shapes) -> int:
    return shapes["patch_embedding.bias"][0]


def _depth(names: Mapping[str, Any] | Sequence[str]) -> int:
    """How many blocks the names of parameters or modules speak of."""
    return 1 + max((int(match[1]) for name in names if (match := re.match(r"blocks\.(\d{1,6})\.", name))), default=-1)


def _usual_alpha(contents: Contents, low: bool) -> float | None:
    """The alpha of modules that have no tensor for it, where PEFT or diffusers wrote one elsewhere: in the metadata, or
    in PEFT's adapter_config.json beside its file. None is each module's rank. low: whether that of the second of two
    transformers, if there are two. ModelError for what is no plain LoRA."""
    told: Any = {}
    beside = contents.file.with_name("adapter_config.json")
    if "lora_adapter_metadata" in contents.metadata:
        try:
            told = json.loads(contents.metadata["lora_adapter_metadata"])
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            raise ModelError(f"the metadata of {printable(contents.file)} are damaged", hint="fetch the file again")
        prefix = "transformer_2." if low and any(key.startswith("transformer_2.") for key in told) else "transformer."
        told = {key.removeprefix(prefix): own for key, own in told.items()}
    elif contents.file.name == "adapter_model.safetensors" and beside.is_file():
        told = headers.read_json(beside)
    if odd := [key for key in ("use_dora", "use_rslora", "alpha_pattern") if told.get(key)]:
        says = f"{printable(contents.file)} was trained with {' and '.join(odd)}, and fpsgen merges plain LoRAs only"
        raise ModelError(says, hint="use a LoRA that was trained without")
    alpha = told.get("lora_alpha")
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        says = f"{printable(contents.file)} says lora_alpha = {printable(repr(alpha), 60)}, which cannot be"
        raise ModelError(says, hint="fetch the file again")
    return float(alpha)
