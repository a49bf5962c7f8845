"""Small checkpoints in formats of fewer than 16 bits, written by hand from a state dict of original names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]

FP8, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
LARGEST = {FP8: 448.0, E5M2: 57344.0, INT8: 127.0}


def is_matrix(name: str, value: Tensor) -> bool:
    """Whether tools round a tensor: the matrices of blocks."""
    return "block" in name and value.ndim == 2 and not name.endswith(("modulation", "embedding.weight", "bias.weight"))


def rounded(x: Tensor, dtype: torch.dtype, by_row: bool) -> tuple[Tensor, Tensor]:
    """Numbers, and a scale for each row [n, 1] or for all []."""
    x = x.float()
    scale = (x.abs().amax(1, keepdim=True) if by_row else x.abs().amax()) / LARGEST[dtype]
    return (x / scale).round().to(dtype) if dtype == INT8 else (x / scale).to(dtype), scale


def split(state: State, dtype: torch.dtype, by_row: bool, scale: str, flat: bool = False) -> State:
    """Each matrix in 8 bits, with its scale under the name `X.SCALE`."""
    found: State = {}
    for name, value in state.items():
        if not is_matrix(name, value):
            found[name] = value
            continue
        found[name], own = rounded(value, dtype, by_row)
        found[f"{name.removesuffix('weight')}{scale}"] = own.flatten() if flat else own
    return found


def note(**told: object) -> Tensor:
    return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)


def comfy(state: State, dtype: torch.dtype, by_row: bool, form: str) -> State:
    found = split(state, dtype, by_row, "weight_scale")
    layers = [name.removesuffix("weight_scale") for name in found if name.endswith("weight_scale")]
    return found | {f"{layer}comfy_quant": note(format=form) for layer in layers}


def comfy_old(state: State) -> State:
    found = split(state, FP8, False, "scale_weight")
    inputs = {name.replace("scale_weight", "scale_input"): torch.ones(()) for name in found if "scale_weight" in name}
    return found | inputs | {"scaled_fp8": torch.zeros(0, dtype=FP8)}


def bare(state: State, dtype: torch.dtype) -> State:
    """All in FP8 but what has one dimension, as by a conversion of each tensor."""
    return {name: value.to(dtype) if value.ndim > 1 else value for name, value in state.items()}


def prefixed(state: State) -> State:
    return {f"model.diffusion_model.{name}": value for name, value in state.items()}


DIALECTS: dict[str, Callable[[State], State]] = {
    "lightx2v": lambda state: split(state, FP8, True, "weight_scale"),
    "lightx2v, flat": lambda state: split(state, FP8, True, "weight_scale", flat=True),
    "lightx2v, float64": lambda state: {
        name: value.double() if name.endswith("weight_scale") else value
        for name, value in split(state, FP8, True, "weight_scale").items()
    },
    "lightx2v int8": lambda state: split(state, INT8, True, "weight_scale"),
    "comfy, old": comfy_old,
    "comfy, old, prefix": lambda state: prefixed(comfy_old(state)),
    "comfy": lambda state: comfy(state, FP8, False, "float8_e4m3fn"),
    "comfy, e5m2": lambda state: comfy(state, E5M2, False, "float8_e5m2"),
    "comfy int8": lambda state: comfy(state, INT8, True, "int8_tensorwise"),
    "fp8": lambda state: bare(state, FP8),
    "e5m2": lambda state: bare(state, E5M2),
}


def values(written: State) -> State:
    """What a file's parameters are worth, by each dialect's definition, in float32; names without prefix."""
    state = {name.removeprefix("model.diffusion_model."): value for name, value in written.items()}
    found = {}
    for name, value in state.items():
        layer = name.removesuffix("weight")
        scale = state.get(f"{layer}weight_scale", state.get(f"{layer}scale_weight", torch.ones(()))).float()
        if name.endswith(("scale", "scale_weight", "scale_input", "comfy_quant", "scaled_fp8", "spiece_model")):
            continue
        found[name] = value.float() * scale.reshape(-1, *[1] * (value.ndim - 1)) if value.ndim else value.float()
    return found


def write(file: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, file, metadata)
    return file


def blocks(rows: int, kind: str, seed: int) -> np.ndarray:
    """Random blocks of a ggml type, [rows, bytes], with scales of usual size."""
    number = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[number][1]
    found = np.random.default_rng(seed).integers(0, 256, (rows, size), dtype=np.uint8)
    halves = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind, (0,))
    for place in halves:
        found[:, place : place + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
    return found


def write_gguf(file: Path, state: State, kind: str, arch: str = "wan") -> dict[str, Tensor]:
    """A GGUF file with its matrices in `kind`, other tensors in F16 and vectors in F32; rows that are too short for
    blocks are joined, as ComfyUI-GGUF does. Returns what the parameters are worth by the gguf package's arithmetic."""
    writer = gguf.GGUFWriter(file, arch)
    number = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[number][0]
    worth: dict[str, Tensor] = {}
    for seed, (name, value) in enumerate(state.items()):
        x = value.float().numpy()
        own = number if is_matrix(name, value) else gguf.GGMLQuantizationType["F16" if value.ndim > 1 else "F32"]
        if own == number and x.shape[-1] % block:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(length) for length in x.shape])
            x = x.reshape(-1, block)
        try:
            data = gguf.quants.quantize(x, own)
        except NotImplementedError:  # the package reads K-quants, but does not make them
            data = blocks(x.size // block, kind, seed).reshape(len(x), -1)
        writer.add_tensor(name, data, raw_dtype=own)
        worth[name] = torch.from_numpy(gguf.quants.dequantize(data, own).copy()).reshape(value.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return worth
