"""A small checkpoint as FastVideo publishes FastWan: Diffusers' folder with a gate in each block."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = Path("transformer") / "diffusion_pytorch_model.safetensors"
NAME = "blocks.{}.to_gate_compress"  # FastVideo `fastvideo/models/dits/wanvideo.py`


def add_gates(source: Path, folder: Path, name: str = NAME, scale: float = 1.0) -> Path:
    """`folder`, a copy of a Diffusers folder with gates of random weights, times `scale`."""
    shutil.copytree(source, folder)
    state = load_file(folder / FILE)
    generator = torch.Generator().manual_seed(3)
    layers = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    dim = len(state["blocks.0.attn1.to_q.bias"])
    for number in range(layers):
        for part, shape in (("weight", (dim, dim)), ("bias", (dim,))):
            value: Tensor = scale * torch.randn(*shape, generator=generator) / dim**0.5
            state[f"{name.format(number)}.{part}"] = value
    save_file(state, folder / FILE, {"format": "pt"})
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "WanDMDPipeline"}))
    return folder
