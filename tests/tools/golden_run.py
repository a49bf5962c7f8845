"""The pocket model's latents of one prompt and seed, kept so that later code can be held to them.

python -m tests.tools.golden_run quality        # writes it anew: only where a change is meant to change videos
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[1] / "golden"
WINDOWS = Path(__file__).resolve().parents[2] / "benchmarks" / "former" / "pocket-quality.toml"
PRESETS = ("bf16", "windows", "quality")
PROMPT, SEED = "a cat surfing", 1


def surroundings() -> dict[str, str]:
    """What the last bits of a sum depend on: the library, and the instructions that it uses."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def make(preset: str) -> Tensor:
    """The final latents, [1, 16, T, h, w]; windows: by a preset without tiles chosen by content."""
    from fpsgen import pipeline
    from fpsgen.events import Denoised
    from fpsgen.presets import BF16, file, shipped
    from fpsgen.request import Request
    from fpsgen.target import Target
    from fpsgen.weights import models

    model = models.find("pocket")
    own = model.defaults
    if preset == "windows":
        chosen = file.parse(WINDOWS.read_bytes(), WINDOWS.name)
    else:
        chosen = BF16 if preset == "bf16" else shipped.of_grade(preset, model.family, own.width, own.height)
    request = Request(PROMPT, own, SEED, Path("none.mp4"), chosen)
    target = Target(torch.device("cpu"), torch.float32, torch.bfloat16)
    with contextlib.closing(pipeline.generate([request], model, target)) as events:
        return next(event.latents.clone() for event in events if isinstance(event, Denoised))


def read(preset: str) -> tuple[Tensor, dict[str, str]]:
    """The latents that were kept, and their surroundings."""
    with safe_open(FOLDER / f"pocket-{preset}.safetensors", "pt") as file:
        return file.get_tensor("latents"), file.metadata()


if __name__ == "__main__":
    for name in sys.argv[1:] or PRESETS:
        save_file({"latents": make(name)}, FOLDER / f"pocket-{name}.safetensors", metadata=surroundings())
