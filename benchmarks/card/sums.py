"""What FP8 wgmmas add up to: raw results, and which of `rules` they obey.

    python -m benchmarks.card.sums --out FOLDER

Rows of A by rows of B over 32 bytes along K, 64 wgmmas of m64n128k32, so that 4,096 rows of A meet 128 rows of B each,
with FP32 and with FP16 sums, each with and without an accumulator. Writes sums.json and sums.safetensors, which has for
each of these kinds a and b (E4M3 [n, rows, 32]), c and d ([n, 64, 128]).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.card import cubins
from benchmarks.card.rules import equal_shares
from fpsgen import files
from fpsgen.attention.sums import cut
from fpsgen.kernels.launch import packed

SOURCE = Path(__file__).with_name("sums.cu")
PARAMETERS = np.dtype([(name, "u8") for name in "abcd"])
BLOCKS, STEPS, THREADS, A_ROWS, B_ROWS, K = 16, 4, 128, 64, 128, 128
LARGEST = {"f32": 448.0, "f16": 16.0}  # of an operand; with 16, sums fit in FP16
ACCUMULATORS = {"f32": torch.float32, "f16": torch.float16}
Numbers = Callable[..., Tensor]


def operands(block: int, kind: str) -> tuple[Tensor, Tensor]:
    """E4M3 [64, 128] and [128, 128], seeded; each fourth block has another of four patterns."""
    generator = torch.Generator().manual_seed(block)
    largest = LARGEST[kind]

    def wide(rows: int, least: float = -9) -> Tensor:
        """Numbers of all exponents alike, down to the least subnormal one."""
        octaves = least + (np.log2(largest) - least) * torch.rand(rows, K, generator=generator)
        return octaves.exp2() * (2 * torch.randint(2, (rows, K), generator=generator) - 1)

    a, b = wide(A_ROWS), wide(B_ROWS)
    pattern = block % 4
    if pattern == 0:  # as products in attention
        a, b = (torch.randn(x.shape, generator=generator) * largest / 5 for x in (a, b))
    if pattern == 1:  # each product is nearly taken back by the next one
        a[:, 1::2], b[:, 1::2] = a[:, ::2], -b[:, ::2]
        a[:, 1::8] *= 1.125
    if pattern == 2:  # subnormal numbers by any others
        a = wide(A_ROWS, -12).clamp(-(2.0**-6), 2.0**-6)
    return tuple(x.clamp(-largest, largest).to(torch.float8_e4m3fn) for x in (a, b))  # type: ignore[return-value]


def accumulators(kind: str, blocks: int) -> Tensor:
    """[n, 64, 128], seeded: of all exponents that sums have; every other row has the bits that sums keep, or more."""
    generator = torch.Generator().manual_seed(blocks)
    shape = (blocks * STEPS, A_ROWS, B_ROWS)
    low, high = (-8, 16) if kind == "f32" else (-10, 14)
    x = (low + (high - low) * torch.rand(shape, generator=generator).double()).exp2()
    x *= 2 * torch.randint(2, shape, generator=generator) - 1
    x[:, ::2] = cut(x[:, ::2].contiguous(), 13)
    return x.to(ACCUMULATORS[kind])


def layout() -> Tensor:
    """int64 [64, 128]: where an element is among a warpgroup's accumulators, counted by thread, then number."""
    row, column = torch.arange(A_ROWS)[:, None], torch.arange(B_ROWS)
    thread = row // 16 * 32 + row % 8 * 4 + column % 8 // 2
    return thread * 64 + column // 8 * 4 + row % 16 // 8 * 2 + column % 2


def dumped(
    kind: str, with_c: bool, run: Callable[[str, np.ndarray, int], None], device: str, blocks: int = BLOCKS
) -> dict[str, Tensor]:
    """Operands and results, on the device. run: takes an entry function, its parameters and the count of blocks, and
    returns when it has run."""
    a, b = (torch.stack(x).to(device) for x in zip(*(operands(block, kind) for block in range(blocks)), strict=True))
    places = layout().flatten().to(device)
    fragments = torch.zeros(blocks * STEPS, THREADS * 64, dtype=ACCUMULATORS[kind], device=device)
    c = accumulators(kind, blocks).to(device) if with_c else None
    given = torch.zeros_like(fragments)
    if c is not None:
        given[:, places] = c.flatten(1)
    addresses = {"a": a, "b": b, "c": given if with_c else 0, "d": fragments}
    run(f"sums_{kind}", packed(PARAMETERS, addresses), blocks)
    by_step = {name: x.unflatten(2, (STEPS, 32)).transpose(1, 2).flatten(0, 1) for name, x in (("a", a), ("b", b))}
    found = {**by_step, "d": fragments[:, places].unflatten(1, (A_ROWS, B_ROWS))}
    return found | ({} if c is None else {"c": c})


def on_card(entry: str, parameters: np.ndarray, blocks: int) -> None:
    cubins.call(cubins.loaded(cubins.compiled(SOURCE)).get_function(entry), blocks, THREADS, parameters)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out
    record: dict[str, Any] = {"device": torch.cuda.get_device_name(), "shares": {}}
    raw: dict[str, Tensor] = {}
    for kind in ACCUMULATORS:
        for with_c in (False, True):
            name = f"{kind}, {'accumulator' if with_c else 'zero'}"
            found = dumped(kind, with_c, on_card, "cuda")
            raw |= {f"{name}: {key}": x.contiguous().cpu() for key, x in found.items()}
            save_file(raw, folder / "sums.safetensors")  # whatever happens to the rest
            shares = equal_shares(kind, found["a"], found["b"], found.get("c"), found["d"])
            record["shares"][name] = shares
            files.write_json(folder / "sums.json", record)
            print(f"{name}: " + ", ".join(f"{rule} {share:.4%}" for rule, share in shares.items()), flush=True)


if __name__ == "__main__":
    main()
