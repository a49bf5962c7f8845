"""Small calibrations: seconds instead of minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fpsgen.attention.tiles import TileGrid
from fpsgen.calibrate.budget import Budget
from fpsgen.calibrate.candidates import Choice
from fpsgen.calibrate.job import Effort, Job
from fpsgen.calibrate.trajectory import Clip, Renderer
from fpsgen.events import Done, Event, Notice, Stage, Watch, Work
from fpsgen.journal import Journal
from fpsgen.settings import Settings
from fpsgen.wan.config import WanConfig
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights.models import absent, open_folder
from tests.tools.cli import calibrate

CPU = torch.device("cpu")
CONFIG = WanConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=8, freq_dim=16)
VIDEO = Settings(width=96, height=64, frames=9, fps=8, steps=4, guidance=3.0, shift=3.0, negative="")
TILES = TileGrid((3, 4, 6), (2, 2, 2))  # of VIDEO
ATTENTION: frozenset[Choice] = frozenset({"attention"})
EFFORT = Effort(clips=1, probed=1, checks=1, steps=4, phases=2, layers=2, tiles=3, rounds=3, rivals=0, look=1, decode=1)
PROMPTS = ("a cat", "a dog", "the sea", "red dog")


def small_transformer(seed: int = 0, layers: int = 2) -> WanTransformer:
    """Random weights that attend to something: scores a few units apart."""
    torch.manual_seed(seed)
    transformer = WanTransformer(replace(CONFIG, num_layers=layers)).eval()
    for block in transformer.layers():
        for norm in (block.self_attn.norm_q, block.self_attn.norm_k):
            norm.weight.data.uniform_(0.5, 2.0)
    return transformer.requires_grad_(False)


def small_renderer(root: Path, watch: Watch = lambda event: None, layers: int = 2) -> Renderer:
    """Of `small_transformer`, with its pieces in `root`."""
    journal = Journal(root, {"layers": layers})
    return Renderer(small_transformer(layers=layers), TILES, VIDEO, text(99), CPU, journal, watch)


def text(seed: int) -> torch.Tensor:
    return torch.randn(1, 5, CONFIG.text_dim, generator=torch.Generator().manual_seed(seed))


def clips(count: int) -> list[Clip]:
    return [Clip(f"prompt {number}", number, text(number)) for number in range(count)]


def small_job(
    folder: Path,
    settings: Settings = VIDEO,
    effort: Effort = EFFORT,
    budget: Budget | None = None,
    choose: frozenset[Choice] = ATTENTION,
) -> Job:
    """Of the test pocket in `folder`, loose."""
    model = open_folder(folder, "pocket")
    return Job(model, settings, effort, budget or Budget("psnr", 20.0), PROMPTS, 0, "small.toml", choose)


def wan_job(key: str, width: int, height: int, effort: Effort, frames: int = 81, steps: int = 50) -> Job:
    """Of a Wan2.1 that is not there, whose arithmetic is looked at alone."""
    model = absent(key)
    own = model.defaults
    video = replace(
        VIDEO, width=width, height=height, frames=frames, steps=steps, guidance=own.guidance, shift=own.shift
    )
    return Job(model, video, effort, Budget("psnr", 30.0), PROMPTS, 0, "wan.toml")


class Recorder:
    """Watches a calibration, and keeps what it is told."""

    def __init__(self) -> None:
        self.wanted = self.done = 0.0
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stage):
            self.stages.append(event.name)
        elif isinstance(event, Work):
            self.wanted = event.total
        elif isinstance(event, Done):
            self.done += event.work
        elif isinstance(event, Notice):
            (self.notes if event.detail else self.warnings).append(event.text)


LINES = "# comments and empty lines are none\n\na cat\n  a dog surfing  \nthe sea\nred dog\n"


class Calibrator:
    """Runs `calibrate` on the test pocket, one clip to measure on and one to verify on."""

    def __init__(self, model: Path, directory: Path):
        self.model, self.directory = model, directory
        (directory / "prompts.txt").write_text(LINES)

    def args(self, *given: object, **options: object) -> list[object]:
        settings: dict[str, object] = {
            "model": self.model, "prompts": self.directory / "prompts.txt", "clips": 1, "checks": 1, "steps": 4,
            "output": self.directory / "my.toml",
        } | options  # fmt: skip
        named = [part for key, value in settings.items() if value is not None for part in (f"--{key}", value)]
        return [*named, *given]

    def __call__(self, *given: object, report: bool = False, **options: object) -> Any:
        return calibrate(*self.args(*given, *([] if report else ["--no-report"]), **options))

    def preset(self, *given: object, **options: object) -> bytes:
        result = self(*given, **options)
        assert result.exit_code == 0, result.output
        return (self.directory / "my.toml").read_bytes()

    def refused(self, *given: object, code: int = 2, **options: object) -> str:
        """What is said, in one line and a hint; the preset is as it was."""
        path = self.directory / "my.toml"
        before = path.read_bytes() if path.is_file() else None
        result = self(*given, **options)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert "inside fpsgen" not in result.output
        assert (path.read_bytes() if path.is_file() else None) == before
        assert not list(self.directory.glob(".*"))
        return result.stderr


def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each guided velocity that is computed."""
    calls: list[int] = []
    real = Renderer.velocity
    monkeypatch.setattr(Renderer, "velocity", lambda *args: calls.append(1) or real(*args))
    return calls
