"""How far 8-bit attention is from exact attention, by what is rounded and how.

    python -m benchmarks.numerics --out benchmarks/results/numerics

Relative error, ‖o - exact‖ / ‖exact‖, of dense attention, head_dim 128, against float64: bfloat16 SDPA, and the
emulator of each variant of the kernel with one thing changed at a time. On synthetic data of several
lengths and on the q, k and v of the pocket model's own layers. Also how far the rules that a card's FP8 sums may obey
are apart (`fpsgen/attention/sums.py`). Writes .json and .md.
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
from fpsgen.attention import dense, emulator, sums
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.qk import QKTransform, prepare
from fpsgen.attention.tiles import TileGrid
from fpsgen.machine import provenance
from fpsgen.sampling import Denoiser
from fpsgen.wan import plan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import models
from fpsgen.weights.load import load_text_encoder, load_transformer
from fpsgen.weights.models import Model

CPU = torch.device("cpu")
LENGTHS = (1024, 4096, 8192, 32768)
ROWS, HEADS, HEAD_DIM, TILE = 64, 8, 128, 128
MOST_KEYS_OF_RULES = 4096
PROMPTS = ("a cat surfing", "a robot moving right in the city")
STEPS = {"early": 1, "middle": 10, "late": 20}  # of the pocket model's 20
METHODS = {
    "E4M3 (A)": "fp8-fp32",
    "E4M3, FP16 scores, P synthesised (C)": "fp8-fp16",
    "INT8 q and k, P synthesised (E)": "int8-int32",
}
# What is changed of the default: k smoothed, sums by Hopper's rule, promoted to float32.
CHANGES: dict[str, dict] = {
    "": {},
    "k not smoothed": {"smooth_k": False},
    "one level of sums": {"one_level": True},
    "exact sums": {"sums": sums.EXACT},
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


def renderings(model: Model, transformer: WanTransformer) -> Iterator[str]:
    """Render each of the PROMPTS by the pocket model, dense and not rounded; yields the names of the STEPS, and "" for
    others, when they are done."""
    encoder = load_text_encoder(model.checkpoint, CPU, torch.bfloat16)
    names = {step: name for name, step in STEPS.items()}
    for prompt in PROMPTS:
        texts = [encoder.encode(text).text for text in (prompt, model.defaults.negative)]
        denoiser = Denoiser(transformer, model.defaults, texts, CPU)
        dense = plan.dense(model.tiles(model.defaults.latent_shape), transformer.config.num_layers)
        for moment in denoiser.run(denoiser.noise(seed=1), [dense] * model.defaults.steps):
            yield names.get(moment.step + 1, "")


def captured() -> Iterator[tuple[str, Data, TileGrid]]:
    """q, k, v of every self-attention of the pocket model at the STEPS; of the two guidance branches, the prompt's."""
    model = models.find("pocket")
    transformer, tiles = (
        load_transformer(model.checkpoint, CPU, torch.float32),
        model.tiles(model.defaults.latent_shape),
    )
    seen: list[Data] = []

    def keep(module: torch.nn.Module, inputs: tuple) -> None:
        x, rope = inputs[:2]
        q, k, v = (module.split(layer(x)) for layer in (module.q, module.k, module.v))
        transform = QKTransform(module.norm_q.weight, module.norm_k.weight, module.eps, rope)
        seen.append((prepare(q, transform.norm_q, transform), prepare(k, transform.norm_k, transform), v))

    for block in transformer.layers():
        block.self_attn.register_forward_pre_hook(keep)
    for name in renderings(model, transformer):
        if name:
            yield from ((f"pocket, {name}", (q[:1], k[:1], v[:1]), tiles) for q, k, v in seen)
        seen.clear()


def methods() -> Iterator[tuple[str, str | None, dict]]:
    """Name, variant and change of each row."""
    yield "bf16 SDPA", None, {}
    for name, variant in METHODS.items():
        for change, options in CHANGES.items():
            yield f"{name}{', ' if change else ''}{change}", variant, options


def attended(data: Data, tiles: TileGrid, rows: Tensor, variant: str | None, options: dict) -> Tensor:
    """What one method computes of one data set."""
    q, k, v = data
    if variant is None:
        return dense.attention(*(x.bfloat16() for x in (q[:, rows], k, v)))
    chosen, options = emulator.VARIANTS[variant], dict(options)
    plan = AttentionPlan(tiles, qk=chosen.qk, pv="fp8", smooth_k=options.pop("smooth_k", True))
    if options.pop("one_level", False):
        chosen = dataclasses.replace(chosen, promote=None)
    return emulator.emulate(q, k, v, plan, chosen, rows=rows, **options)


def measure() -> dict[str, dict[str, dict[str, float]]]:
    """errors: to exact attention, by method and data set; rules: how far what a variant computes is from that by the
    likeliest rule of FP8 sums, by variant and rule, and data set. Of the pocket model's layers and prompts the mean."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {"errors": {}, "rules": {}}

    def note(table: str, row: str, column: str, value: float) -> None:
        found[table].setdefault(row, {}).setdefault(column, []).append(value)

    def add(name: str, data: Data, tiles: TileGrid) -> None:
        rows = torch.arange(ROWS if len(tiles.valid) * TILE == tiles.tokens else tiles.tokens)
        exact = dense.attention(*(x.double() for x in (data[0][:, rows], data[1], data[2])))
        likeliest = {}
        for method, variant, options in methods():
            out = attended(data, tiles, rows, variant, options)
            note("errors", method, name, emulator.error(out, exact))
            likeliest.setdefault(variant, out)
        for method, variant in METHODS.items() if tiles.tokens <= MOST_KEYS_OF_RULES else ():
            rules = sums.rules(fp16=emulator.VARIANTS[variant].scores == "fp16")
            for rule, chosen in list(rules.items())[1:]:
                out = attended(data, tiles, rows, variant, {"sums": chosen})
                note("rules", f"{method}, {rule}", name, emulator.error(out, likeliest[variant]))

    for kind in list(KINDS)[:-1]:
        for length in LENGTHS:
            add(f"{kind}, {length}", synthetic(kind, length), TileGrid((1, 1, length), (1, 1, TILE)))
            print(kind, length, flush=True)
    for data in captured():
        add(*data)
    return {
        table: {
            row: {name: round(sum(values) / len(values), 5) for name, values in columns.items()}
            for row, columns in rows.items()
        }
        for table, rows in found.items()
    }


def tables(record: dict) -> str:
    """One table for each kind of data, and one of the rules."""
    results, rules = record["errors"], record["rules"]
    columns = list(next(iter(results.values())))
    text = ""
    for kind, title in KINDS.items():
        own = [column for column in columns if column.startswith(kind)]
        text += f"## {title}\n\n" + table(
            "method", results, {column: column.removeprefix(f"{kind}, ") for column in own}
        )
    text += """## The rules that FP8 sums may obey

How far results are from those by the likeliest rule. Which of these rules Hopper obeys is not known
(`fpsgen/attention/sums.py`); a kernel is right if it agrees with one of them.

"""
    text += table("rule", rules, {column: column for column in next(iter(rules.values()))})
    return text.rstrip() + "\n"


def table(head: str, rows: dict[str, dict[str, float]], columns: dict[str, str]) -> str:
    """Markdown, and an empty line. columns: from keys of a row to what stands above them."""
    text = f"| {head} | {' | '.join(columns.values())} |\n{'| --- ' * (len(columns) + 1)}|\n"
    for name, values in rows.items():
        text += f"| {name} | {' | '.join(f'{values[column]:.4f}' for column in columns)} |\n"
    return text + "\n"


def document(record: dict) -> str:
    """What is published, in Markdown."""
    head = page(
        "Error of 8-bit attention",
        """The tables show the relative error ‖o - exact‖ / ‖exact‖ of dense attention with head_dim 128; exact
        attention is computed in float64. The variants are those of the kernel (`fpsgen/attention/emulator.py`),
        emulated on a CPU. Unless a row says otherwise, k is smoothed, q has one scale for each token, k one for
        each tile and v one for each channel, and FP8 products and their sums keep 13 bits, as on Hopper. Sums are
        promoted to float32 after every tile in variant fp8-fp32 (A), and after every fourth tile in fp8-fp16 (C) and
        int8-int32 (E).""",
        f"""Synthetic data have the distribution N(0, 1), except for what a heading says. They have
        {record["rows"]} query rows, {HEADS} heads and tiles of {TILE}; the columns are numbers of keys. The
        pocket model's table uses all 420 rows of 3 heads and tiles of 8, and shows means over 6 layers and 2
        prompts.""",
        f"`{' '.join(record['command'])}` makes this page.",
    )
    return head + tables(record)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/numerics"))
    args = parser.parse_args()
    begin = provenance(["python", "-m", "benchmarks.numerics", *sys.argv[1:]])
    record = {**begin, "rows": ROWS, **measure()}
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))
    print(tables(record), end="")


if __name__ == "__main__":
    main()
