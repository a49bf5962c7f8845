"""The table that `python -m benchmarks.calibration` publishes."""

from __future__ import annotations

import numpy as np

from benchmarks.markdown import page

AIM = 0.7
DRAWS = 10_000


def rows_of(record: dict) -> list[dict]:
    """One row for each contender: means with 95 % intervals, and error over that of the level's best uniform plan."""
    rows = []
    best = {level: best_uniform(record, level) for level in record["levels"]}
    for own in record["contenders"]:
        error, psnr = mean_ci95(own["error"]), mean_ci95(own["psnr"])
        row = {key: own[key] for key in ("level", "name", "cost", "density")}
        row |= {"error": error[0], "error_ci95": error[1], "psnr": psnr[0], "psnr_ci95": psnr[1]}
        if not own["level"]:  # at a cost of its own: beside the level nearest to it
            row["level"] = min(record["levels"], key=lambda level: abs(record["levels"][level] - own["cost"]))
        if not own["name"].startswith("uniform"):
            row["ratio"], row["ratio_ci95"] = ratio(own["error"], best[row["level"]]["error"])
        row["best_uniform"] = own is best[row["level"]]
        rows.append(row)
    order = list(record["levels"])
    return sorted(rows, key=lambda row: order.index(row["level"]))


def mean_ci95(values: list[float]) -> tuple[float, float]:
    """The mean, and 1.96 standard errors: what PROTOCOL.md fixed before anything was measured."""
    return float(np.mean(values)), float(1.96 * np.std(values, ddof=1) / len(values) ** 0.5)


def best_uniform(record: dict, level: str) -> dict:
    """The uniform plan of a level that errs least on the held-out clips, in its own favour."""
    own = [one for one in record["contenders"] if one["level"] == level and one["name"].startswith("uniform")]
    return min(own, key=lambda one: float(np.mean(one["error"])))


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, list[float]]:
    """The ratio of the means, with a 95 % interval by bootstrap over the clips."""
    a, b = np.array(ours), np.array(theirs)
    picked = np.random.default_rng(0).integers(len(a), size=(DRAWS, len(a)))
    drawn = a[picked].mean(1) / b[picked].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(a.mean() / b.mean()), [float(low), float(high)]


def table(record: dict) -> str:
    lines = ["| cost at most | attention | cost | density | error | PSNR, dB | of best uniform |", "| --- " * 7 + "|"]
    for row in record["rows"]:
        within = row["cost"] <= record["levels"][row["level"]] + 1e-9
        level = f"{record['levels'][row['level']]:.3f}" if within else "beyond it"
        if "ratio" in row:
            compared = f"{row['ratio']:.3f} ({row['ratio_ci95'][0]:.3f} to {row['ratio_ci95'][1]:.3f})"
        else:
            compared = "1" if row["best_uniform"] else "-"
        lines.append(
            f"| {level} | {row['name']} | {row['cost']:.3f} | {row['density']:.3f} | "
            f"{row['error']:.4f} ± {row['error_ci95']:.4f} | {row['psnr']:.1f} ± {row['psnr_ci95']:.1f} | {compared} |"
        )
    return "\n".join(lines) + "\n"


def verdict(record: dict) -> str:
    ours = [row for row in record["rows"] if row["name"] == "calibrated"]
    worst = max(row["ratio"] for row in ours)
    met = "met" if worst <= AIM else "not met"
    return f"The aim, a calibrated error of at most {AIM} of the best uniform plan's, is {met}: {worst:.3f} at worst."


def document(record: dict) -> str:
    """What is published, in Markdown."""
    clips, planned = len(record["prompts"]), record["planned_clips"]
    short = "" if clips == planned else f" Only the first {clips} of its {planned} clips had been rendered."
    head = page(
        "Is calibration worth it?",
        f"""The pocket model renders {clips} clips of held-out combinations with every contender, each clip from the
        same noise, in float32 on a CPU by the `reference` backend. [The protocol](../calibration/PROTOCOL.md) was
        committed before the first calibration.{short} {verdict(record)}""",
        """The cost is that of attention, and dense BF16 attention has cost 1; a stated model gives it
        (`fpsgen/presets/cost.py`), not a clock. The error is 1 - cosine of the final latents, and PSNR is that of the
        frames. Both compare with dense attention that is not rounded, ± 95 % over the clips. The last column is the
        mean error divided by the mean error of the best uniform plan at that cost, with a 95 % interval by
        bootstrap.""",
        """The rows `without steps`, `without layers` and `without heads` use the same measurements and the same
        solver, but make one choice for all steps, all layers, or all heads of a layer.""",
        """The protocol did not plan the row `dense, int8`, which computes every pair in 8 bits. It stands beside the
        level that is closest to its cost, as `paper` does. Uniform plans are the best two of their level on the
        calibration clips.""",
        f"`{' '.join(record['command'])}` makes this page.",
    )
    return head + table(record)
