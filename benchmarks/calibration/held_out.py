"""The clips that `PROTOCOL.md` judges on, which calibration never saw, and the options of scripts that render them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.calibration.worker import Spec
from fpsgen.calibrate.job import Job
from fpsgen.pocket.words import Combination
from recipes.pocket.evaluate import NOISE_SEED, prompts_for

HELD_OUT, _FIRST = 24, 32


def arguments(document: str | None, out: Path, work: Path | None = None) -> argparse.Namespace:
    """out, clips, workers, as the command line has them, and work for a script that keeps its own there. document: of
    the script; out, work: by default."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--clips", type=int, default=HELD_OUT, help="the first so many of the protocol's, for a look")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    if work is not None:
        parser.add_argument("--work", type=Path, default=work, help="the folder of data and trained models")
    args = parser.parse_args()
    if not 2 <= args.clips <= HELD_OUT or args.workers < 1:
        parser.error(f"2 to {HELD_OUT} clips, and 1 worker at least")
    return args


def specs(clips: int) -> list[Spec]:
    """The first `clips` of them."""
    prompts, _ = prompts_for(_FIRST + HELD_OUT, True, True)
    return [(prompt, NOISE_SEED + 1000 + i) for i, prompt in enumerate(prompts[_FIRST:][:clips])]


def about(job: Job, levels: Mapping[str, float], clips: Sequence[Spec]) -> dict:
    """What every record says beside its contenders: the model, the levels and the clips."""
    pocket = job.model.pocket or {}
    return {
        "pocket": {key: pocket[key] for key in ("version", "sha256")},
        "planned_clips": HELD_OUT,
        "levels": levels,
        "prompts": [prompt for prompt, _ in clips],
    }


def labels(clips: int) -> list[Combination]:
    """What their prompts describe."""
    return prompts_for(_FIRST + HELD_OUT, True, True)[1][_FIRST:][:clips]
