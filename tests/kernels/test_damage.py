"""What is no number must not look like a video: NaN and infinity reach the result, whatever the format has for them."""

from __future__ import annotations

import pytest
import torch

from fpsgen.attention import hopper, reference
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.qk import QKTransform, prepare
from fpsgen.attention.tiles import TileGrid
from tests.kernels import host

TILES = TileGrid((1, 6, 6), (1, 3, 6))  # two tiles of 18 tokens
TOKEN = 20  # the second of the second tile
HEADS = 2
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("qk", ["fp8", "int8"])
@pytest.mark.parametrize(("what", "smooth_k"), [("q", True), ("k", True), ("k", False), ("v", True), ("norm_k", True)])
@pytest.mark.parametrize(
    ("seen", "value"),
    [
        (None, NAN),
        (None, INFINITY),
        (KeyTiles(top=0.5, rest="summary"), NAN),
        pytest.param(KeyTiles(top=0.5, rest="summary"), INFINITY, marks=pytest.mark.slow),
        pytest.param(KeyTiles(top=0.5), NAN, marks=pytest.mark.slow),
        pytest.param(KeyTiles(top=0.5), INFINITY, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_damage_shows_wherever_the_reference_shows_it(
    qk: str, what: str, smooth_k: bool, value: float, seen: KeyTiles | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(1, TILES.tokens, HEADS, 128, generator=generator) for name in ("q", "k", "v")}
    norms = {name: torch.ones(HEADS * 128) for name in ("norm_q", "norm_k")}
    if what in given:
        given[what][0, TOKEN, 1, 7] = value
    else:
        norms[what][128 + 7] = value
    angles = torch.rand(TILES.tokens, 64, generator=generator)
    transform = QKTransform(**norms, eps=1e-6, rope=torch.stack([angles.cos(), angles.sin()], -1))
    plan = AttentionPlan(TILES, (seen,), qk=qk, pv="fp8", smooth_k=smooth_k)  # type: ignore[arg-type]
    q, k = (prepare(given[name], norms[f"norm_{name}"], transform) for name in ("q", "k"))
    damaged = ~reference.attention(q, k, given["v"], plan).isfinite()
    with host.on_this_machine():
        found = hopper.attention(given["q"], given["k"], given["v"], transform, plan)
    assert damaged.any()
    assert not (found.isfinite() & damaged).any()
