"""What a PSNR looks like: one frame of a pocket clip, by bf16 and by the pocket's presets. Reports show the picture.

    python -m benchmarks.levels "a cat surfing" --seed 3 --frame 13

Each preset renders the clip through `fpsgen bench quality`'s own code, and its PSNR is that of the whole clip. Writes
fpsgen/report/levels.png, and levels.json beside it, which says what the picture shows.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpsgen import assets
from fpsgen.bench import lineup, quality
from fpsgen.machine import provenance
from fpsgen.report import words
from fpsgen.report.pictures import drawing
from fpsgen.request import Request
from fpsgen.target import Target
from fpsgen.weights import models

GRADES = ("quality", "balanced", "fast")
PLACE = Path(__file__).parents[1] / "fpsgen/report/levels.png"
_TIMES, _GAP, _HEADING = 3, 24, 44  # pixels of the picture for a pixel of the frame; between frames; above them


def render(prompt: str, seed: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What was measured, and the clip's frames by bf16 and by each preset."""
    model, target = models.find("pocket"), Target(torch.device("cpu"), torch.float32, torch.bfloat16)
    request = Request(prompt, model.defaults, seed, Path())
    command = ["python", "-m", "benchmarks.levels", *sys.argv[1:]]
    clips, presets = [], []
    for grade in GRADES:
        line_up = lineup.resolve(grade, ["bf16"], request, model, target)
        job = quality.QualityJob(line_up, (prompt,), 1, seed, command)
        record, [pair] = quality.run(job, lambda event: None)
        clips = [*(clips or [pair.exact]), pair.ours]
        presets.append({"preset": grade, "psnr": round(record.contenders[0].fidelity.psnr.mean, 1)})
    pocket = json.loads((assets.folder("pocket") / "pocket.json").read_text(encoding="utf-8"))
    told = {**provenance(command), "pocket": {"version": pocket["version"], "sha256": pocket["sha256"]}}
    return {**told, "prompt": prompt, "seed": seed, "baseline": pair.names[0], "presets": presets}, clips


def picture(frames: list[np.ndarray], headings: list[str]) -> bytes:
    """Frames [height, width, 3] beside each other, each under its heading."""
    large = [frame.repeat(_TIMES, axis=0).repeat(_TIMES, axis=1) for frame in frames]
    high, wide, _ = large[0].shape
    width, height = len(large) * (wide + _GAP) - _GAP, high + _HEADING
    with drawing.styled():
        figure = drawing.Figure(figsize=(width / drawing.DPI, height / drawing.DPI), dpi=drawing.DPI)
        for column, (frame, heading) in enumerate(zip(large, headings, strict=True)):
            left = column * (wide + _GAP)
            figure.figimage(frame, left, 0, origin="upper")
            figure.text(left / width, (high + 18) / height, heading, va="center", fontsize=9)
        return drawing.png(figure)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--frame", type=int, required=True, help="counted from 1")
    given = parser.parse_args()
    told, clips = render(given.prompt, given.seed)
    told |= {"frame": given.frame, "frames": len(clips[0])}
    headings = [told["baseline"], *(f"{words.decibels(one['psnr'])} ({one['preset']})" for one in told["presets"])]
    PLACE.write_bytes(picture([clip[given.frame - 1] for clip in clips], headings))
    PLACE.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
