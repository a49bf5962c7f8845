"""`benchmarks.attention` without a card: windows, work, rooflines, checks. The rest: test_attention_report."""

from __future__ import annotations

from itertools import product
from math import inf, log

import pytest
import torch

from benchmarks import roofline
from benchmarks.attention import contenders
from benchmarks.attention.check import Oracles, error, exact, for_heads, sampled_rows, spread
from benchmarks.attention.contenders import Contender, Inputs, WrongResultError
from benchmarks.attention.shapes import DENSITIES, MODELS, Shape, chosen_windows, nearest_window, shape
from fpsgen.attention import hopper, reference
from fpsgen.attention.emulator import VARIANTS, emulate
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Shape3, TileGrid, key_lists

RAGGED = TileGrid((5, 6, 7), (2, 2, 3))
TINY = Shape("tiny", "5x6x7", RAGGED, 3)

# ---- shapes and windows ---------------------------------------------------------------------------------------------


def test_shapes_are_wan_s() -> None:
    found = {(m, r): shape(m, r) for m in MODELS for r in ("480p", "720p")}
    assert {key: (s.tiles.grid, s.tiles.tile, s.heads) for key, s in found.items()} == {
        ("1.3b", "480p"): ((21, 30, 52), (3, 10, 4), 12),
        ("1.3b", "720p"): ((21, 45, 80), (3, 5, 8), 12),
        ("14b", "480p"): ((21, 30, 52), (3, 10, 4), 40),
        ("14b", "720p"): ((21, 45, 80), (3, 5, 8), 40),
    }


@pytest.mark.parametrize(
    ("res", "expected"),
    [
        ("480p", {"1/2": (5, 3, 9), "1/4": (5, 1, 13), "1/6": (5, 3, 3), "1/10": (3, 3, 3)}),  # of 7 x 3 x 13 tiles
        ("720p", {"1/2": (7, 9, 5), "1/4": (5, 3, 10), "1/6": (7, 5, 3), "1/10": (7, 3, 3)}),  # of 7 x 9 x 10
    ],
)
def test_windows_of_both_sizes(res: str, expected: dict[str, Shape3]) -> None:
    tiles = shape("14b", res).tiles
    found = chosen_windows(tiles, DENSITIES)
    assert found == {"1": None, **expected}
    for text, window in expected.items():  # 120 tokens in every tile: densities are shares of tiles
        share = window[0] * window[1] * window[2] / len(tiles.valid)
        assert tiles.density(found[text]) == pytest.approx(share)
        assert 0.92 < share * int(text[2:]) < 1.01


@pytest.mark.parametrize("tiles", [RAGGED, shape("14b", "720p").tiles, TileGrid((4, 5, 6), (1, 2, 2))], ids=str)
def test_no_other_window_is_nearer(tiles: TileGrid) -> None:
    for wanted in (0.9, 0.5, 0.3, 1 / 6, 0.1, 0.01):
        apart = abs(log(tiles.density(nearest_window(tiles, wanted)) / wanted))
        least = inf
        for lengths in product(*(range(1, count + 1) for count in tiles.counts)):
            try:
                least = min(least, abs(log(tiles.density(tiles.fit(lengths)) / wanted)))
            except ValueError:  # even, and no whole axis
                continue
        assert apart == pytest.approx(least, abs=1e-8)


def test_of_two_equally_near_the_cube_wins() -> None:
    tiles = shape("14b", "720p").tiles  # (7, 9, 1) has density 1/10, too, and is 45 x 8 tokens across
    assert tiles.density((7, 9, 1)) == pytest.approx(tiles.density((7, 3, 3)))
    assert nearest_window(tiles, 0.1) == (7, 3, 3)


def test_a_window_is_measured_once() -> None:
    tiles = TileGrid((2, 2, 2), (1, 1, 2))  # windows of 1, 2 or 4 tiles
    assert list(chosen_windows(tiles, ("1", "0.9", "1/4", "1/5"))) == ["1", "1/4"]


# ---- work and rooflines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, (1, 3, 3), (3, 1, 1)])
def test_operations_are_those_of_the_pairs(window: Shape3 | None) -> None:
    lists, valid = key_lists(RAGGED, window or RAGGED.counts), RAGGED.valid.tolist()
    seen = [sum(valid[key] for key in keys) for keys in lists.split()]
    pairs = sum(valid[tile] * seen[which] for tile, which in enumerate(lists.list_of.tolist()))
    assert AttentionPlan(RAGGED, (window,)).flops(3, 128) == pytest.approx(pairs * 3 * (2 * 128 + 2 * 128))


def test_roofline_of_14b_at_720p_by_hand() -> None:
    assert roofline.peak(8192, 132, 1.83e9) == pytest.approx(roofline.DATASHEET_8BIT, rel=1e-3)
    flops = AttentionPlan(shape("14b", "720p").tiles).flops(40, 128)
    assert flops == pytest.approx(1.171e14, rel=1e-3)
    image = 40 * (630 * (3 * 128 * 128 + 8 * 128 + 16 + 512) + 512)
    assert roofline.kernel_bytes(75600, 630, 40, 128, 8) == image + 2 * 75600 * 40 * 128
    assert roofline.sdpa_bytes(75600, 40, 128) == 4 * 774144000
    stage = (flops, roofline.kernel_bytes(75600, 630, 40, 128, 8))
    found = roofline.bound([stage], 1979e12, 3e12)
    assert (found.seconds, found.by) == (pytest.approx(59.2e-3, rel=1e-3), "tensor cores")
    prologue = (0, roofline.prologue_bytes(75600, 630, 40, 128, 8))
    assert roofline.bound([prologue], 1979e12, 3e12).by == "memory"
    both = roofline.bound([prologue, stage], 1979e12, 3e12)
    assert (both.seconds, both.by) == (pytest.approx(prologue[1] / 3e12 + found.seconds), "tensor cores")
    assert roofline.bound([(1e9, 1e9)], 1e12, 1e12).seconds == pytest.approx(1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_are_those_of_the_tensors(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "launch", lambda *_: None)
    inputs, plan = Inputs(TINY, torch.device("cpu")), AttentionPlan(RAGGED, qk=VARIANTS[variant].qk, pv="fp8")
    made = hopper.prologue(inputs.q, inputs.k, inputs.v, inputs.transform, plan, variant)
    pooled = sum(made.pop(name).nbytes for name in ("q_pooled", "k_pooled"))
    between = sum(x.nbytes for x in made.values())
    sizes = (RAGGED.tokens, len(RAGGED.valid), 3, 128, 8 if VARIANTS[variant].sum_codes else 0)
    assert roofline.kernel_bytes(*sizes) == between + inputs.v.nbytes
    given = sum(x.nbytes for x in (inputs.q, inputs.k, inputs.v, inputs.transform.rope))
    assert roofline.prologue_bytes(*sizes) == given + between + pooled


# ---- checks ---------------------------------------------------------------------------------------------------------


def test_rows_and_heads_are_spread() -> None:
    assert spread(40, 8).tolist() == [0, 6, 11, 17, 22, 28, 33, 39]
    assert spread(3, 8).tolist() == [0, 1, 2]
    tiles = shape("1.3b", "720p").tiles
    rows = sampled_rows(tiles)
    assert len(rows.unique()) == 256
    assert (int(rows[0]), int(rows[-1])) == (0, tiles.tokens - 1)
    assert not set(rows.tolist()) & set(sampled_rows(tiles, turn=37).tolist())
    assert sampled_rows(tiles, turn=1000).max() < tiles.tokens


@pytest.mark.parametrize(
    "plan", [AttentionPlan(RAGGED), AttentionPlan(RAGGED, ((1, 3, 3), None, (3, 1, 1)), (2, 0, 1))]
)
def test_exact_rows_are_the_reference_s(plan: AttentionPlan) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, RAGGED.tokens, 3, 16, generator=generator) for _ in range(3))
    rows, heads = sampled_rows(RAGGED, 5, 4, turn=3), torch.tensor([0, 2])
    expected = reference.attention(q, k, v, plan)[:, rows]
    assert error(exact(q, k, v, plan, rows), expected) < 1e-6  # float32, sums in another order
    some = exact(q[:, :, heads], k[:, :, heads], v[:, :, heads], for_heads(plan, heads), rows)
    assert error(some, expected[:, :, heads]) < 1e-6


def test_the_emulator_is_asked_again_only_for_a_large_error() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, RAGGED.tokens, 1, 128, generator=generator) for _ in range(3))
    plan, rows = AttentionPlan(RAGGED, qk="int8", pv="fp8"), torch.arange(20)
    oracles = Oracles(q, k, v, rows)
    found = emulate(q, k, v, plan, VARIANTS["E"], rows=rows, accumulator_bits=13)
    assert oracles.emulated_errors(found, plan, "E") == {"13 bits": 0.0}
    assert set(oracles.emulated_errors(found * 1.1, plan, "E", 1e-2)) == {"13 bits", "exact sums"}
    assert set(oracles.emulated_errors(found * torch.nan, plan, "E", 1e-2)) == {"13 bits", "exact sums"}


def line(kind: str = "kernel", **more: object) -> dict:
    return {"kind": kind, "name": kind, "bits": 8, "stages": [[1e12, 1e9]], **more}


def test_a_wrong_result_gets_no_time() -> None:
    def wrong() -> dict:
        return contenders.limited({}, float("nan"), 1e-2)

    def refused() -> dict:
        raise RuntimeError("No available kernel")

    for kind, check, told in [
        ("kernel", wrong, ("fault", "WrongResultError: relative error nan, of which 0.01 is allowed: {}")),
        ("sdpa", wrong, ("fault", "WrongResultError: relative error nan, of which 0.01 is allowed: {}")),
        ("sdpa", refused, ("why_not", "RuntimeError: No available kernel")),
        ("kernel", refused, ("fault", "RuntimeError: No available kernel")),
    ]:
        contender = Contender(line(kind), check=check)
        assert not contenders.tried(contender)
        assert contender.line[told[0]] == told[1]
    assert contenders.tried(Contender(line(), check=lambda: {"error_to_exact": 0.0}))
    with pytest.raises(WrongResultError):
        contenders.limited({}, 0.02, 0.01)


def test_contenders_on_a_machine_without_a_card() -> None:
    """Every one of them has a line; ours says why not."""
    found = [c.line for c in contenders.contenders(Inputs(TINY, torch.device("cpu")), {"1": None}, ["C", "E"])]
    assert [one["name"] for one in found] == [
        *("SDPA flash", "SDPA cuDNN", "SDPA efficient", "SDPA math", "FlashAttention-3", "FlashAttention-4"),
        *("norm and RoPE, eager", "C", "E", "flex"),
    ]
    assert {one["name"] for one in found if one.get("why_not") == "it is for CUDA GPUs"} == {"C", "E", "flex"}


def test_contenders_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "why_not", lambda *_: None)
    inputs, windows = Inputs(TINY, torch.device("cpu")), {"1": None, "1/3": (1, 3, 3)}
    found = [c.line for c in contenders.ours(inputs, windows, "A")]
    assert [one["kind"] for one in found] == ["prologue", "kernel", "together", "kernel", "together"]
    before, dense, both, sparse, _ = found
    assert both["stages"] == [*before["stages"], *dense["stages"]]
    assert sparse["stages"][0][0] == pytest.approx(dense["stages"][0][0] * RAGGED.density((1, 3, 3)))
    assert sparse["stages"][0][1] == dense["stages"][0][1]
