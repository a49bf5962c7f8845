"""What it costs in error if neighbouring query tiles share one list of key tiles, chosen by their joint mean.

    python -m benchmarks.pairs --out benchmarks/results/pairs

The pocket model, INT8, dense above noise level 0.9, then one `top` share with a summary in all layers and heads. Writes
.json and .md. In the product each query tile has a list of its own.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.calibration.contenders import after_start, attention_cost
from benchmarks.calibration.worker import Plans, Worker, job_for
from benchmarks.markdown import page
from benchmarks.pocket_plans import DENSE_ABOVE
from benchmarks.record import RESULTS
from fpsgen import files, metrics
from fpsgen.attention import select
from fpsgen.attention.plan import KeyTiles
from fpsgen.machine import provenance
from fpsgen.tables import Table
from recipes.pocket.evaluate import NOISE_SEED, prompts_for

SHARES, TOGETHER, CLIPS = (0.48, 0.27, 0.13), (1, 2, 4), 4
_ranked = select.ranked


def plans_of(share: float) -> Plans:
    """Dense at first, then the share with a summary."""
    job = job_for(1.0)
    dense = sum(sigma > DENSE_ABOVE for sigma in job.settings.noise_levels)
    return after_start(job, dense, KeyTiles(top=share, rest="summary"))


def joined(q_mean: Tensor, together: int) -> Tensor:
    """The means of query tiles, [batch, tiles, heads, head_dim], those of each few neighbours along W made one."""
    tiles = job_for(1.0).tiles
    wide = tiles.counts[2]
    row, along = torch.arange(len(tiles.valid)) // wide, torch.arange(len(tiles.valid)) % wide
    group = row * wide + along // together
    weights = (group[:, None] == group) * tiles.valid.float()
    return torch.einsum("ts,bshd->bthd", weights / weights.sum(1, keepdim=True), q_mean)


@torch.inference_mode()
def errors(number: int, prompt: str) -> list[list[float]]:
    """By share, then by how many tiles share a list."""
    clip, renderer = Worker.clip((prompt, NOISE_SEED + number))
    _, exact = renderer.render(clip, "dense", [renderer.dense] * renderer.settings.steps)
    found = []
    for share in SHARES:
        found.append([])
        for together in TOGETHER:
            select.ranked = lambda q_mean, k_mean: _ranked(joined(q_mean, together), k_mean)  # noqa: B023
            _, ours = renderer.render(clip, f"pairs {share} {together}", plans_of(share))
            found[-1].append(metrics.latent_error(ours, exact))
    return found


def document(record: dict) -> str:
    """What is published, in Markdown."""
    head = page(
        "Lists of key tiles that neighbouring query tiles share",
        f"""The pocket model renders {len(record["prompts"])} clips in INT8, dense in its first five steps, then with a
        share of the key tiles and a summary of the rest, in all layers and heads. Each query tile chooses for itself,
        or two or four neighbours along W choose by their joint mean. The error is 1 - cosine of the final latents to
        dense attention that is not rounded, a mean over the clips.""",
        f"`{' '.join(record['command'])}` makes this page.",
    )
    table = Table.of_numbers("", ["share", "cost of attention", *(f"{n} together" for n in TOGETHER)])
    for row in record["rows"]:
        table.row(f"{row['share']:g}", f"{row['cost']:.3f}", *(f"{sum(own) / len(own):.4f}" for own in row["errors"]))
    return head + table.markdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "pairs")
    args = parser.parse_args()
    begin = provenance(["python", "-m", "benchmarks.pairs", *sys.argv[1:]])  # of the code that is running
    prompts, _ = prompts_for(CLIPS, True, True)
    # Processes of their own: torch's threads do not survive a fork.
    with ProcessPoolExecutor(2, get_context("spawn"), Worker.start) as pool:
        found = torch.tensor(list(pool.map(errors, range(CLIPS), prompts)))  # [clips, shares, together]
    costs = [attention_cost(job_for(1.0), plans_of(share)) for share in SHARES]
    rows = [
        {"share": share, "cost": costs[index], "errors": found[:, index].T.tolist()}
        for index, share in enumerate(SHARES)
    ]
    record = {**begin, "prompts": prompts, "rows": rows}
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))
    print(document(record), end="")


if __name__ == "__main__":
    main()
