"""LoRA files as trainers write them, by names and shapes that are spelled out here."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fpsgen.wan.config import WanConfig

MODULES = [f"{kind}.{part}" for kind in ("self_attn", "cross_attn") for part in "qkvo"] + ["ffn.0", "ffn.2"]


def adapters(config: WanConfig, rank: int = 2, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Random A [rank, inputs] and B [outputs, rank] of every module, large enough to be seen in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for n in range(config.num_layers):
        for module in MODULES:
            outputs = config.ffn_dim if module == "ffn.0" else config.dim
            inputs = config.ffn_dim if module == "ffn.2" else config.dim
            a, b = (torch.randn(*shape, generator=generator) for shape in ((rank, inputs), (outputs, rank)))
            found[f"blocks.{n}.{module}"] = 0.1 * a, 0.1 * b
    return found


def tensors(pairs: dict[str, tuple[Tensor, Tensor]], alpha: float | None = None) -> dict[str, Tensor]:
    """By their names in a file."""
    state = {}
    for module, (a, b) in pairs.items():
        state[f"diffusion_model.{module}.lora_A.weight"] = a
        state[f"diffusion_model.{module}.lora_B.weight"] = b
        if alpha is not None:
            state[f"diffusion_model.{module}.alpha"] = torch.tensor(alpha)
    return state


def write(path: Path, config: WanConfig, alpha: float | None = None, **kind: int) -> Path:
    save_file(tensors(adapters(config, **kind), alpha), path)
    return path
