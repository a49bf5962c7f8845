"""`fpsgen bench` in this process, on small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from fpsgen.cli import app
from tests.tools.cli import told

EXACT = "format = 1\n\n[[phase]]\nsigma = [1.0, 0.0]\n"
# 96x64 and 9 frames are 3 x 4 x 6 tokens: with the test pocket's tile 2 x 2 x 3 tiles.
HALVES = """format = 1

[[phase]]
sigma = [1.0, 0.8]

[[phase]]
sigma = [0.8, 0.0]
window = [2, 1, 1]
qk = "int8"
pv = "fp8"
"""


def bench(*args: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, args)])


class Bench:
    """Runs `bench` on a small model, where videos take a second; options given replace the short defaults."""

    def __init__(self, folder: Path, directory: Path):
        self.folder, self.directory = folder, directory

    def preset(self, text: str, name: str = "mine.toml") -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def run(self, *flags: object, **options: object) -> Any:
        settings: dict[str, object] = {
            "model": self.folder, "steps": 3, "pairs": 2, "output": self.directory / "out.json",
        } | options  # fmt: skip
        named = [part for key, value in settings.items() if value is not None for part in (f"--{key}", value)]
        return bench(*flags, *(str(part).replace("_", "-") if str(part)[:2] == "--" else part for part in named))

    def __call__(self, *flags: object, **options: object) -> dict:
        result = self.run(*flags, "--json", "--no-report", **options)
        return told(result, "bench")
