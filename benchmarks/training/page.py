"""The page of a record: what training-free attention loses, and how much of that training wins back."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.markdown import page
from fpsgen.metrics import mean_ci95, psnr
from fpsgen.tables import Table

FREE, DENSE = "training-free", "dense"
MEASURES = {"error": "latent error", "apart": "difference of frames", "network": "network", "templates": "templates"}


def row_of(record: dict, plan: str, column: str) -> dict:
    return next(row for row in record["rows"] if (row["plan"], row["column"]) == (plan, column))


def recovered(record: dict, plan: str, column: str, measure: str) -> float | None:
    """The share of what training-free attention lost that training won back, of the means over the clips; None where
    nothing was lost."""
    dense, free, ours = (
        fmean(record["dense"][measure] if who == DENSE else row_of(record, plan, who)[measure])
        for who in (DENSE, FREE, column)
    )
    lost = free - dense
    worse = lost > 0 if measure in ("error", "apart") else lost < 0
    return (free - ours) / lost if worse else None


def told(values: Sequence[float], digits: int) -> str:
    mean, half = mean_ci95(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def document(record: dict) -> str:
    """What is published, in Markdown."""
    took = f", in {record['seconds'] / 60:.0f} minutes" if record["seconds"] else ""
    head = page(
        "Training through a preset: what it wins back",
        f"""{len(record["prompts"])} clips of combinations that neither the pocket model nor these trainings have seen,
        each rendered from the same noise: with dense attention, with a plan and the model as it was (training-free),
        and with the plan and the model trained for it, on {record["clips"]} clips that the dense model made. All
        trainings saw as many samples: {record["steps"]} steps of {record["batch"]}. Distillation compares guided
        velocities, but where it says unguided. Counting forward passes, of which a backward pass is two, a sample
        takes 3 in flow matching, 4 in unguided distillation, and 8 in guided distillation. PROTOCOL.md says what is
        compared, and was written before. The error is 1 - cosine of the final latents, and PSNR is that of the
        frames, both against dense attention of the model as it was. The judges say in how many clips subject, motion
        and scene are what the prompt says.
        ± 95 %, by Student's t over the clips.""",
        f"`{' '.join(record['command'])}` makes this page{took}.",
    )
    table = Table.of_numbers("", ["plan", "model", "latent error", "PSNR, dB", "network", "templates"])
    own = record["dense"]
    table.row("dense", "as it was", "0", "", told(own["network"], 2), told(own["templates"], 2))
    for row in record["rows"]:
        psnrs = [psnr(apart) for apart in row["apart"]]
        judges = told(row["network"], 2), told(row["templates"], 2)
        table.row(
            f"{row['plan']}, cost {row['cost']:.3f}", row["column"], told(row["error"], 4), told(psnrs, 1), *judges
        )
    shares = Table.of_numbers("", ["plan", "model", *MEASURES.values()])
    for row in record["rows"]:
        if row["column"] != FREE:
            each = [recovered(record, row["plan"], row["column"], measure) for measure in MEASURES]
            shares.row(row["plan"], row["column"], *("nothing lost" if one is None else f"{one:.0%}" for one in each))
    middle = page(
        "How much of the loss is won back",
        """The share of what the plan lost without training, of the means above; the difference of frames is their mean
        squared one, since dense attention has no PSNR to itself. Less than 0 is worse than without training.""",
    ).removeprefix("# ")
    return f"{head}{table.markdown()}\n## {middle}{shares.markdown()}"
