"""`fpsgen train` in this process, on the small test pocket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from fpsgen.cli import app
from fpsgen.train import data
from fpsgen.weights import models
from tests.tools.training_data import made

PRESET = """format = 1
[[phase]]
sigma = [1.0, 0.5]
top = 0.3
rest = "summary"
qk = "int8"
pv = "fp8"
[[phase]]
sigma = [0.5, 0.0]
window = [1, 3, 3]
"""


class Trainer:
    """Runs `train` with few steps on few samples; options given replace the defaults, None leaves one out."""

    def __init__(self, model: Path, directory: Path):
        self.model, self.directory = model, directory
        self.data, self.preset = directory / "data", directory / "mine.toml"
        pocket = models.find(str(model))
        made(self.data, 5, data.index_of(pocket, pocket.defaults, by="hand"))
        self.preset.write_text(PRESET)

    def __call__(self, *flags: object, **options: object) -> Any:
        return CliRunner().invoke(app, self.words(*flags, **options), env={"COLUMNS": "400"})

    def words(self, *flags: object, **options: object) -> list[str]:
        """The command line."""
        settings: dict[str, object] = {
            "preset": self.preset, "data": self.data, "output": "out", "steps": 4, "batch": 2, "warm_up": 2, "lr": 1e-3,
            "checks": 2, "check_every": 2, "save_every": 2,
        } | options  # fmt: skip
        model = settings.pop("model", self.model)
        args = [word for name, value in settings.items() if value is not None
                for word in (f"--{name.replace('_', '-')}", value)]  # fmt: skip
        return ["train", *map(str, [model, *args, *flags])]

    def refused(self, *flags: object, code: int = 2, **options: object) -> str:
        """What is said where the command is refused: one sentence, and a hint."""
        result = self(*flags, **options)
        assert result.exit_code == code, result.output
        error = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(error) == 1, result.stderr
        return " ".join(result.stderr.split())
