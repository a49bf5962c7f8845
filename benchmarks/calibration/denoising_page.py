"""The table and the picture that `python -m benchmarks.calibration.denoising` publishes."""

from __future__ import annotations

from itertools import groupby

from benchmarks.calibration.page import mean_ci95, named, ratio, shortfall
from benchmarks.markdown import page
from fpsgen.report import words
from fpsgen.report.pictures import drawing

# Aims of the protocol: PSNR of all together at a level.
LEAST_PSNR = {"middle": 30.0, "low": 24.0}
LOOKS = {
    "attention only": ("C0", "o"),
    "+ linear layers": ("C1", "v"),
    "+ guidance": ("C2", "^"),
    "+ reused steps": ("C4", "s"),
    "all": (drawing.INK, "*"),
    "fewer steps, bf16": (drawing.GREY, "x"),
    "fewer steps, int8": ("C3", "D"),
}
# A step: computed with both branches, with the conditional one and the difference again, with it alone, continued.
LETTERS = {"full, full": "F", "full, reuse": "g", "full, off": "o"}


def rows_of(record: dict) -> list[dict]:
    """One row for each contender: means with 95 % intervals, and the error over that of the level's fewer steps."""
    rows = []
    for own in record["contenders"]:
        (error, error_ci95), (psnr, psnr_ci95) = mean_ci95(own["error"]), mean_ci95(own["psnr"])
        rival = ratio(own["error"], named(record, own["level"], "fewer steps, int8")["error"])
        row = {key: own[key] for key in ("level", "name", "cost")}
        row |= {"steps": "".join(LETTERS.get(step, "-") for step in own["steps"])}
        row |= {"error": error, "error_ci95": error_ci95, "psnr": psnr, "psnr_ci95": psnr_ci95}
        rows.append(row | {"ratio": rival[0], "ratio_ci95": rival[1]})
    return rows


def table(record: dict) -> str:
    head = ["denoising at most", "contender", "cost", "error", "PSNR, dB", "of fewer steps in INT8", "steps"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in record["rows"]:
        low, high = row["ratio_ci95"]
        lines.append(
            f"| {record['levels'][row['level']]:.2f} | {row['name']} | {row['cost']:.3f} | "
            f"{row['error']:.4f} ± {row['error_ci95']:.4f} | {row['psnr']:.1f} ± {row['psnr_ci95']:.1f} | "
            f"{row['ratio']:.3f} ({low:.3f} to {high:.3f}) | `{row['steps']}` |"
        )
    return "\n".join(lines) + "\n"


def verdicts(record: dict) -> list[str]:
    """Of each aim of the protocol whether it is met, with the figures."""
    found = []
    for level, rows in groupby(record["rows"], key=lambda row: row["level"]):
        cells, cost = {row["name"].split(":")[0]: row for row in rows}, record["levels"][level]
        whole = cells["all"]
        if (aim := LEAST_PSNR.get(level)) is not None:
            met = "met" if whole["psnr"] >= aim else "not met"
            found.append(f"- At {cost:.2f}, all: {whole['psnr']:.1f} dB. The aim, {aim:g} dB, is {met}.")
        fewer = [row for name, row in cells.items() if name.startswith("fewer")]
        beaten = "are all worse" if all(row["error"] > whole["error"] for row in fewer) else "are not all worse"
        found.append(f"- At {cost:.2f}, fewer dense steps {beaten} than all.")
        parts = [row for name, row in cells.items() if row not in fewer and row is not whole]
        least = min(parts, key=lambda row: row["error"])
        told = f"{whole['error']:.4f}, and the best of the others, {least['name']}, {least['error']:.4f}"
        met = "met" if whole["error"] <= least["error"] else "not met"
        found.append(f"- At {cost:.2f}, the error of all is {told}. The aim, not to err more, is {met}.")
    return found


def document(record: dict) -> str:
    """What is published, in Markdown."""
    clips = len(record["prompts"])
    head = page(
        "One budget over the whole step",
        f"""The pocket model renders {clips} clips of held-out combinations with every contender, each clip from the
        same noise, in float32 on a CPU by the `reference` backend. [The protocol](../calibration/PROTOCOL.md), its
        third measurement, was committed before the run; it says who the contenders are.{shortfall(record)}""",
        """The cost is that of denoising, attention and linear layers of both branches in all steps, by a stated model
        (`fpsgen/presets/cost.py`) and as at 14B 720p, where BF16 in 20 steps has cost 1. The error is 1 - cosine of the
        final latents, and PSNR is that of the frames; both compare with dense attention in 20 steps that is not
        rounded, ± 95 % over the clips. The ratio is to the error of fewer dense steps in INT8 at that cost.""",
        """Steps: F computes both guidance branches; g the conditional one, and uses the difference of both again; o
        the conditional one, without guidance; - computes nothing and continues the velocities before it.""",
        f"`{' '.join(record['command'])}` makes this page and [a picture](../../docs/denoising.png).",
    )
    return head + "\n".join(verdicts(record)) + "\n\n" + table(record)


def picture(record: dict) -> bytes:
    """Error against cost."""
    with drawing.styled():
        figure = drawing.canvas(4.4)
        axes = figure.subplots()
        for name, (colour, marker) in LOOKS.items():
            rows = [row for row in record["rows"] if row["name"].split(":")[0] == name]
            axes.errorbar(
                [row["cost"] for row in rows], [row["error"] for row in rows], [row["error_ci95"] for row in rows],
                label=name, color=colour, marker=marker, markersize=9 if marker == "*" else 5, linewidth=1, capsize=2,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: words.power(value))
        axes.set(xlim=(0, None), xlabel="modelled cost of denoising (BF16 in 20 steps = 1)",
                 ylabel="error of the final latents")  # fmt: skip
        axes.grid(True)
        drawing.legend(figure, 4)
        return drawing.png(figure)
