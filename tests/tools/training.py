"""A training run small enough for a test, in this process or in one that torchrun starts.

python -m tests.tools.training MODEL OUT '{"settings": {"steps": 5}, "raise_at": [1, 3]}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fpsgen import ranks
from fpsgen.attention.tiles import TileGrid
from fpsgen.cli import signals
from fpsgen.errors import FpsgenError
from fpsgen.presets import Phase, Preset
from fpsgen.sampling import Denoiser
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.train.data import Sample, Taught
from fpsgen.train.loop import TrainJob, train
from fpsgen.train.objective import VelocityModel
from fpsgen.train.settings import TrainSettings
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import models

VIDEO = Settings(160, 96, 9, 16, 8, guidance=1.0, shift=3.0, negative="")
TEXT = 6, 24  # tokens, text_dim of the tiny checkpoint
PRESET = Preset(
    name="tiny",
    tile=(1, 2, 2),
    phases=(
        Phase(sigma=(1.0, 0.9)),
        Phase(sigma=(0.9, 0.6), window=(1, 1, 3), qk="fp8", pv="fp8"),
        Phase(sigma=(0.6, 0.0), top=0.2, rest="summary"),
    ),
)


@dataclass(frozen=True)
class TinyIndex:
    latent_shape: tuple[int, int, int]
    seed: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TinyData:
    """Smooth latents and random captions, in memory; taught: with so many velocities of a teacher."""

    count: int = 5
    seed: int = 0
    taught: int = 0

    @property
    def index(self) -> TinyIndex:
        return TinyIndex(VIDEO.latent_shape, self.seed)

    @property
    def negative(self) -> Tensor:
        return torch.zeros(TEXT, dtype=torch.bfloat16)

    def __len__(self) -> int:
        return self.count

    def sample(self, number: int) -> Sample:
        random = torch.Generator().manual_seed(1000 * self.seed + number)
        latents = torch.randn(16, 1, 1, 1, generator=random).expand(16, *VIDEO.latent_shape).contiguous()
        texts = [torch.randn(TEXT, generator=random).bfloat16() for _ in range(2)]
        taught = None
        if self.taught:
            velocities = torch.randn(self.taught, *latents.shape, generator=random).bfloat16()
            levels = torch.rand(self.taught, generator=random)
            taught = Taught(levels, torch.arange(self.taught) + 10 * number, velocities)
        return Sample(latents, texts, None, taught)


def job(model: Path, out: Path, target: Target | None = None, **given: Any) -> TrainJob:
    """given: `settings`, as a table, and other fields of TrainJob."""
    settings = TrainSettings(**{"batch": 4, "steps": 6, "warm_up": 4, "flow": 1.0, **given.pop("settings", {})})
    settings.check()
    cpu = target or Target(torch.device("cpu"), torch.float32, torch.float32)
    fields = {"data": TinyData(), "preset": PRESET, "video": VIDEO, "settings": settings, "target": cpu} | given
    return TrainJob(model=models.open_folder(model, "tiny"), folder=out, **fields)


def log(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without what the clock says."""
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [{name: own for name, own in line.items() if "second" not in name} for line in lines]


def render(model: VelocityModel, step: int) -> float:
    """A check of what the model renders: its mean latent."""
    config = model.config
    tiles = TileGrid(config.grid(VIDEO.latent_shape), (1, 2, 2))
    denoiser = Denoiser(
        cast(WanTransformer, model), VIDEO, [TinyData().sample(0).texts[0][None]], torch.device("cpu"), False
    )
    plans = PRESET.schedule(VIDEO.noise_levels, tiles, config.num_layers, config.num_heads)
    *_, last = denoiser.run(denoiser.noise(0), plans)
    return last.latents.abs().mean().item()


def main(model: str, out: str, given: str) -> None:
    """As the command does it. raise_at, kill_at: of which process, and after which step."""
    wishes = json.loads(given)
    raise_at, kill_at = wishes.pop("raise_at", None), wishes.pop("kill_at", None)
    dtype = torch.bfloat16 if wishes.pop("bf16", False) else torch.float32
    rank = int(os.environ.get("RANK", "0"))
    signals.listen()

    def check(velocities: VelocityModel, step: int) -> float:
        if [rank, step] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if [rank, step] == raise_at:
            raise ValueError("a fault of process 1 alone")
        return render(velocities, step)

    own = job(Path(model), Path(out), Target(torch.device("cpu"), dtype, torch.float32), check=check, **wishes)
    try:
        with ranks.joined(own.target.device) as group:
            train(own, lambda event: None, group)
    except FpsgenError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
