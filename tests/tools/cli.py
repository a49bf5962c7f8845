"""`fpsgen generate` in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from fpsgen.cli import app


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
        return told(result, "generate")

    def frames(self, prompt: str = "a cat surfing", **options: object) -> np.ndarray:
        from tests.tools.videos import read  # which tests of what runs without ffmpeg do without

        return read(self(prompt, **options)["output"])[1]


def models(*args: object) -> Any:
    return CliRunner().invoke(app, ["models", *map(str, args)])


def told(result: Any, command: str | None = None, code: int = 0) -> dict:
    """The one object of --json, whose keys are those that docs/json.md has for `command`."""
    assert result.exit_code == code, result.output
    found = json.loads(result.stdout)  # and nothing else on stdout
    assert found.pop("schema") == 1
    if command is not None:
        always, sometimes = documented(command)
        assert always <= set(found) <= always | sometimes
    return found


def documented(command: str) -> tuple[set[str], set[str]]:
    """The keys that docs/json.md lists under the heading `command`: those that are always there, and the others."""
    text = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(command)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.*?`)( \(sometimes\))? \|", section, re.MULTILINE)
    always, sometimes = (
        {key for row, mark in rows if bool(mark) is rare for key in re.findall(r"`(\w+)`", row)}
        for rare in (False, True)
    )
    return always, sometimes


def calibrate(*args: object) -> Any:
    return CliRunner().invoke(app, ["calibrate", *map(str, args)])
