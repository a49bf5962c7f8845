"""What tests of the kernels, on this machine and on a card, share: inputs, plans, and how near is near enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fpsgen.attention.emulator import TOLERANCE, VARIANTS, error
from fpsgen.attention.plan import AttentionPlan, KeyTiles, Seen
from fpsgen.attention.qk import QKTransform, prepare
from fpsgen.attention.tiles import Shape3, TileGrid, key_lists
from tests.kernels import host

RAGGED = TileGrid((2, 5, 9), (2, 3, 4))  # 1 x 2 x 3 tiles of 4 to 24 tokens
GRIDS = {
    "ragged": RAGGED,
    "of 120": TileGrid((3, 10, 16), (3, 5, 8)),
    "full": TileGrid((2, 8, 24), (2, 8, 8)),
    "ragged, of 128": TileGrid((2, 9, 17), (2, 8, 8)),
}

TOP, TOP_SUMMARY = KeyTiles(top=0.3), KeyTiles(top=0.3, rest="summary")
WINDOW_SUMMARY = KeyTiles((1, 1, 3), rest="summary")
# Heads of each kind; the lists that are longest are those of the last.
MIXED = {"windows": (TOP, TOP_SUMMARY, WINDOW_SUMMARY, None), "heads": (0, 2, 1, 3)}
MANY = TileGrid((1, 1, 130), (1, 1, 1))  # two summary tiles, the second of two mean keys

Given = tuple[Tensor, Tensor, Tensor, QKTransform]


def mostly(values: Iterable[object], *often: object) -> list[object]:
    """Parameters of a test, a tuple for several: `often` in the default suite, where other tests stand for the rest;
    those with -m slow."""
    every = [(one, one if isinstance(one, tuple) else (one,)) for one in values]
    return [pytest.param(*each, marks=[] if one in often else pytest.mark.slow) for one, each in every]


def plan_for(name: str, tiles: TileGrid, windows: tuple[Seen, ...] = (None,), **more: object) -> AttentionPlan:
    """What a variant of the kernel runs."""
    return AttentionPlan(tiles, windows, qk=VARIANTS[name].qk, pv="fp8", **more)  # type: ignore[arg-type]


def line(length: int, tokens: int = 120) -> tuple[TileGrid, Shape3]:
    """Tiles in a line, each of so many tokens, and a window whose lists are so long.

    Tiles of more than 64 tokens give both of the kernel's consumers rows. Every other odd length is a window of a
    longer line, the rest are the whole line.
    """
    count = length + 1 if length % 4 == 1 else length
    tiles = TileGrid((1, 1, tokens * count), (1, 1, tokens))
    return tiles, tiles.fit((1, 1, length))


def random_qkv(tiles: TileGrid, heads: int = 2, batch: int = 1) -> list[Tensor]:
    """q, k, v behind norm and RoPE."""
    generator = torch.Generator().manual_seed(tiles.tokens + heads)
    q, k, v = (torch.randn(batch, tiles.tokens, heads, 128, generator=generator) for _ in range(3))
    return [2 * q, k + 0.5, v + 0.3]


def inputs(tiles: TileGrid, heads: int = 2, batch: int = 1, seed: int = 0) -> Given:
    """q, k, v as projected, and what attention does to q and k first."""
    generator = torch.Generator().manual_seed(tiles.tokens + heads + seed)
    q, k, v = (torch.randn(batch, tiles.tokens, heads, 128, generator=generator).bfloat16() for _ in range(3))
    norm_q, norm_k = (torch.rand(heads * 128, generator=generator) + 0.5 for _ in range(2))
    angles = torch.rand(tiles.tokens, 64, generator=generator) * 6
    return 3 * q, k + 1, v + 0.3, QKTransform(norm_q, norm_k, 1e-6, torch.stack([angles.cos(), angles.sin()], -1))


def with_spikes(given: Given, tiles: TileGrid, size: float) -> Given:
    """v with numbers far beyond those of each tile's first row, by which its scales begin: in a channel that has two,
    in another batch entry and head, and in a channel whose first rows are zeros."""
    q, k, v, transform = given
    v = v.clone()
    v[0, 1, 0, 70], v[0, -1, 0, 70], v[-1, 1, -1, 5] = size, size / 2, -size
    v[0, tiles.offsets[:-1], 0, 9] = 0
    return q, k, v, transform


def moved(given: Given, device: torch.device | str) -> Given:
    q, k, v, transform = given
    there = {name: getattr(transform, name).to(device) for name in ("norm_q", "norm_k", "rope")}
    return q.to(device), k.to(device), v.to(device), replace(transform, **there)


def prepared(given: Given) -> list[Tensor]:
    """q and k in float32, as the prologue holds them; `attend` would round them to bfloat16."""
    q, k, _, transform = given
    return [prepare(q, transform.norm_q, transform), prepare(k, transform.norm_k, transform)]


def assert_near(found: Tensor, expected: Tensor, what: object = "") -> None:
    """A result and the emulator's."""
    assert bool(found.isfinite().all()), "not finite"
    difference = error(found, expected)
    assert difference < TOLERANCE, f"error {difference:.1g} {what}".rstrip()


def levels(codes: np.ndarray, kind: str) -> np.ndarray:
    """Codes as numbers that differ by 1 between neighbours: E4M3 is sign and magnitude, with two zeros."""
    if kind == "int8":
        return codes.view(np.int8).astype(int)
    return np.where(codes & 128, -(codes & 127).astype(int), codes & 127)


def assert_same_operands(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], plan: AttentionPlan, every_v: bool = False
) -> None:
    """What a prologue made, but for sums in another order, and values beside a tie, which may go either way: few codes,
    by one. every_v: v, which is only rounded, is the same byte for byte."""
    of_summary = [("summary_k", plan.qk), ("summary_v", "fp8")] if plan.has_summary else []
    for key, kind in (("q", plan.qk), ("k", plan.qk), ("v", "fp8"), *of_summary):
        apart = np.abs(levels(found[key], kind) - levels(expected[key], kind))
        assert (apart > 0).mean() < 1e-3, f"image of {key}"
        assert apart.max() <= 1, f"image of {key}"
    assert not every_v or np.array_equal(found["v"], expected["v"]), "image of v"
    tokens = np.arange(host.SLOTS) < plan.tiles.valid.numpy()[:, None]  # the scale of a slot without one is free
    ours, theirs = host.trailers(found["trailers"]), host.trailers(expected["trailers"])
    for key, own, other in (
        ("q's scales", found["q_scale"][:, tokens], expected["q_scale"][:, tokens]),
        ("k's scales", ours["scale"], theirs["scale"]),
        ("v's scales", found["v_scale"].ravel(), expected["v_scale"].ravel()),
    ):
        assert np.allclose(own, other, rtol=2e-6, atol=0), key  # float32 has 6e-8; sums over channels, and a root
    assert np.array_equal(ours["valid"], theirs["valid"]), "tokens in a tile"
    if plan.has_summary:
        ours, theirs = (host.trailers(x["summary_trailers"]) for x in (found, expected))
        assert np.allclose(ours["scale"], theirs["scale"], rtol=2e-5, atol=0), "scales of mean keys"  # sums of tokens
        assert np.array_equal(ours["valid"], theirs["valid"]), "mean keys in a tile"


def pooled_integers(tiles: TileGrid, streams: int, seed: int = 0) -> dict[str, Tensor]:
    """Means of q and k, small integers: every score is exact, and many tie."""
    generator = torch.Generator().manual_seed(seed)
    shape = streams, len(tiles.valid), 128
    q, k = (torch.randint(-1, 2, shape, generator=generator).float() for _ in range(2))
    return {"q_pooled": q, "k_pooled": k * (torch.rand(shape, generator=generator) < 0.1)}


def scores_of(pooled: dict[str, Tensor]) -> Tensor:
    """[streams, query tiles, key tiles], exact for `pooled_integers`."""
    return pooled["q_pooled"].double() @ pooled["k_pooled"].double().mT


def assert_chosen(found: dict[str, Tensor], scores: Tensor, plan: AttentionPlan, batch: int) -> None:
    """By sorting. And the addends: what nobody asked for is not written, and NaN on the CPU machine."""
    tiles, count = plan.tiles, len(plan.tiles.valid)
    heads, end = len(scores) // batch, 0
    for stream, begin in enumerate(found["chosen_of"].tolist()):
        seen = plan.key_tiles[(plan.heads or (0,) * heads)[stream % heads]]
        if seen.top is not None:
            wanted = seen.count(tiles)
            assert begin == end, "where the lists of a stream begin"
            end += count * wanted
            lists = found["chosen"][begin:end].view(count, wanted)
            rows = [sorted((-score, tile) for tile, score in enumerate(row)) for row in scores[stream].tolist()]
            expected = torch.tensor([sorted(tile for _, tile in row[:wanted]) for row in rows], dtype=torch.int32)
            assert torch.equal(lists, expected), f"lists of stream {stream}"
        else:
            assert begin == -1, "a stream that chooses nothing"
            of_window = key_lists(tiles, seen.window or tiles.counts)
            lists = torch.stack(of_window.split())[of_window.list_of]
        if plan.has_summary:
            assert_addends(found["addends"][stream], lists.long(), tiles, seen.rest == "summary")
    assert end == len(found["chosen"]), "the size of all lists"


def assert_addends(found: Tensor, lists: Tensor, tiles: TileGrid, wanted: bool) -> None:
    expected = torch.full((len(tiles.valid), -(-len(tiles.valid) // 128) * 128), -torch.inf)
    expected[:, : len(tiles.valid)] = tiles.valid.float().log2()
    expected.scatter_(1, lists, -torch.inf)
    if wanted:
        assert torch.equal(found, expected), "addends"
    else:
        assert bool(found.isnan().all()), "addends of a head without a summary"


def assert_pooled(found: dict[str, np.ndarray], given: Given, tiles: TileGrid) -> None:
    """Each tile's mean of q and k, against float32 sums in another order: a mean near 0 has its terms' last bits."""
    for key, x in zip(("q_pooled", "k_pooled"), prepared(given), strict=True):
        rows = x.transpose(1, 2).flatten(0, 1).tensor_split(tiles.offsets[1:-1], 1)
        means = torch.stack([own.mean(1) for own in rows], 1)
        assert np.allclose(found[key], means, rtol=1e-4, atol=1e-5), f"means of {key[0]}"
