"""Reading Wan2.1 weights from disk: key names, streaming load, and the report of what does not fit.

Our modules carry the original's parameter names. A Diffusers folder names them otherwise; `KEY_MAP` holds
the pairs as anchored patterns, so no name can be caught by a part of another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fpsgen.errors import ModelError
from fpsgen.wan.config import WanConfig
from fpsgen.wan.transformer import FLOAT32_PARAMETERS, WanTransformer

WEIGHTS = "diffusion_pytorch_model"  # stem of the weight files of transformer and VAE

# Diffusers pattern -> original name (diffusers `scripts/convert_wan_to_diffusers.py`).
KEY_MAP = tuple(
    (re.compile(pattern + r"\Z"), name)
    for pattern, name in (
        (r"condition_embedder\.text_embedder\.linear_1\.(weight|bias)", r"text_embedding.0.\1"),
        (r"condition_embedder\.text_embedder\.linear_2\.(weight|bias)", r"text_embedding.2.\1"),
        (r"condition_embedder\.time_embedder\.linear_1\.(weight|bias)", r"time_embedding.0.\1"),
        (r"condition_embedder\.time_embedder\.linear_2\.(weight|bias)", r"time_embedding.2.\1"),
        (r"condition_embedder\.time_proj\.(weight|bias)", r"time_projection.1.\1"),
        (r"patch_embedding\.(weight|bias)", r"patch_embedding.\1"),
        (r"proj_out\.(weight|bias)", r"head.head.\1"),
        (r"scale_shift_table", r"head.modulation"),
        (r"blocks\.(\d+)\.scale_shift_table", r"blocks.\1.modulation"),
        (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"blocks.\1.norm3.\2"),
        (r"blocks\.(\d+)\.attn1\.to_([qkv])\.(weight|bias)", r"blocks.\1.self_attn.\2.\3"),
        (r"blocks\.(\d+)\.attn2\.to_([qkv])\.(weight|bias)", r"blocks.\1.cross_attn.\2.\3"),
        (r"blocks\.(\d+)\.attn1\.to_out\.0\.(weight|bias)", r"blocks.\1.self_attn.o.\2"),
        (r"blocks\.(\d+)\.attn2\.to_out\.0\.(weight|bias)", r"blocks.\1.cross_attn.o.\2"),
        (r"blocks\.(\d+)\.attn1\.norm_([qk])\.weight", r"blocks.\1.self_attn.norm_\2.weight"),
        (r"blocks\.(\d+)\.attn2\.norm_([qk])\.weight", r"blocks.\1.cross_attn.norm_\2.weight"),
        (r"blocks\.(\d+)\.ffn\.net\.0\.proj\.(weight|bias)", r"blocks.\1.ffn.0.\2"),
        (r"blocks\.(\d+)\.ffn\.net\.2\.(weight|bias)", r"blocks.\1.ffn.2.\2"),
    )
)


def from_diffusers(key: str) -> str:
    """The original's name of a Diffusers parameter; a name that is not in the map comes back as it is."""
    for pattern, name in KEY_MAP:
        if match := pattern.match(key):
            return match.expand(name)
    return key


def read_json(path: Path) -> dict:
    """The JSON object in a file; ModelError that says what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} holds no {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as damage:
        raise ModelError(f"{path} is not valid JSON: {damage}", hint="fetch the file again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object", hint="fetch the file again")
    return value


def shards(folder: Path, stem: str = WEIGHTS) -> list[Path]:
    """The weight files of a component folder, by its index where there is one. Their number is never assumed."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict):
            raise ModelError(f"{index} holds no weight_map", hint="fetch the file again")
        names = sorted(set(table.values()))
    elif (folder / f"{stem}.safetensors").exists():
        names = [f"{stem}.safetensors"]
    else:
        names = sorted(path.name for path in folder.glob(f"{stem}*.safetensors"))
    if not names:
        raise ModelError(f"{folder} holds no {stem}.safetensors")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise ModelError(f"{folder} lacks {len(missing)} of {len(names)} weight files: {_some(missing)}")
    return [folder / name for name in names]


def read(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of weight files, memory-mapped, one at a time."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                    yield key, weights.get_tensor(key)
        except SafetensorError as damage:
            raise ModelError(f"{file} is damaged: {damage}", hint="fetch the file again") from None


def fill(model: nn.Module, tensors: Iterable[tuple[str, Tensor]], device: torch.device, folder: Path) -> None:
    """Give a module built on the meta device the tensors it shall keep, on `device`.

    Raises ModelError that counts and names whatever is missing, unexpected or of another shape in `folder`.
    """
    wanted = {name: parameter.shape for name, parameter in model.state_dict().items()}
    state: dict[str, Tensor] = {}
    unexpected: list[str] = []
    misshaped: dict[str, str] = {}
    for name, tensor in tensors:
        if name not in wanted:
            unexpected.append(name)
        elif tensor.shape != wanted[name]:
            misshaped[name] = f"{name} {list(tensor.shape)}, not {list(wanted[name])}"
        else:
            state[name] = tensor.to(device, copy=True)  # off the memory map
    missing = [name for name in wanted if name not in state and name not in misshaped]
    faults = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", [*misshaped.values()]),
        )
        if names
    ]
    if faults:
        raise ModelError(f"{folder} does not fit Wan2.1; parameters " + "; ".join(faults))
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)


def load_transformer(folder: Path, device: torch.device, dtype: torch.dtype) -> WanTransformer:
    """The transformer of a Diffusers component folder, each parameter cast as it is read; see `fill`."""
    config = WanConfig.from_diffusers(read_json(folder / "config.json"))
    with torch.device("meta"):
        model = WanTransformer(config)
    renamed = ((from_diffusers(key), tensor) for key, tensor in read(shards(folder)))
    cast = ((name, tensor.to(torch.float32 if stays_float32(name) else dtype)) for name, tensor in renamed)
    fill(model, cast, device, folder)
    return model


def stays_float32(name: str) -> bool:
    """Whether a parameter keeps float32 whatever dtype is asked for."""
    return not FLOAT32_PARAMETERS.isdisjoint(name.split("."))


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
