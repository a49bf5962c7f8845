"""How much is measured, of which video, and on which prompts."""

from __future__ import annotations

from dataclasses import dataclass

from fpsgen import assets
from fpsgen.settings import Settings

_LEAST_STEPS = 2  # in a phase, where the trajectory has that many


@dataclass(frozen=True)
class Effort:
    """clips: prompts that the model is measured on; probed: those of them on which sensitivities are; checks: prompts
    behind them that the schedule is verified on; steps: of the measured trajectories; phases: of the schedule; layers:
    how many of them are probed, those between by interpolation; tiles: of queries, for each layer and phase; rounds: of
    verification, at most. look, decode: time of looking into a step, and of decoding a clip, in a step's, for the time
    that is left."""

    clips: int
    probed: int
    checks: int
    steps: int
    phases: int
    layers: int
    tiles: int
    rounds: int
    look: float
    decode: float


# The pocket model: minutes on two cores. Wan2.1: at most what three BF16 clips take, verification included.
EFFORT = {
    "pocket": Effort(
        clips=4, probed=4, checks=8, steps=20, phases=10, layers=6, tiles=12, rounds=6, look=10, decode=12
    ),
    "wan": Effort(clips=2, probed=1, checks=1, steps=10, phases=4, layers=3, tiles=6, rounds=4, look=1, decode=0.5),
}


@dataclass(frozen=True)
class PhaseSpan:
    """A phase of the schedule: steps first to last of the measured trajectory, and its noise levels, (from, to]."""

    first: int
    last: int
    sigma: tuple[float, float]

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


def spans(settings: Settings, count: int) -> list[PhaseSpan]:
    """`count` phases of nearly equally many steps, ended halfway between two noise levels, rounded to 4 digits."""
    steps, sigmas = settings.steps, settings.noise_levels
    begins = [round(index * steps / count) for index in range(count)] + [steps]
    ends = [1.0] + [round((sigmas[at - 1] + sigmas[at]) / 2, 4) for at in begins[1:-1]] + [0.0]
    pairs = zip(begins, begins[1:], ends, ends[1:], strict=False)
    return [PhaseSpan(first, after - 1, (high, low)) for first, after, high, low in pairs]


def defaults(family: str) -> tuple[Effort, tuple[str, ...]]:
    """How much is measured, and the prompts, where the user says nothing."""
    return EFFORT["pocket" if family == "pocket" else "wan"], assets.prompts("calibrate", family)


def phases_of(steps: int, most: int) -> int:
    """How many phases a trajectory of so many steps is divided into."""
    return max(1, min(most, steps // _LEAST_STEPS))
