"""Key tiles chosen by content, and a summary of the rest, in the reference: against one key after another by hand."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from fpsgen.attention import door, hopper, reference, select
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid, key_lists

RAGGED = TileGrid((3, 3, 5), (2, 2, 2))  # 2 x 2 x 3 tiles, 45 tokens
PORTRAIT = TileGrid((2, 7, 3), (2, 2, 2))
MANY = TileGrid((2, 12, 12), (2, 1, 1))  # 144 tiles: two scales for mean keys
WINDOW = KeyTiles((1, 1, 3), rest="summary")
TOP, TOP_SUMMARY = KeyTiles(top=0.3), KeyTiles(top=0.3, rest="summary")


def random_qkv(tiles: TileGrid, heads: int = 2, dim: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tiles.tokens)
    return [torch.randn(2, tiles.tokens, heads, dim, generator=generator) for _ in range(3)]


def to_format(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Rounded by torch's own conversions."""
    inside = x / scale
    rounded = inside.round() if kind == "int8" else inside.to(torch.float8_e4m3fn).float()
    return rounded * scale


def one_head(q: Tensor, k: Tensor, v: Tensor, seen: KeyTiles, plan: AttentionPlan) -> Tensor:
    """[tokens, head_dim]: query by query, over a list of keys that is made for it."""
    tiles, largest = plan.tiles, {"int8": 127.0, "fp8": 448.0}
    runs = [range(int(a), int(b)) for a, b in zip(tiles.offsets[:-1], tiles.offsets[1:], strict=True)]
    pooled = [[x[list(run)].mean(0) for run in runs] for x in (q, k)]
    k = k - k.mean(0) if plan.qk != "bf16" and plan.smooth_k else k
    k_means, v_means = (torch.stack([x[list(run)].mean(0) for run in runs]) for x in (k, v))
    if plan.qk != "bf16":
        q, k = q.clone(), k.clone()
        for x in (q, k):
            for run in runs:
                x[run.start : run.stop] = to_format(
                    x[run.start : run.stop], x[run.start : run.stop].abs().max() / largest[plan.qk], plan.qk
                )
        groups = [group.clone() for group in k_means.split(128)]
        k_means = torch.cat([to_format(x, x.abs().max() / largest[plan.qk], plan.qk) for x in groups])
    if plan.pv != "bf16":
        scale = v.abs().amax(0) / 448
        v, v_means = to_format(v, scale, "fp8"), to_format(v_means, scale, "fp8")
    out = torch.empty_like(v)
    for tile, run in enumerate(runs):
        if seen.top is None:
            lists = key_lists(tiles, seen.window or tiles.counts)
            listed = lists.split()[int(lists.list_of[tile])].tolist()
        else:
            scores = [float(pooled[0][tile] @ key) for key in pooled[1]]
            listed = sorted(range(len(runs)), key=lambda t: (-scores[t], t))[: math.ceil(seen.top * len(runs))]
        for row in run:
            entries = [(q[row] @ k[key] / math.sqrt(q.shape[1]), v[key]) for own in listed for key in runs[own]]
            for own in set(range(len(runs))) - set(listed) if seen.rest == "summary" else ():
                score = q[row] @ k_means[own] / math.sqrt(q.shape[1]) + math.log(len(runs[own]))
                entries.append((score, v_means[own]))
            p = torch.stack([score for score, _ in entries])
            p = (p - p.max()).exp()
            p = (448 * p).to(torch.float8_e4m3fn).float() if plan.pv != "bf16" else p
            out[row] = p @ torch.stack([value for _, value in entries]) / p.sum()
    return out


@cache
def one_dense_head(tiles: TileGrid, qk: str, pv: str, batch: int) -> Tensor:
    """The second one below, which is the same whatever the first one sees."""
    given = (x[batch, :, 1] for x in random_qkv(tiles))
    return one_head(*given, KeyTiles(), AttentionPlan(tiles, (None,), (), qk, pv))  # type: ignore[arg-type]


@pytest.mark.parametrize("seen", [WINDOW, TOP, TOP_SUMMARY], ids=str)
@pytest.mark.parametrize(("qk", "pv"), [("bf16", "bf16"), ("int8", "fp8"), ("fp8", "fp8")])
@pytest.mark.parametrize("tiles", [RAGGED, PORTRAIT, MANY], ids=["ragged", "portrait", "many"])
def test_the_operator_key_by_key(seen: KeyTiles, qk: str, pv: str, tiles: TileGrid) -> None:
    """A head of each kind beside a dense one, both guidance branches. Sums in another order move float32 by 1e-6; with
    8 bits they may also move a number beside a tie to the next code, which is 6 % of it, and few of a row's."""
    seen = seen if tiles is RAGGED or seen.window is None else KeyTiles((1, 3, 1), rest="summary")
    q, k, v = random_qkv(tiles)
    plan = AttentionPlan(tiles, (seen, None), (0, 1), qk, pv)  # type: ignore[arg-type]
    found = reference.attention(q, k, v, plan)
    for batch in range(2):
        sparse = one_head(*(x[batch, :, 0] for x in (q, k, v)), seen, plan)
        for head, expected in enumerate((sparse, one_dense_head(tiles, qk, pv, batch))):
            error = float((found[batch, :, head] - expected).norm() / expected.norm())
            assert error < (1e-5 if pv == "bf16" else 2e-3)


@pytest.mark.parametrize("seen", [TOP, TOP_SUMMARY, WINDOW], ids=str)
def test_two_runs_give_the_same_bits_and_each_branch_is_for_itself(seen: KeyTiles) -> None:
    q, k, v = random_qkv(RAGGED)
    plan = AttentionPlan(RAGGED, (seen,), (), "int8", "fp8")
    both = reference.attention(q, k, v, plan)
    assert torch.equal(both, reference.attention(q, k, v, plan))
    for batch in range(2):
        alone = reference.attention(*(x[batch : batch + 1] for x in (q, k, v)), plan)
        torch.testing.assert_close(both[batch : batch + 1], alone, rtol=0, atol=1e-6)  # products of another shape


@pytest.mark.parametrize("seen", [WINDOW, TOP_SUMMARY, KeyTiles(top=1e-9, rest="summary")], ids=str)
@pytest.mark.parametrize("tiles", [RAGGED, MANY], ids=["ragged", "many"])
def test_a_summary_of_equal_tokens_is_exact(seen: KeyTiles, tiles: TileGrid) -> None:
    """n equal keys come to one with log n added to its score. Not to the last bit, since the sum has another order; and
    without the summary it is far away."""
    seen = seen if tiles is RAGGED or seen.window is None else KeyTiles((1, 3, 1), rest="summary")
    q, k, v = random_qkv(tiles)
    k, v = (x[:, tiles.offsets[:-1]].repeat_interleave(tiles.valid, 1) for x in (k, v))
    dense = reference.attention(q, k, v, AttentionPlan(tiles))
    torch.testing.assert_close(reference.attention(q, k, v, AttentionPlan(tiles, (seen,))), dense, rtol=0, atol=1e-5)
    dropped = (seen.window or KeyTiles(top=seen.top),)
    assert (reference.attention(q, k, v, AttentionPlan(tiles, dropped)) - dense).abs().max() > 0.1


def test_lists_of_all_tiles_are_dense_attention() -> None:
    q, k, v = (x.transpose(1, 2) for x in random_qkv(RAGGED))
    every = torch.arange(12).expand(2, 2, 12, 12)
    plan = AttentionPlan(RAGGED)
    found = reference.over_lists(q, k, v, every, None, plan)
    torch.testing.assert_close(found, reference.over_window(q, k, v, None, plan), rtol=0, atol=1e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random_qkv(MANY)
    plan = AttentionPlan(MANY, (TOP_SUMMARY,), (), "int8", "fp8")
    whole = reference.attention(q, k, v, plan)
    monkeypatch.setattr(reference, "_MOST_NUMBERS", 2**16)
    torch.testing.assert_close(reference.attention(q, k, v, plan), whole, rtol=0, atol=1e-6)


def test_nan_is_not_hidden() -> None:
    q, k, v = random_qkv(RAGGED)
    v[:, 44] = torch.nan
    assert reference.attention(q, k, v, AttentionPlan(RAGGED, (TOP_SUMMARY,))).isnan().any()


def test_density_counts_the_summary() -> None:
    assert AttentionPlan(RAGGED, (TOP,)).density == 4 / 12
    both = AttentionPlan(RAGGED, (TOP_SUMMARY, None), (0, 1, 1, 1))
    assert both.density == pytest.approx((4 / 12 + 8 / 45 + 3) / 4)
    assert both.flops(4, 16) == pytest.approx(4 * 16 * 4 * both.density * 45**2)
    window = AttentionPlan(RAGGED, (WINDOW,)).density
    assert window == pytest.approx(RAGGED.density((1, 1, 3)) + 9 / 45)


@pytest.mark.parametrize(
    "seen", [KeyTiles(), KeyTiles((1, 1, 1)), KeyTiles((2, 2, 3), rest="summary"), KeyTiles(top=1.0)], ids=str
)
def test_what_can_be_said_in_fewer_words_is_refused(seen: KeyTiles) -> None:
    with pytest.raises(ValueError, match="write"):
        AttentionPlan(RAGGED, (seen,))


@pytest.mark.parametrize("seen", [TOP, TOP_SUMMARY, WINDOW], ids=str)
def test_who_runs_it(seen: KeyTiles, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = AttentionPlan(RAGGED, (seen,), (), "int8", "fp8")
    monkeypatch.setattr(hopper, "why_not_here", lambda device: None)
    assert hopper.why_not(torch.device("cuda"), plan, 128) is None
    monkeypatch.undo()
    choice = door.choose(torch.device("cpu"), plan, 128)
    assert choice.name == "reference"
    assert [other for other, _ in choice.refused] == ["dense", "hopper", "flex"]


@pytest.mark.parametrize("seen", [TOP, TOP_SUMMARY], ids=str)
def test_the_choice_comes_before_rounding(seen: KeyTiles) -> None:
    """So that a precision never changes which tiles are seen, where the means of rounded q and k would."""
    q, k, v = random_qkv(RAGGED)
    plan = AttentionPlan(RAGGED, (seen,), (), "fp8", "fp8")
    exact, rounded = (
        select.best(select.means(x, RAGGED), select.means(y, RAGGED), 4)
        for x, y in ((q, k), reference.rounded(q, k, v, plan)[:2])
    )
    assert not torch.equal(exact, rounded)
    found = reference.attention(q, k, v, plan)
    assert torch.equal(found, reference.attention(q, k, v, plan, {0: exact}))
    assert not torch.equal(found, reference.attention(q, k, v, plan, {0: rounded}))
