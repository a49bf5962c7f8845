"""8-bit weights with scales: which tensors of a file belong to which others, so that everything else meets one
parameter under each name. Imports no torch.

LightX2V's files have `X.weight_scale` beside `X.weight`. ComfyUI's older ones have `X.scale_weight`, and a tensor
`scaled_fp8` that marks the file; its newer ones have `X.weight_scale` and a JSON about the layer, in a tensor
`X.comfy_quant` or, for all layers, in the file's metadata. Sources: LightX2V `tools/convert/converter.py`, ComfyUI
`QUANTIZATION.md`, `comfy/quant_ops.py`, `comfy/ops.py` and `comfy/utils.py` (`convert_old_quants`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from fpsgen.printable import printable
from fpsgen.weights.kinds import EIGHT_BITS, FLOATS, Header, some

FORMAT = ".comfy_quant"
METADATA = "_quantization_metadata"  # the key of ComfyUI's JSON about all layers
_SCALE = re.compile(r"(.+)\.(?:weight_scale|scale_weight)")
_MARK = re.compile(r"(.+\.)?scaled_fp8")
# Not weights: the mark, ComfyUI's tokenizer, what is told of a layer, and scales of products' inputs, which are
# measured here for every token.
_PASSED_OVER = re.compile(r"(.+\.)?(scaled_fp8|spiece_model|comfy_quant|scale_input|input_scale)")
_FOURS = re.compile(r".+\.(weight_scale_2|weight_global_scale)")
# One scale for a matrix, or one for each of its rows, which the shapes of the scales tell.
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "float8_e4m3fn_rowwise", "int8_axiswise")


def is_passed_over(name: str) -> bool:
    """Whether a tensor is no parameter, and no scale of one."""
    return bool(_PASSED_OVER.fullmatch(name))


def formats(notes: Mapping[str, bytes], metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """What ComfyUI's files say of layers, by their names. notes: the bytes of each `comfy_quant` tensor."""
    found: dict[str, Any] = {name.removesuffix(FORMAT): _parsed(value) for name, value in notes.items()}
    layers = _parsed(metadata.get(METADATA, "{}").encode(errors="replace")).get("layers")
    if isinstance(layers, dict):
        found |= {name: {"format": layer} if isinstance(layer, str) else layer for name, layer in layers.items()}
    return {name: layer for name, layer in found.items() if isinstance(layer, dict)}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.rstrip(b"\0"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def fold(tensors: Mapping[str, Header], told: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Header], str]:
    """Tensors without those that only say how to read others; a weight that has a scale names it. And what is wrong
    with scales: the rest of a sentence that begins with the file's name, "" if all is well. told: from `formats`."""
    found = {name: header for name, header in tensors.items() if not is_passed_over(name)}
    if fault := _unread(found, told):
        return found, fault
    lost, misshapen, twice = [], [], []
    for name in [name for name in found if _SCALE.fullmatch(name)]:
        scale, weight = found.pop(name), name.rpartition(".")[0] + ".weight"
        if weight not in found or found[weight].dtype not in EIGHT_BITS:
            lost.append(name)
        elif found[weight].scale:
            twice.append(f"{name} and {found[weight].scale}")
        elif not _fits(scale, found[weight]):
            misshapen.append(f"{name} {list(scale.shape)} for {list(found[weight].shape)}")
        else:
            found[weight] = replace(found[weight], scale=name)
    if lost:
        return found, f"has scales of no 8-bit weight, {len(lost)} in all: {some(lost)}"
    if twice:
        return found, f"has two scales of a weight, {len(twice)} in all: {some(twice)}"
    if misshapen:
        return (
            found,
            f"has scales that are neither one number nor one for each row, {len(misshapen)} in all: {some(misshapen)}",
        )
    scaled = any(header.scale for header in found.values()) or any(map(_MARK.fullmatch, tensors))
    bare = [
        name
        for name, header in found.items()
        if not header.scale and len(header.shape) > 1 and (header.dtype == "I8" or (scaled and header.is_8_bits))
    ]
    return found, f"lacks the scales of 8-bit weights, {len(bare)} in all: {some(bare)}" if bare else ""


def _fits(scale: Header, weight: Header) -> bool:
    return prod(scale.shape) == 1 or (bool(weight.shape) and scale.shape in (weight.shape[:1], (weight.shape[0], 1)))


def _unread(tensors: Mapping[str, Header], told: Mapping[str, Mapping[str, Any]]) -> str:
    """Why weights are in a format that is not read; "" if none is."""
    for layer in told.values():
        name = layer.get("format")
        if name is not None and name not in _FORMATS:
            return f"holds weights in {printable(name, 40)}, which fpsgen does not read"
        more = layer.get("params")
        if layer.get("convrot") or (isinstance(more, dict) and more.get("convrot")):
            return "holds INT8 weights that were rotated (ConvRot), which fpsgen does not read"
    if any(map(_FOURS.fullmatch, tensors)):
        return "holds weights in 4 bits (NVFP4), which fpsgen does not read"
    if any(_SCALE.fullmatch(name) and header.dtype not in (*FLOATS, "F64") for name, header in tensors.items()):
        return "holds weights with one scale for every few numbers (NVFP4, MXFP8), which fpsgen does not read"
    return ""
