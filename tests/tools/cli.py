"""`fpsgen generate` in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from fpsgen.cli import app
from tests.tools.videos import read


def invoke(*args: object, input: str | None = None) -> Any:
    return CliRunner().invoke(app, ["generate", *map(str, args)], input=input)


class Runner:
    """Runs `generate` on a small model with short defaults; options given replace them."""

    def __init__(self, folder: Path, directory: Path):
        self.folder, self.directory, self.count = folder, directory, 0

    def __call__(self, prompt: str = "a cat surfing", **options: object) -> dict:
        self.count += 1
        settings: dict[str, object] = {
            "res": "96x64", "frames": 5, "steps": 2, "seed": 1, "model": self.folder,
            "output": self.directory / f"{self.count}.mp4",
        } | options  # fmt: skip
        args = [part for key, value in settings.items() if value is not None for part in (f"--{key}", value)]
        result = invoke(prompt, *args, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def frames(self, prompt: str = "a cat surfing", **options: object) -> np.ndarray:
        return read(self(prompt, **options)["output"])[1]


def models(*args: object) -> Any:
    return CliRunner().invoke(app, ["models", *map(str, args)])


def told(result: Any) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def calibrate(*args: object) -> Any:
    return CliRunner().invoke(app, ["calibrate", *map(str, args)])
