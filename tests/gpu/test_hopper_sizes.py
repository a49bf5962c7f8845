"""Our kernel on a Hopper card at Wan2.1's true sizes: against the emulator and exact attention."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from fpsgen.attention import dense, hopper, reference
from fpsgen.attention.emulator import TOLERANCE, error
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Shape3, TileGrid
from fpsgen.bench.attention.check import Oracles, sampled_rows
from fpsgen.bench.attention.contenders import Inputs
from fpsgen.bench.attention.shapes import DENSITIES, chosen_windows, shape
from tests.gpu.hopper import another_card, tell
from tests.kernels.cases import plan_for

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("another_card()", reason="for Hopper")]
assert another_card  # the mark's string names it

# Half as much again as the emulator errs on such data, whatever the length (benchmarks/results/numerics.md, N(0, 1)).
EXACT = {"fp8-fp32": 0.08, "fp8-fp16": 0.08, "int8-int32": 0.06}
# A block, 120 rows of one head, may err twice as much by chance; one that read another list errs by about 1.
BLOCK = 2


def cases() -> Iterator[tuple[str, str, str, str]]:
    """Model, size, density, variant; the slow parts, inputs and exact attention, are shared by neighbours."""
    for model in ("1.3b", "14b"):
        for res in ("480p", "720p"):
            for density in DENSITIES:
                for variant in (
                    ("fp8-fp32", "fp8-fp16", "int8-int32")
                    if (model, res) == ("1.3b", "480p")
                    else ("fp8-fp16", "int8-int32")
                ):
                    yield model, res, density, variant


@lru_cache(maxsize=1)
def inputs_of(model: str, res: str) -> Inputs:
    return Inputs(shape(model, res), torch.device("cuda", torch.cuda.current_device()), seed=1)


@lru_cache(maxsize=1)
def exact_everywhere(model: str, res: str, window: Shape3 | None) -> Tensor:
    """Attention over the window's lists, not rounded to 8 bits, all rows of all heads; bfloat16."""
    inputs = inputs_of(model, res)
    plan = AttentionPlan(inputs.shape.tiles, (window,))
    attention = dense.attention if window is None else reference.attention
    return attention(inputs.q16, inputs.k16, inputs.v, plan)


def block_errors(found: Tensor, expected: Tensor, tiles: TileGrid) -> Tensor:
    """[tiles, heads]: relative error of each tile's rows, of batch entry 0."""
    tile_of = torch.arange(len(tiles.valid)).repeat_interleave(tiles.valid).to(found.device)

    def by_tile(x: Tensor) -> Tensor:
        squares = x[0].float().square().sum(-1)
        return squares.new_zeros(len(tiles.valid), x.shape[2]).index_add_(0, tile_of, squares)

    return (by_tile(found - expected) / by_tile(expected)).sqrt()


@torch.inference_mode()
@pytest.mark.parametrize(("model", "res", "density", "variant"), list(cases()))
def test_true_size(model: str, res: str, density: str, variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = inputs_of(model, res)
    tiles = inputs.shape.tiles
    window = chosen_windows(tiles, DENSITIES)[density]
    plan = plan_for(variant, tiles, (window,))
    found = hopper.attention(inputs.q, inputs.k, inputs.v, inputs.transform, plan, variant)
    assert found.isfinite().all()

    rows = sampled_rows(tiles, turn=37 * DENSITIES.index(density))  # other tiles for each density
    oracles = Oracles(*inputs.oracles.given, rows)
    picked = found[:, rows.to(found.device)][:, :, inputs.heads]
    errors = oracles.emulated_errors(picked, plan, variant)
    to_exact = error(picked, oracles.exact(plan))
    blocks = block_errors(found, exact_everywhere(model, res, window), tiles)
    tell(capsys, f"{errors}, exact {to_exact:.3g}, worst block {float(blocks.max()):.3g}")
    assert min(errors.values()) <= TOLERANCE, errors
    assert to_exact <= EXACT[variant]
    assert blocks.max() <= BLOCK * EXACT[variant], f"tile and head {divmod(int(blocks.argmax()), blocks.shape[1])}"
