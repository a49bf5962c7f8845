"""The table that `python -m benchmarks.calibration` publishes."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.markdown import page
from benchmarks.record import RESULTS

# Aims of the protocol: against what calibrated windows had in the first measurement, and against fewer steps.
OF_WINDOWS, OF_FEWER_STEPS, LEAST_PSNR = 1 / 5, 1 / 2, 20.0
DRAWS = 10_000


def rows_of(record: dict) -> list[dict]:
    """One row for each contender: means with 95 % intervals, and error over that of the level's fewer steps."""
    rows = []
    for own in record["contenders"]:
        error, psnr = mean_ci95(own["error"]), mean_ci95(own["psnr"])
        row = {key: own[key] for key in ("level", "name", "steps", "cost", "video_cost", "density")}
        row |= {"error": error[0], "error_ci95": error[1], "psnr": psnr[0], "psnr_ci95": psnr[1]}
        if own["level"]:
            row["ratio"], row["ratio_ci95"] = ratio(own["error"], named(record, own["level"], "fewer steps")["error"])
        rows.append(row)
    return rows


def named(record: dict, level: str, name: str) -> dict:
    """The contender of a level whose name begins so."""
    return next(own for own in record["contenders"] if own["level"] == level and own["name"].startswith(name))


def mean_ci95(values: list[float]) -> tuple[float, float]:
    """The mean, and 1.96 standard errors: what PROTOCOL.md fixed before anything was measured."""
    return float(np.mean(values)), float(1.96 * np.std(values, ddof=1) / len(values) ** 0.5)


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, list[float]]:
    """The ratio of the means, with a 95 % interval by bootstrap over the clips."""
    a, b = np.array(ours), np.array(theirs)
    picked = np.random.default_rng(0).integers(len(a), size=(DRAWS, len(a)))
    drawn = a[picked].mean(1) / b[picked].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(a.mean() / b.mean()), [float(low), float(high)]


def of_windows(level: str) -> float | None:
    """The error of calibrated windows in the first measurement; None where it had no such level."""
    first = json.loads((RESULTS / "calibration-windows.json").read_text(encoding="utf-8"))
    every = (row["error"] for row in first["rows"] if (row["level"], row["name"]) == (level, "calibrated"))
    return next(every, None)


def table(record: dict) -> str:
    head = ["attention at most", "contender", "attention", "video", "density", "error", "PSNR, dB", "of fewer steps"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in record["rows"]:
        level = f"{record['levels'][row['level']]:.3f}" if row["level"] else "-"
        low, high = row.get("ratio_ci95", (0, 0))
        compared = f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})" if "ratio" in row else "-"
        lines.append(
            f"| {level} | {row['name']} | {row['cost']:.3f} | {row['video_cost']:.3f} | {row['density']:.3f} | "
            f"{row['error']:.4f} ± {row['error_ci95']:.4f} | {row['psnr']:.1f} ± {row['psnr_ci95']:.1f} | {compared} |"
        )
    return "\n".join(lines) + "\n"


def verdicts(record: dict) -> list[str]:
    """Of each aim of the protocol whether it is met, with the figures."""
    cells = {(row["level"], row["name"].split(":")[0]): row for row in record["rows"]}
    found = []
    for level, cost in record["levels"].items():
        own = cells[level, "calibrated"]
        if (before := of_windows(level)) is not None:
            share = own["error"] / before
            said, aim, met = f"{share:.2f} of the first measurement's error", f"{OF_WINDOWS:g}", share <= OF_WINDOWS
        else:
            said, aim, met = f"a PSNR of {own['psnr']:.1f} dB", f"{LEAST_PSNR:g} dB", own["psnr"] >= LEAST_PSNR
        found.append(f"- At {cost:.3f}, calibrated: {said}. The aim, {aim}, is {'met' if met else 'not met'}.")
        best = min((own, cells[level, "calibrated, fewer steps"]), key=lambda row: row["error"])
        met = "met" if best["ratio"] <= OF_FEWER_STEPS else "not met"
        said = f"{best['ratio']:.2f} of fewer steps' error"
        found.append(f"- At {cost:.3f}, {best['name']}: {said}. The aim, {OF_FEWER_STEPS:g}, is {met}.")
    return found


def shortfall(record: dict) -> str:
    """What a page says where not all of the protocol's clips were rendered."""
    clips, planned = len(record["prompts"]), record["planned_clips"]
    return "" if clips == planned else f" Only the first {clips} of its {planned} clips had been rendered."


def document(record: dict) -> str:
    """What is published, in Markdown."""
    clips = len(record["prompts"])
    head = page(
        "Is calibration worth it?",
        f"""The pocket model renders {clips} clips of held-out combinations with every contender, each clip from the
        same noise, in float32 on a CPU by the `reference` backend. [The protocol](../calibration/PROTOCOL.md) was
        committed before the measurement; it says who the contenders are.{shortfall(record)}""",
        """The costs are those of a stated model (`fpsgen/presets/cost.py`), not of a clock: of attention alone, where
        dense BF16 attention in 20 steps has cost 1, and of the whole video, where linear layers count as at 14B 720p.
        The error is 1 - cosine of the final latents, and PSNR is that of the frames. Both compare with dense attention
        in 20 steps that is not rounded, ± 95 % over the clips. The last column is the mean error divided by that of
        fewer steps of dense INT8 attention at that cost, with a 95 % interval by bootstrap.""",
        f"`{' '.join(record['command'])}` makes this page.",
    )
    return head + "\n".join(verdicts(record)) + "\n\n" + table(record)
