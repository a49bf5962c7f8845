"""How long this machine took for its last video of a model: what is expected of the next one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum, prod
from pathlib import Path
from typing import Any

from fpsgen import assets, files, machine
from fpsgen.presets import cost
from fpsgen.presets.file import as_dict
from fpsgen.request import VideoPlan

_MOST_BYTES = 2**12


@dataclass(frozen=True)
class Pace:
    """Seconds of the stages of `timing`. load: of a run; text: of a video; denoise: for each second that `modelled`
    counts; decode, encode: for each pixel of each frame."""

    load: float
    text: float
    denoise: float
    decode: float
    encode: float

    def of(self, plans: Sequence[VideoPlan]) -> dict[str, float]:
        """The seconds of each stage of videos that one command makes one after the other."""
        pixels = fsum(_pixels(plan) for plan in plans)
        units = {
            "load": 1, "text": len(plans), "denoise": fsum(map(modelled, plans)), "decode": pixels, "encode": pixels
        }  # fmt: skip
        return {stage: seconds * units[stage] for stage, seconds in asdict(self).items()}


def modelled(plan: VideoPlan, first: int = 0) -> float:
    """Seconds of all steps, or of those from `first` on, on the card of `presets.cost`: attention and linear layers,
    and nothing that lies between them."""
    config, tokens, branches = plan.model.config, plan.tiles.tokens, plan.request.settings.branches
    unit = 4.0 * config.dim * tokens**2 / (cost.TFLOPS["bf16"] * 1e12)  # dense attention of one layer in BF16
    return unit * fsum(
        step.share(branches) * branches * (cost.of_plan(own, tokens) + cost.of_linear(config, tokens, linear))
        for step in plan.steps[first:]
        for own, linear in step.layers
    )


def keep(plan: VideoPlan, timings: Mapping[str, Any]) -> None:
    """The pace of a video that was made alone, from its first step to its last; the first one, which finds caches and
    memory cold, does not count. timings: as its comment has them. A disk that refuses the file is no matter."""
    pixels, computed = _pixels(plan), modelled(plan, first=1)
    if not computed:
        return
    own = Pace(
        timings["load"], timings["text"], fsum(timings["steps"][1:]) / computed, timings["decode"] / pixels,
        timings["encode"] / pixels,
    )  # fmt: skip
    with contextlib.suppress(OSError):
        files.write_json(_place(plan), asdict(own))


def of_last(plan: VideoPlan) -> Pace | None:
    """The pace of the last video of this model, preset, dtype and device, of any size; None where there is none."""
    try:
        with files.open_regular(_place(plan)) as file:
            own = Pace(**json.loads(file.read(_MOST_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):  # it can be made anew
        return None
    known = all(type(value) in (int, float) and math.isfinite(value) for value in asdict(own).values())
    return own if known else None


def _place(plan: VideoPlan) -> Path:
    device = plan.target.device
    told = [plan.model.full_name, as_dict(plan.preset), plan.target.dtype_name, machine.device_name(device)]
    return assets.cache("pace") / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}.json"


def _pixels(plan: VideoPlan) -> int:
    own = plan.request.settings
    return prod((own.width, own.height, own.frames))
