"""`fpsgen bench quality` in this process, on the test pocket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from fpsgen.cli import app

ROUGH = 'format = 1\n[[phase]]\nsigma = [1.0, 0.0]\nwindow = [1, 1, 1]\nqk = "int8"\npv = "fp8"\n'
DENSE = "format = 1\n[[phase]]\nsigma = [1.0, 0.0]\n"


class Quality:
    """Runs `bench quality` on the test pocket: two prompts, one preset that rounds and cuts, bf16 beside it."""

    def __init__(self, model: Path, directory: Path):
        self.model, self.directory = model, directory
        (directory / "prompts.txt").write_text("a cat surfing\na red dog on the sea\n")
        (directory / "rough.toml").write_text(ROUGH)
        (directory / "dense.toml").write_text(DENSE)

    def __call__(self, *given: object, **options: object) -> Any:
        settings: dict[str, object] = {
            "model": self.model, "prompts": "prompts.txt", "preset": "rough.toml", "seed": 7,
            "report": None if "--no-report" in given else "bench.html", "output": "bench.json",
        } | options  # fmt: skip
        named = [part for key, value in settings.items() if value is not None for part in (f"--{key}", value)]
        return CliRunner().invoke(app, ["bench", "quality", *map(str, [*named, *given])])

    def record(self, *given: object, **options: object) -> dict[str, Any]:
        result = self("--no-report", *given, **options)
        assert result.exit_code == 0, result.output
        return json.loads((self.directory / "bench.json").read_text())

    def refused(self, *given: object, code: int = 2, **options: object) -> str:
        before = set(self.directory.rglob("*"))
        result = self("--no-report", *given, **options)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert "inside fpsgen" not in result.output
        if code == 2:
            assert set(self.directory.rglob("*")) == before
        return " ".join(result.stderr.split())
