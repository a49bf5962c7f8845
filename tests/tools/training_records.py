"""What a training run gives, made up."""

from __future__ import annotations

import math
import random
from typing import Any


def record(steps: int = 1000) -> dict[str, Any]:
    """Its losses fall, with noise, and with them the error of the held-out clips, to a quarter."""
    chance = random.Random(steps)
    losses = [
        {"step": step, "loss": value, "distil": value, "flow": 0.3 + chance.random()}
        for step in range(1, steps + 1)
        for value in [0.01 + 0.1 * math.exp(-step / 200) * chance.lognormvariate(0, 0.5)]
    ]
    checks = [
        {"step": step, "error": error, "error_ci95": error / 5, "psnr": 10 - 10 * math.log10(error), "psnr_ci95": 0.8,
         "psnr_worst": 9 - 10 * math.log10(error)}
        for step, error in zip((0, 250, 500, 750, 1000), (0.2, 0.1, 0.07, 0.055, 0.05), strict=True)
    ]  # fmt: skip
    video = {"width": 160, "height": 96, "frames": 25, "fps": 12, "steps": 20, "shift": 3.0, "guidance": 4.0,
             "negative": "", "solver": "unipc", "sigmas": "original"}  # fmt: skip
    return {
        "kind": "training", "format": 1, "date": "2026-01-01", "commit": None,
        "command": ["fpsgen", "train", "pocket", "--data", "a b"],
        "machine": {"fpsgen": "0.3.0", "torch": "2.9.0"}, "model": "pocket v2", "weights": "0123456789abcdef",
        "trained": "feedfacecafebeef", "device": "cpu", "dtype": "float32", "processes": 2, "preset": "pocket-fast",
        "text": 'format = 1\nmodel = "pocket"\n', "settings": {"lora": 8, "steps": steps, "batch": 4, "distil": 1.0,
        "flow": 0.0, "warm_up": 200}, "data": "data", "samples": 64, "video": video,
        "prompts": ["a cat moving left", "a dog jumping"], "losses": losses, "checks": checks, "skipped": 3,
        "steps": steps, "tokens": 420 * 4 * steps, "seconds": 1234.5, "result": "trained/lora.safetensors",
    }  # fmt: skip
