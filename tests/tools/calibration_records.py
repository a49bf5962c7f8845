"""What a calibration gives, made up."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any


def record(phases: int = 4, layers: int = 6, points: int = 14, clips: int = 6) -> dict[str, Any]:
    """What a calibration gives: late layers and early steps matter most, the rest is cheap."""
    chance = random.Random(phases * layers)
    steps = 20 if phases < 10 else 50
    edges = [round(steps * p / phases) for p in range(phases + 1)]
    sigma = [1 - (edge / steps) ** 1.6 for edge in edges]
    spans = [(a + 1, b) for a, b in itertools.pairwise(edges)]
    error = [
        [3e-3 * math.exp(-p * 5 / phases + n / layers + chance.gauss(0, 0.5)) for n in range(layers)]
        for p in range(phases)
    ]
    density = [[min(1.0, max(0.1, 0.9 + math.log10(e) / 5)) for e in row] for row in error]
    density[0] = [1.0] * layers
    return {
        "model": "pocket v1", "weights": "0123456789abcdef", "device": "cpu",
        "versions": {"fpsgen": "0.2.0", "torch": "2.13.0"},
        "size": "160x96", "frames": 25, "fps": 12, "steps": steps, "shift": 3.0, "guidance": 4.0, "solver": "unipc",
        "grid": [7, 6, 10], "tile": [2, 2, 2], "tiles": [4, 3, 5], "layers": layers, "heads": 3,
        "head_dim": 128, "cost_tokens": 75_600, "backend": "reference", "baseline": "bf16 (float32)",
        "budget": "--min-psnr 30", "holds": True,
        "phases": [
            {"steps": f"{a}-{b}" if b > a else f"{a}", "sigma": [x, y]}
            for (a, b), x, y in zip(spans, sigma, sigma[1:], strict=False)
        ],
        "error": error, "probe": "window 3x3x3, int8", "density": density,
        "precision": [["bf16" if d == 1 else chance.choice(["int8", "fp8"]) for d in row] for row in density],
        "sees": [[[sees(d, n) for n in range(3)] for d in row] for row in density],
        "cost": 0.31, "mean_density": 0.52,
        "frontier": frontier(points),
        "clips": [
            {"prompt": f"prompt {n}: a cat moving left", "seed": 4 + n, "error": 2e-4 * (n + 1), "psnr": 34.5 - n / 2}
            for n in range(clips)
        ],
        "summary": {"error": 7.21e-4, "error_ci95": 1.93e-4, "psnr": 33.27, "psnr_ci95": 0.84, "psnr_worst": 31.86},
        "prompts": ["the dog is moving right", "one panda rises into the air"],
        "seconds": {"measure": 812.0, "probe": 2400.5, "verify": 95.2},
        "preset": 'format = 1\nmodel = "pocket"\n\n[[phase]]\nsigma = [1.0, 0.9]\n',
        "command": ["fpsgen", "calibrate", "a b", "--min-psnr", "30"],
    }  # fmt: skip


def sees(density: float, head: int) -> dict[str, Any]:
    """Key tiles of a head in a layer of some density."""
    if density == 1:
        return {"window": None, "top": None, "rest": "drop"}
    kinds = [
        {"window": [3, 3, 3], "top": None, "rest": "drop"},
        {"window": [3, 3, 3], "top": None, "rest": "summary"},
        {"window": None, "top": density, "rest": "summary"},
    ]
    return kinds[head]


def frontier(points: int) -> list[dict[str, Any]]:
    """Calibrated schedules along a curve, the third measured and chosen; beside them presets and uniform plans."""
    found = []
    for n in range(points):
        cost, measured = 0.12 + 0.85 * n / max(1, points - 1), n % 4 == 2 or points == 1
        found.append({
            "kind": "calibrated", "name": f"c{n}", "cost": cost, "error": 6e-3 * math.exp(-6.5 * cost),
            "psnr": 28 + 15 * cost if measured else None, "measured": measured, "chosen": n == min(2, points - 1),
        })  # fmt: skip
    if points > 1:
        for n, name in enumerate(("pocket-quality", "pocket-balanced", "pocket-fast")):
            found.append({"kind": "preset", "name": name, "cost": 0.62 - 0.17 * n, "error": 4e-4 * 3.0**n,
                          "psnr": 34.0 - 3 * n, "measured": True, "chosen": False})  # fmt: skip
        for n, name in enumerate(("dense bf16", "dense int8", "3x3x5 int8", "3x3x3 int8")):
            found.append({"kind": "uniform", "name": name, "cost": (1.0, 0.53, 0.4, 0.22)[n],
                          "error": (0.0, 2e-4, 1.4e-3, 6e-3)[n], "psnr": None, "measured": n == 0,
                          "chosen": False})  # fmt: skip
    return found


def edge(name: str) -> dict[str, Any]:
    """Records at the edge of what there can be."""
    given = record()
    if name == "zeros":
        given["error"] = [[0.0] * 6 for _ in range(4)]
    elif name == "below zero and not a number":
        given["error"][1][2], given["error"][1][3] = -1e-17, math.nan
    elif name == "single phase and layer":
        given = record(phases=1, layers=1)
    elif name == "every step a phase":
        given = record(phases=20)
    elif name == "no psnr":
        given["summary"].update(psnr=None, psnr_ci95=None, psnr_worst=None)
        given["clips"] = [entry | {"psnr": None} for entry in given["clips"]]
    elif name == "same videos":
        given["summary"].update(error=0.0, error_ci95=0.0, psnr=math.inf, psnr_ci95=None, psnr_worst=math.inf)
        given["clips"] = [entry | {"psnr": math.inf, "error": 0.0} for entry in given["clips"]]
    elif name == "one clip":
        given = record(clips=1)
        del given["summary"]["error_ci95"], given["summary"]["psnr_ci95"]
    elif name == "a phase without a step, another of two parts":
        given["phases"][0]["steps"], given["phases"][1]["steps"] = "", "1-2,5"
    elif name == "schedules without a name":
        for point in given["frontier"]:
            point["name"] = ""
    elif name == "only the chosen one":
        given = record(points=1)
    elif name == "only one without error":
        given = record(points=1)
        given["frontier"][0]["error"] = 0.0
    return given


EDGES = [
    "zeros", "below zero and not a number", "single phase and layer", "every step a phase", "no psnr", "same videos",
    "one clip", "a phase without a step, another of two parts", "schedules without a name",
    "only the chosen one", "only one without error",
]  # fmt: skip
