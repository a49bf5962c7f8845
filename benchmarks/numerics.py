"""How far 8-bit attention is from exact attention, by what is rounded and how.

    python -m benchmarks.numerics --out benchmarks/results/numerics

Relative error, ‖o - exact‖ / ‖exact‖, of dense attention, head_dim 128, against float64: bfloat16 SDPA, and the
emulator of each variant of the kernel with one thing changed at a time. On synthetic data of several
lengths and on the q, k and v of the pocket model's own layers. Writes .json and .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.markdown import page
from fpsgen import files
from fpsgen.attention import dense, emulator
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.qk import QKTransform, prepare
from fpsgen.attention.sums import EXACT
from fpsgen.attention.tiles import TileGrid
from fpsgen.machine import provenance
from fpsgen.sampling import Denoiser
from fpsgen.wan import plan
from fpsgen.weights import models
from fpsgen.weights.load import load_text_encoder, load_transformer

LENGTHS = (1024, 4096, 8192, 32768)
ROWS, HEADS, HEAD_DIM, TILE = 256, 8, 128, 128
PROMPTS = ("a cat surfing", "a robot moving right in the city")
STEPS = {"early": 1, "middle": 10, "late": 20}  # of the pocket model's 20
METHODS = {
    "E4M3 (A)": "fp8-fp32",
    "E4M3, FP16 scores, half of P synthesised (C)": "fp8-fp16",
    "INT8 q and k, half of P synthesised (E)": "int8-int32",
}
# What is changed of the default: k smoothed, one scale per token of q, 13-bit sums promoted to float32.
CHANGES: dict[str, dict] = {
    "": {},
    "k not smoothed": {"smooth_k": False},
    "q scaled per tile": {"q_scale": "tile"},
    "one level of sums": {"one_level": True},
    "exact sums": {"sums": EXACT},
}
KINDS = {
    "gaussian": "All N(0, 1)",
    "peaky": "q and k twice as large, so that few keys matter",
    "outliers": "8 channels of q 4 times as large, an offset of 8 in 8 channels of k",
    "mean": "A mean of 1 in v, which is most of the output: what errors come to beside it",
    "pocket": "The pocket model at steps 1, 10 and 20 of 20",
}
Data = tuple[Tensor, Tensor, Tensor]


def synthetic(kind: str, length: int) -> Data:
    """q, k, v [1, length, heads, head_dim], all N(0, 1) but for what is said here.

    peaky: q and k are twice as large, so that few keys matter. outliers: 8 channels of q are 4 times as large, and in
    8 of k all tokens share an offset of 8 (what SageAttention2 finds in trained models). mean: v has a mean of 1.
    """
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, length, HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    if kind == "peaky":
        q, k = 2 * q, 2 * k
    if kind == "outliers":
        q[..., :8] *= 4
        k[..., 4:12] += 8 * torch.randn(HEADS, 8, generator=generator).sign()
    if kind == "mean":
        v += 1
    return q, k, v


def captured() -> Iterator[tuple[str, Data, TileGrid]]:
    """q, k, v of every self-attention of the pocket model at the STEPS; of the two guidance branches, the prompt's."""
    model, cpu = models.find("pocket"), torch.device("cpu")
    encoder = load_text_encoder(model.checkpoint, cpu, torch.bfloat16)
    transformer = load_transformer(model.checkpoint, cpu, torch.float32)
    seen: list[Data] = []

    def keep(module: torch.nn.Module, inputs: tuple) -> None:
        x, rope, _ = inputs
        q, k, v = (module.split(layer(x)) for layer in (module.q, module.k, module.v))
        transform = QKTransform(module.norm_q.weight, module.norm_k.weight, module.eps, rope)
        seen.append((prepare(q, transform.norm_q, transform), prepare(k, transform.norm_k, transform), v))

    for block in transformer.layers():
        block.self_attn.register_forward_pre_hook(keep)
    for prompt in PROMPTS:
        texts = [encoder.encode(text).text for text in (prompt, model.defaults.negative)]
        denoiser = Denoiser(transformer, model.defaults, texts, cpu)
        tiles = model.tiles(model.defaults.latent_shape)
        dense = plan.dense(tiles, transformer.config.num_layers)
        for moment in denoiser.run(denoiser.noise(seed=1), [dense] * model.defaults.steps):
            for name, step in STEPS.items():
                if moment.step + 1 == step:
                    yield from ((f"pocket, {name}", (q[:1], k[:1], v[:1]), tiles) for q, k, v in seen)
            seen.clear()


def methods() -> Iterator[tuple[str, str | None, dict]]:
    """Name, variant and change of each row."""
    yield "bf16 SDPA", None, {}
    for name, variant in METHODS.items():
        for change, options in CHANGES.items():
            yield f"{name}{', ' if change else ''}{change}", variant, options


def error(data: Data, tiles: TileGrid, rows: Tensor, exact: Tensor, variant: str | None, options: dict) -> float:
    """Relative error of one method on one data set."""
    q, k, v = data
    if variant is None:
        found = dense.attention(*(x.bfloat16() for x in (q[:, rows], k, v)))
    else:
        chosen = emulator.VARIANTS[variant]
        options = dict(options)
        plan = AttentionPlan(tiles, qk=chosen.qk, pv="fp8", smooth_k=options.pop("smooth_k", True))
        if options.pop("one_level", False):
            chosen = dataclasses.replace(chosen, promote=None)
        found = emulator.emulate(q, k, v, plan, chosen, rows=rows, **options)
    return float((found.double() - exact).norm() / exact.norm())


def measure() -> dict[str, dict[str, float]]:
    """Error by method and data set; of the pocket model's layers and prompts, the mean."""
    found: dict[str, dict[str, list[float]]] = {}

    def add(name: str, data: Data, tiles: TileGrid) -> None:
        rows = torch.arange(ROWS if len(tiles.valid) * TILE == tiles.tokens else tiles.tokens)
        exact = dense.attention(*(x.double() for x in (data[0][:, rows], data[1], data[2])))
        for method, variant, options in methods():
            value = error(data, tiles, rows, exact, variant, options)
            found.setdefault(method, {}).setdefault(name, []).append(value)

    for kind in list(KINDS)[:-1]:
        for length in LENGTHS:
            add(f"{kind}, {length}", synthetic(kind, length), TileGrid((1, 1, length), (1, 1, TILE)))
            print(kind, length, flush=True)
    for data in captured():
        add(*data)
    return {
        method: {name: round(sum(values) / len(values), 5) for name, values in columns.items()}
        for method, columns in found.items()
    }


def tables(results: dict[str, dict[str, float]]) -> str:
    """One table for each kind of data."""
    columns = list(next(iter(results.values())))
    text = ""
    for kind, title in KINDS.items():
        own = [column for column in columns if column.startswith(kind)]
        heads = [column.removeprefix(f"{kind}, ") for column in own]
        text += f"## {title}\n\n| method | {' | '.join(heads)} |\n{'| --- ' * (len(own) + 1)}|\n"
        for method, values in results.items():
            text += f"| {method} | {' | '.join(f'{values[column]:.4f}' for column in own)} |\n"
        text += "\n"
    return text.rstrip() + "\n"


def document(record: dict) -> str:
    """What is published, in Markdown."""
    head = page(
        "Error of 8-bit attention",
        """The tables show the relative error ‖o - exact‖ / ‖exact‖ of dense attention with head_dim 128; exact
        attention is computed in float64. The variants are those of the kernel (`fpsgen/attention/emulator.py`),
        emulated on a CPU. Unless a row says otherwise, k is smoothed, q has one scale for each token, k one for
        each tile and v one for each channel, and sums of FP8 products keep 13 bits. They are promoted to float32
        after every tile in variant fp8-fp32 (A), and after every fourth tile in fp8-fp16 (C) and int8-int32 (E).""",
        f"""Synthetic data have the distribution N(0, 1), except for what a heading says. They have {ROWS} query
        rows, {HEADS} heads and tiles of {TILE}; the columns are numbers of keys. The pocket model's table uses all
        420 rows of 3 heads and tiles of 8, and shows means over 6 layers and 2 prompts.""",
        f"`{' '.join(record['command'])}` makes this page.",
    )
    return head + tables(record["errors"])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/numerics"))
    args = parser.parse_args()
    begin = provenance(["python", "-m", "benchmarks.numerics", *sys.argv[1:]])
    record = {**begin, "errors": measure()}
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))
    print(tables(record["errors"]), end="")


if __name__ == "__main__":
    main()
