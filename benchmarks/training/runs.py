"""What is trained; `PROTOCOL.md` says why."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from fpsgen import assets
from fpsgen.presets import Preset, file
from recipes.pocket.prompts import caption, combinations

PLANS = {
    "paper": assets.folder("presets") / "paper.toml",
    "window": Path(__file__).parent / "plans" / "window.toml",
    "top": Path(__file__).parent / "plans" / "top.toml",
}
CLIPS = 192  # to train on
STEPS, BATCH = 900, 1
_FLOW = ("--flow", "1", "--distil", "0")
_GUIDED = ("--guided", "--caption-drop", "0")
# What each column adds to `fpsgen train`.
COLUMNS: dict[str, tuple[str, ...]] = {
    "flow matching": (*_FLOW, "--lr", "5e-5"),
    "distillation": (*_GUIDED, "--lr", "3e-4"),
    "distillation, unguided": ("--caption-drop", "0.5", "--lr", "3e-4"),
    "distillation, LoRA": (*_GUIDED, "--lora", "32", "--lr", "1e-3"),
}
EVERYWHERE = "flow matching", "distillation"  # columns of every plan; the others are of one
_OTHERS = "top"
COMMON = ("--steps", str(STEPS), "--batch", str(BATCH), "--micro", str(BATCH), "--warm-up", "60", "--decay", "cosine",
          "--ema", "0.98", "--spike", "1000", "--checks", "0", "--save-every", "300", "--no-report", "--device", "cpu",
          "--dtype", "fp32")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training: a plan and a column of the table."""

    plan: str
    column: str

    def folder(self, root: Path) -> Path:
        return root / f"{self.plan}-{self.column.replace(', ', '-').replace(' ', '-')}"

    def command(self, data: Path, root: Path) -> list[str]:
        """Of `fpsgen`, without its name; a run that was ended continues."""
        folder = self.folder(root)
        again = ("--resume",) if (folder / "settings.toml").exists() else ()
        own = ("--preset", str(PLANS[self.plan]), "--data", str(data), "-o", str(folder))
        return ["train", "pocket", *own, *COMMON, *COLUMNS[self.column], *again]


RUNS = [Run(plan, column) for plan in PLANS for column in COLUMNS if column in EVERYWHERE or plan == _OTHERS]


def preset(plan: str) -> Preset:
    return file.parse(PLANS[plan].read_bytes(), PLANS[plan].name)


def prompts() -> list[str]:
    """Sentences about every combination that the pocket model was trained on, in turn."""
    rng, pool = random.Random("training"), combinations()
    order = rng.sample(pool, len(pool))
    return [caption(*order[i % len(order)], rng) for i in range(CLIPS)]
