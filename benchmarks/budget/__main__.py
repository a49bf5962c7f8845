"""Where the time of a video goes on a card, on paper: no GPU is needed, or asked.

    python -m benchmarks.budget --model 14b --res 720p --card h100

For each part of a step, and of what is done once: operations; bytes, as PyTorch moves them, with our kernels between
products, and at least; the floor, which tensor cores or memory take at their peak; and the time by a model, without and
with what changes a part. Then the whole video, with each switch alone and with all of them. Where a record in
benchmarks/results is of the card, what was measured stands beside the model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.budget import measured
from benchmarks.budget.model import CARDS, SWITCHES, Card, Rates, Video, floor
from benchmarks.budget.parts import Part
from fpsgen.cli.output import Output
from fpsgen.errors import UsageError
from fpsgen.presets import shipped
from fpsgen.tables import Table
from fpsgen.wan import config, sizes
from fpsgen.weights.models import absent

# What changes the time of a part; other switches change how many forward passes there are.
WITHIN = {"bf16": (), "preset": ("preset",), "linear": ("linear",), "fused": ("fused",)}
WITHIN |= {"all": ("preset", "linear", "fused")}
# What is on in rows of the whole video.
VIDEOS = {"bf16": (), **{words: (one,) for one, words in SWITCHES.items()}}
VIDEOS |= {"linear layers in FP8, rounded by our kernels": ("linear", "fused"), "all": tuple(SWITCHES)}
# Counts of a part's work: how a table has them.
UNITS = {
    "flops": ("TFLOP", 1e12),
    "moved_bytes": ("GB, PyTorch", 1e9),
    "fused_bytes": ("GB, our kernels", 1e9),
    "least_bytes": ("GB, least", 1e9),
}
NOTE = (
    "published rates of an H100, the same shares of other cards' peaks, and no time between kernels; fpsgen's own "
    "kernels run on Hopper GPUs, and other cards' are taken to be as good"
)
Row = Mapping[str, Any]


def video(key: str, res: str, preset: str) -> Video:
    """UsageError for a size that the model cannot render, and for a preset that does not fit."""
    width, height = sizes.parse_resolution(res)
    model = absent(key)
    settings = model.defaults.override(width=width, height=height)
    settings.check()
    own = shipped.of_grade(preset, key, width, height) if preset in shipped.GRADES else shipped.find(preset)
    own.steps(model, settings)
    return Video(model, settings, own)


def budget(own: Video, card: Card) -> dict[str, Any]:
    """All of it, as JSON has it: of a step with all its guidance branches; of what is done once; of the video."""
    rates, settings = Rates.of(card), own.settings
    expected = {name: own.expected(rates, on) for name, on in WITHIN.items()}

    def row(part: Part, branches: int, steps: int, names: Iterable[str]) -> dict[str, Any]:
        work = {key: branches * getattr(part, key) for key in UNITS}
        floors = {"floor_s": branches * floor(part, card, 16), "floor_8bit_s": branches * floor(part, card, 8)}
        modelled = {f"model_{name}_s": expected[name][part.name] / steps for name in names}
        return {"name": part.name, **work, **floors, **modelled}

    step = [row(part, settings.branches, settings.steps, WITHIN) for part in own.forward_pass]
    once = [row(part, 1, 1, ["bf16"]) for part in own.once]
    totals = {words: sum(own.expected(rates, on).values()) for words, on in VIDEOS.items()}
    base = totals["bf16"]
    totals["bf16, were self-attention for nothing"] = base - expected["bf16"]["self-attention"]
    whole = [{"name": words, "model_s": taken, "model_speedup": base / taken} for words, taken in totals.items()]
    known = measured.seconds(card, own)
    for one in step + whole:
        one |= {"measured_s": known[one["name"]]} if one["name"] in known else {}
    about = {"model": own.model.name, "size": settings.size, "frames": settings.frames, "tokens": own.tiles.tokens}
    about |= {"steps": settings.steps, "branches": settings.branches, "preset": own.preset.name}
    parts = {"step": step, "launches": own.launches, "once": once, "video": whole}
    return {"about": about, "card": asdict(card), "model": NOTE, "model_rates": asdict(rates), **parts}


def table(title: str, rows: Sequence[Row], second: float) -> Table:
    """The columns that any of the rows has. second: what a second is divided by."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    heads = [UNITS[key][0] if key in UNITS else key.removesuffix("_s").replace("_", " ") for key in keys]

    def told(row: Row, key: str) -> str:
        if isinstance(value := row.get(key, ""), str):
            return value
        value /= UNITS[key][1] if key in UNITS else second if key.endswith("_s") else 1
        return f"{value:,.{0 if value >= 100 else 2}f}" if value else "-"

    return Table.of_numbers(title, heads, rows=[[told(row, key) for key in keys] for row in rows])


def launches(found: Mapping[str, float]) -> str:
    host, between, in_graphs = (1e3 * found[f"model_{name}_s"] for name in ("host", "between", "between_in_graphs"))
    told = f"In bf16 this step launches {found['kernels']:,} kernels. By the model that takes the host {host:.1f} ms, "
    return f"{told}and between them the GPU is idle for {between:.1f} ms, as CUDA graphs for {in_graphs:.1f} ms."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.budget", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [name for name, shapes in config.SHAPES.items() if not shapes.time_per_token]  # whose VAE is in `parts`
    parser.add_argument("--model", choices=known, default="14b")
    parser.add_argument("--res", default="720p", help="480p, 720p or WIDTHxHEIGHT")
    parser.add_argument("--card", choices=CARDS, default="h100")
    parser.add_argument("--preset", default="balanced", help="a grade, a preset's name or its file")
    parser.add_argument("--json", action="store_true", help="one JSON object, times in seconds, instead of tables")
    args = parser.parse_args(arguments)
    output, card = Output(json=args.json), CARDS[args.card]
    try:
        own = video(args.model, args.res, args.preset)
    except UsageError as fault:
        output.error(f"{fault}", fault.marked_hint, fault.exit_code)
        return fault.exit_code
    found = budget(own, card)
    if args.json:
        output.result("", found)
        return 0
    whole = {key: sum(row[key] for row in found["step"]) for key in found["step"][0] if key.endswith("_s")}
    what = "{model} at {size}, {frames} frames, {branches} guidance branches".format(**found["about"])
    output.show(table(f"One of {own.settings.steps} steps of {what}, on the {card.name}: milliseconds",
                      [*found["step"], {"name": "together", **whole}], 1e-3))  # fmt: skip
    output.line(launches(found["launches"]))
    output.show(table("Once in a video: milliseconds", found["once"], 1e-3))
    output.show(table(f"The whole video, preset {own.preset.name}: seconds", found["video"], 1))
    output.line(f"Peaks without sparsity: {card}")
    output.line(f"Times are a model, not a measurement: {NOTE}.")
    if not any("measured_s" in row for row in found["step"] + found["video"]):
        output.line(f"benchmarks/results has no record of this video on the {card.name}: nothing is measured.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
