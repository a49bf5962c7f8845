"""How far 8-bit linear layers are from exact ones, layer by layer of the pocket model.

    python -m benchmarks.linears --out benchmarks/results/linears

Relative error, ‖y - exact‖ / ‖exact‖, of what the layers put out, on what they are given at three steps of two
videos: of the FFN with both products rounded, of q, k and v together, of o. Writes .json and .md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from benchmarks.markdown import page
from benchmarks.numerics import CPU, PROMPTS, STEPS, renderings
from fpsgen import files
from fpsgen.attention.emulator import error
from fpsgen.machine import provenance
from fpsgen.wan.linear import rounded
from fpsgen.wan.plan import LinearPrecision
from fpsgen.wan.transformer import Block
from fpsgen.weights import models
from fpsgen.weights.load import load_transformer

GROUPS = {"FFN": "ffn", "q, k, v": "self_attn.q", "o": "self_attn.o"}  # and the module whose input they share
FORMATS: dict[str, LinearPrecision] = {"E4M3": "fp8", "INT8": "int8"}


def outputs(block: Block, group: str, x: Tensor, precision: LinearPrecision) -> Tensor:
    """What a group of a block's linear layers makes of x."""
    if group == "FFN":
        return block.ffn(x, precision)
    own, given = block.self_attn, rounded(x, precision)
    return torch.cat([layer(given) for layer in ((own.o,) if group == "o" else (own.q, own.k, own.v))], -1)


@torch.inference_mode()
def measure() -> dict[str, list[dict[str, float]]]:
    """By group and format: the error in each layer, by step, a mean over the prompts; in bfloat16 beside it."""
    model = models.find("pocket")
    dtypes = torch.float32, torch.float32, torch.bfloat16
    watched, exact, half = (load_transformer(model.checkpoint, CPU, dtype) for dtype in dtypes)
    given: dict[tuple[int, str], Tensor] = {}

    def keep(number: int, group: str) -> Callable[[nn.Module, tuple], None]:
        return lambda _, inputs: given.update({(number, group): inputs[0][:1]})  # of the two branches the prompt's

    for number, block in enumerate(watched.layers()):
        for group, name in GROUPS.items():
            block.get_submodule(name).register_forward_pre_hook(keep(number, group))
    layers = model.config.num_layers
    found: dict[str, list[dict[str, list[float]]]] = {
        f"{group}, {name}": [{} for _ in range(layers)] for group in GROUPS for name in (*FORMATS, "bfloat16")
    }
    for step in filter(None, renderings(model, watched)):
        for (number, group), x in given.items():
            blocks = [list(each.layers())[number] for each in (exact, half)]
            wanted = outputs(blocks[0], group, x, "16bit")
            made = {name: outputs(blocks[0], group, x, kind) for name, kind in FORMATS.items()}
            made["bfloat16"] = outputs(blocks[1], group, x.bfloat16(), "16bit")
            for name, own in made.items():
                found[f"{group}, {name}"][number].setdefault(step, []).append(error(own, wanted))
    return {
        row: [{step: round(fmean(errors), 5) for step, errors in layer.items()} for layer in layers]
        for row, layers in found.items()
    }


def document(record: dict) -> str:
    """What is published, in Markdown."""
    head = page(
        "Error of 8-bit linear layers",
        f"""The table shows the relative error ‖y - exact‖ / ‖exact‖ of the output of linear layers of the pocket
        model, in float32 but for what is rounded: input and weights, with one scale for each token and one for each
        output row (`fpsgen/wan/linear.py`). Each layer is given what it gets in exact videos, so that errors of
        layers before it do not count. Both products of the FFN are rounded. Inputs are those of steps
        {", ".join(str(step) for step in STEPS.values())} of 20 of {len(PROMPTS)} prompts. Rows of bfloat16 show the
        error of 16-bit linear layers, for comparison.""",
        f"`{' '.join(record['command'])}` makes this page.",
    )
    rows = record["errors"]
    layers = range(len(next(iter(rows.values()))))
    columns = [*(f"layer {number}" for number in layers), *STEPS]
    lines = [f"| | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for name, own in rows.items():
        values = [fmean(layer.values()) for layer in own] + [fmean(layer[step] for layer in own) for step in STEPS]
        lines.append(f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} |")
    return head + "\n".join([*lines, "", "Columns of layers are means over steps, those of steps over layers.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/linears"))
    args = parser.parse_args()
    record = {**provenance(["python", "-m", "benchmarks.linears", *sys.argv[1:]]), "errors": measure()}
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))
    print(document(record), end="")


if __name__ == "__main__":
    main()
