"""Mistakes that people make with files, as cases of `tests/e2e/test_wrong_files.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fpsgen.wan.config import WanConfig

TRANSFORMER, T5, VAE = "diffusion_pytorch_model.safetensors", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"
# What `make_plain_pipeline` makes.
SHAPES = WanConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=2, text_dim=24, freq_dim=32)
FP8 = torch.float8_e4m3fn


@dataclass
class Case:
    """A copy of a small model's folder in the original format, and one of a model of two experts; what is made of them
    are the arguments after the prompt."""

    folder: Path
    experts: Path
    place: Path

    @property
    def file(self) -> Path:
        return self.folder / TRANSFORMER

    @property
    def state(self) -> dict[str, Tensor]:
        return load_file(self.file)

    def model(self, state: dict[str, Tensor] | None = None, **metadata: str) -> list[object]:
        """The folder, with another transformer in it."""
        if state is not None:
            save_file({name: value.contiguous() for name, value in state.items()}, self.file, metadata or None)
        return ["--model", self.folder]

    def lora(self, state: dict[str, Tensor], name: str = "style.safetensors") -> list[object]:
        save_file(state, self.place / name)
        return [*self.model(), "--lora", self.place / name]

    def put(self, name: str, content: bytes) -> Path:
        (self.place / name).write_bytes(content)
        return self.place / name


CASES: dict[str, tuple[Callable[[Case], list[object]], str]] = {}


def case(says: str) -> Callable[[Callable[[Case], list[object]]], Callable[[Case], list[object]]]:
    """says: a part of the sentence."""

    def kept(make: Callable[[Case], list[object]]) -> Callable[[Case], list[object]]:
        CASES[make.__name__] = make, says
        return make

    return kept
