"""The bench of attention without a card: windows, work, rooflines, checks. The rest: test_attention_report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch

from fpsgen.attention import dense, hopper, quantize, reference
from fpsgen.attention.emulator import TOLERANCE, VARIANTS, emulate, error, exponentials
from fpsgen.attention.plan import AttentionPlan, KeyTiles, Rest
from fpsgen.attention.sums import rules
from fpsgen.attention.tiles import Shape3, TileGrid, key_lists
from fpsgen.bench import dense_kernels, roofline
from fpsgen.bench.attention import contenders
from fpsgen.bench.attention.check import Oracles, sampled_rows, spread
from fpsgen.bench.attention.contenders import Inputs, Trial
from fpsgen.bench.attention.record import DENSE, Line
from fpsgen.bench.attention.shapes import DENSITIES, Shape, chosen_tiles, chosen_windows, shape
from fpsgen.bench.roofline import Amounts
from fpsgen.presets import file
from tests.tools.attention import CARD, line

RAGGED = TileGrid((5, 6, 7), (2, 2, 3))
CPU = torch.device("cpu")
TINY = Shape("tiny", "5x6x7", RAGGED, 3)

# ---- shapes and windows ---------------------------------------------------------------------------------------------


def test_shapes_are_wan_s() -> None:
    found = {(m, r): shape(m, r) for m in ("1.3b", "14b") for r in ("480p", "720p")}
    assert {key: (s.tiles.grid, s.tiles.tile, s.heads) for key, s in found.items()} == {
        ("1.3b", "480p"): ((21, 30, 52), (3, 10, 4), 12),
        ("1.3b", "720p"): ((21, 45, 80), (3, 5, 8), 12),
        ("14b", "480p"): ((21, 30, 52), (3, 10, 4), 40),
        ("14b", "720p"): ((21, 45, 80), (3, 5, 8), 40),
    }


@pytest.mark.parametrize("res", ["480p", "720p"])
def test_a_density_has_the_window_that_a_preset_gives_it(res: str) -> None:
    tiles = shape("14b", res).tiles
    for text, window in chosen_windows(tiles, DENSITIES).items():
        phase = f"format = 1\n[[phase]]\nsigma = [1.0, 0.0]\ndensity = {float(Fraction(text))}\n"
        (step,) = file.parse(phase.encode(), "mine.toml").schedule([1.0], tiles, 1, 40)
        assert step.attention[0].seen == (window,), text


def test_a_window_is_measured_once() -> None:
    tiles = TileGrid((2, 2, 2), (1, 1, 2))  # windows of 1, 2 or 4 tiles
    assert list(chosen_windows(tiles, ("1", "0.9", "1/4", "1/5"))) == ["1", "1/4"]
    assert chosen_windows(shape("14b", "720p").tiles, DENSITIES).keys() == set(DENSITIES)


def test_shares_of_tiles_stand_beside_windows() -> None:
    tiles = TileGrid((2, 2, 2), (1, 1, 2))  # 4 tiles
    found = chosen_tiles(tiles, ("1", "1/4"), ("1/4", "0.5", "1", "0.9"), "summary")
    half = KeyTiles(top=0.5, rest="summary")
    assert found == {"1": None, "1/4": (1, 1, 1), "top 1/4": KeyTiles(top=0.25, rest="summary"), "top 0.5": half}


# ---- work and rooflines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, (1, 3, 3), (3, 1, 1)])
def test_operations_are_those_of_the_pairs(window: Shape3 | None) -> None:
    lists, valid = key_lists(RAGGED, window or RAGGED.counts), RAGGED.valid.tolist()
    seen = [sum(valid[key] for key in keys) for keys in lists.split()]
    pairs = sum(valid[tile] * seen[which] for tile, which in enumerate(lists.list_of.tolist()))
    assert AttentionPlan(RAGGED, (window,)).flops(3, 128) == pytest.approx(pairs * 3 * (2 * 128 + 2 * 128))


def test_roofline_of_14b_at_720p_by_hand() -> None:
    card = replace(CARD, multiprocessors=132, clock_hz=1.83e9, copy_bytes_per_second=3e12)
    most, what = roofline.rates(card, 8), shape("14b", "720p")
    assert most.flops == pytest.approx(roofline.DATASHEET[8], rel=1e-3)
    assert most.exponentials == pytest.approx(3.9e12, rel=1e-2)  # as FlashAttention-3 counts them, arXiv 2407.08608
    dense, plan = AttentionPlan(what.tiles), AttentionPlan(what.tiles, qk="fp8", pv="fp8")
    in_16_bits, every, none = what.attention(dense), what.attention(plan, "fp8-fp32"), what.attention(plan, "fp8-fp16")
    pairs = 40 * 75600**2
    assert in_16_bits == (pytest.approx(1.171e14, rel=1e-3), pairs, 4 * 774144000)
    image = 40 * (630 * (3 * 128 * 128 + 8 * 128 + 16 + 512) + 512)
    assert none == (in_16_bits.flops, 0, image + 2 * 75600 * 40 * 128)
    found = roofline.bound([none], most)
    assert found == (pytest.approx(59.2e-3, rel=1e-3), "tensor cores")
    # Every exponential by its unit takes as long as the tensor cores, and in 16 bits half as long.
    assert roofline.bound([every], most) == (pytest.approx(found.seconds), "tensor cores and exponential unit")
    slow = roofline.bound([in_16_bits], roofline.rates(card, 16))
    assert slow == (pytest.approx(2 * found.seconds), "tensor cores")
    prologue = what.prologue("fp8-fp16")
    assert roofline.bound([prologue], most).by == "memory"
    both = roofline.bound([prologue, none], most)
    assert both == (pytest.approx(prologue.bytes / 3e12 + found.seconds), "tensor cores")


@pytest.mark.parametrize(
    ("stage", "seconds", "by"),
    [
        ((6e9, 2e9, 1e9), 6e-3, "tensor cores"),
        ((1e9, 6e9, 2e9), 3e-3, "exponential unit"),
        ((1e9, 2e9, 6e9), 1.5e-3, "memory"),
        ((2e9, 4e9, 8e9), 2e-3, "tensor cores and exponential unit and memory"),
    ],
)
def test_the_longest_of_three_times_binds(stage: tuple[float, float, float], seconds: float, by: str) -> None:
    found = roofline.bound([stage], Amounts(flops=1e12, exponentials=2e12, bytes=4e12))
    assert found == (pytest.approx(seconds), by)


@pytest.mark.parametrize("window", [None, (1, 3, 3)])
def test_exponentials_are_those_of_the_pairs(window: Shape3 | None) -> None:
    """One for each pair of tokens and head, none of padding; of the variants that synthesise them, none."""
    pairs, plan = 3 * RAGGED.density(window) * RAGGED.tokens**2, AttentionPlan(RAGGED, (window,))
    for variant, share in [(None, 1), ("fp8-fp32", 1), ("fp8-fp16", 0), ("int8-int32", 0)]:
        flops, exponentials, _ = TINY.attention(plan, variant)
        assert (flops, exponentials) == (pytest.approx(512 * pairs), pytest.approx(share * pairs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_synthesised_exponentials_are_none_of_the_unit_s(variant: str) -> None:
    """What a shape's work leaves out, the emulator does without: codes that differ from P's own rounding."""
    scores, factor = torch.linspace(-10, 0, 128)[None], torch.ones(1, 1)
    _, codes = exponentials(scores, factor, torch.zeros(1, 1), VARIANTS[variant])
    by_unit = (codes == quantize.round_to_((scores + 7).exp2(), "fp8")).view(-1, 16).all(1).sum() / 8
    plan = AttentionPlan(RAGGED)
    assert float(by_unit) == TINY.attention(plan, variant).exponentials / TINY.attention(plan).exponentials


@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_are_those_of_the_tensors(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "launch", lambda *_: None)
    inputs, plan = Inputs(TINY, CPU), AttentionPlan(RAGGED, qk=VARIANTS[variant].qk, pv="fp8")
    made = hopper.prologue(inputs.q, inputs.k, inputs.v, inputs.transform, plan, variant)
    pooled = sum(made.pop(name).nbytes for name in ("q_pooled", "k_pooled"))
    between = sum(x.nbytes for x in made.values())
    assert TINY.attention(plan, variant).bytes == between + inputs.v.nbytes
    given = sum(x.nbytes for x in (inputs.q, inputs.k, inputs.v, inputs.transform.rope))
    assert TINY.prologue(variant).bytes == given + between + pooled


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


def test_exact_rows_are_attention_over_the_plan_s_keys() -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, RAGGED.tokens, 2, 16, generator=generator) for _ in range(3))
    rows = sampled_rows(RAGGED, 5, 4, turn=3)
    plan = AttentionPlan(RAGGED, qk="int8", pv="fp8")
    expected = dense.attention(q, k, v)[:, rows]
    assert error(Oracles(q, k, v, rows).exact(plan), expected) < 1e-6  # float32, sums in another order
    sparse = reference.attention(q, k, v, AttentionPlan(RAGGED, ((1, 3, 3),)))[:, rows]
    assert error(Oracles(q, k, v, rows).exact(replace(plan, seen=((1, 3, 3),))), sparse) == 0


@pytest.mark.parametrize("rest", ["drop", "summary"])
def test_a_contender_is_held_to_the_lists_that_it_chose(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits other tiles fit best than in float32; all are right, and a list of any other tiles is not."""
    inputs = Inputs(TINY, CPU)
    plan = AttentionPlan(RAGGED, (KeyTiles(top=0.3, rest=rest),))
    by_float32 = reference.key_tiles(*inputs.prepare(torch.float32), plan.key_tiles[0], RAGGED)
    monkeypatch.setattr(inputs, "q16", inputs.q16.roll(1, 1))
    call = partial(reference.attention, inputs.q16, inputs.k16, inputs.v, plan)
    q = inputs.q16[:, :, inputs.heads].float()
    inputs.oracles.given = (q, *inputs.oracles.given[1:])
    assert not torch.equal(inputs.chosen(plan), by_float32)
    assert inputs.check(call, plan)["error_to_exact"] < contenders.LIMIT
    other = partial(reference.attention, inputs.q16, inputs.k16, inputs.v, plan, {0: by_float32})
    assert inputs.check(other, plan)["error_to_exact"] > contenders.LIMIT


@pytest.mark.parametrize("seen", [KeyTiles(top=0.3), KeyTiles(top=0.3, rest="summary")], ids=str)
def test_our_kernel_is_held_to_the_lists_that_it_chose(seen: KeyTiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that chooses the first tiles, computed by the emulator, is right; one that computes others is not."""
    inputs, first = Inputs(replace(TINY, heads=1), CPU), torch.arange(9).expand(1, 1, 27, -1)
    (q, k), rows = inputs.prepare(torch.float32), inputs.oracles.rows

    def kernel(made: dict, plan: AttentionPlan, variant: str, batch: int) -> torch.Tensor:
        assert seen.rest == "drop" or "summary_k" in made
        chosen = {0: made["chosen"].view(1, 1, 27, 9).long()}
        found = emulate(q, k, inputs.v, plan, VARIANTS[variant], rows=rows, chosen=chosen)
        return torch.zeros_like(inputs.v).index_copy(1, rows, found)

    def other(*given: Any) -> torch.Tensor:
        return kernel({"chosen": first + 1, "summary_k": k}, *given[-2:], 1)

    monkeypatch.setattr(hopper, "why_not", lambda *_: None)
    monkeypatch.setattr(hopper, "prologue", lambda *given: {"summary_k": k} if given[-2].has_summary else {})
    monkeypatch.setattr(hopper, "choose", lambda *_: {"chosen": first.flatten().int()})
    monkeypatch.setattr(hopper, "attention_over", kernel)
    monkeypatch.setattr(hopper, "attention", other)
    every = contenders.ours(inputs, {"1/3": (1, 3, 3), "top 0.3": seen}, "int8-int32")
    found = {one.line.kind: contenders.tried(one, CPU) for one in every if one.line.top}
    assert list(found) == ["choice", "kernel", "together"]
    assert found["kernel"].error_to_emulator == {"accumulator aligned": 0.0}
    assert "the result is wrong" in (found["together"].fault or "")
    assert (found["kernel"].density, found["kernel"].rest) == (AttentionPlan(RAGGED, (seen,)).density, seen.rest)
    (choice,), (_, *whole) = found["choice"].stages, found["together"].stages
    assert whole == [choice, *found["kernel"].stages]
    summary = 128 if seen.rest == "summary" else 0  # for the means of 27 tiles
    assert choice == (0, 0, 4 * 27 * (256 + 9 + summary))


def test_other_rules_of_sums_are_tried_only_for_a_large_error() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, RAGGED.tokens, 1, 128, generator=generator) for _ in range(3))
    plan, rows = AttentionPlan(RAGGED, qk="int8", pv="fp8"), torch.arange(20)
    oracles = Oracles(q, k, v, rows)
    found = emulate(q, k, v, plan, VARIANTS["int8-int32"], rows=rows)
    assert oracles.emulated_errors(found, plan, "int8-int32") == {"accumulator aligned": 0.0}
    both = {"accumulator aligned", "accumulator added last"}
    assert oracles.emulated_errors(found * 1.1, plan, "int8-int32").keys() == both
    assert oracles.emulated_errors(found * torch.nan, plan, "int8-int32").keys() == both


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_card_that_adds_by_another_rule_is_right(variant: str) -> None:
    """Though it is not within the tolerance of the likeliest rule."""
    generator = torch.Generator().manual_seed(3)
    tiles = TileGrid((1, 1, 480), (1, 1, 120))
    q, k, v = (torch.randn(1, tiles.tokens, 2, 128, generator=generator) for _ in range(3))
    plan, rows = AttentionPlan(tiles, qk=VARIANTS[variant].qk, pv="fp8"), torch.arange(40)
    q, oracles = 2 * q, Oracles(2 * q, k, v, rows)
    for name, sums in list(rules(VARIANTS[variant].scores == "fp16").items())[1:]:
        found = emulate(q, k, v, plan, VARIANTS[variant], rows=rows, sums=sums)
        errors = oracles.emulated_errors(found, plan, variant)
        assert min(errors, key=errors.__getitem__) == name
        assert errors[name] == 0


def test_a_wrong_result_gets_no_time() -> None:
    def off_by(value: float, **emulator: float) -> Callable[[], dict]:
        return lambda: {"error_to_exact": value, "error_to_emulator": emulator or None}

    def refused() -> dict:
        raise RuntimeError("No available kernel")

    nan = float("nan")
    for kind, check, field, words in [
        ("kernel", off_by(nan), "fault", "nan"),
        ("sdpa", off_by(0.02), "fault", "0.02"),
        ("kernel", off_by(0.001, one=0.02, other=0.03), "fault", "0.02"),  # near the truth, and not what it should be
        ("sdpa", refused, "why_not", "RuntimeError: No available kernel"),
        ("kernel", refused, "fault", "RuntimeError: No available kernel"),
    ]:
        found = tried(line(kind, name=kind), check)
        assert words in (getattr(found, field) or "")
        assert (found.trouble, found.samples_ms, found.error_to_exact) == (getattr(found, field), None, None)
    found = tried(line("kernel"), off_by(0.05, one=0.02, other=TOLERANCE))  # 8 bits are so far from exact attention
    assert (found.trouble, found.samples_ms, found.error_to_exact) == (None, (), 0.05)


def tried(line: Line, check: Callable[[], dict]) -> Line:
    return contenders.tried(Trial(line, check=check), CPU)


def test_contenders_on_a_machine_without_a_card() -> None:
    """Every one of them has a line; ours says why not."""
    every = contenders.contenders(Inputs(TINY, CPU), {"1": None}, ["fp8-fp16", "int8-int32"])
    found = [one.line for one in every]
    assert [one.name for one in found] == [
        *("sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "sdpa-math", "fa2", "fa3", "fa4"),
        *("norm and RoPE, eager", "fp8-fp16", "int8-int32", "flex", "reference"),
    ]
    refused = {one.name for one in found if one.why_not == "it is for CUDA GPUs"}
    assert refused == {"fp8-fp16", "int8-int32", "flex"}


def dense_contenders() -> list[Trial]:
    every = contenders.contenders(Inputs(TINY, CPU), {}, [])
    return [one for one in every if one.line.kind in DENSE]


def test_every_sdpa_backend_is_right_or_says_why_not() -> None:
    found = [contenders.tried(one, CPU) for one in dense_contenders()]
    own = [one.name for one in found if one.kind == "sdpa"]
    assert own == ["sdpa-flash", "sdpa-cudnn", "sdpa-efficient", "sdpa-math"]
    assert {"sdpa-flash", "sdpa-math"} <= {one.name for one in found if one.trouble is None}  # which a CPU has, too
    for one in found:
        assert (one.why_not is None) == (one.error_to_exact is not None) == (one.samples_ms is not None)
    absent = next(one for one in found if one.name == "fa3")
    assert absent.why_not == "not installed: No module named 'flash_attn_interface'"


def test_no_score_matrix_of_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_kernels, "_MOST_SCORES", 1000)
    found = {one.line.name: one.line.why_not for one in dense_contenders()}
    assert "whole score matrix" in (found["sdpa-math"] or "")
    assert not found["sdpa-flash"]


def test_contenders_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "why_not", lambda *_: None)
    inputs, windows = Inputs(TINY, CPU), {"1": None, "1/3": (1, 3, 3)}
    found = [c.line for c in contenders.ours(inputs, windows, "fp8-fp32")]
    assert [one.kind for one in found] == ["prologue", "kernel", "together", "kernel", "together"]
    before, whole, both, sparse, _ = found
    assert both.stages == (*before.stages, *whole.stages)
    for number in (0, 1):  # operations and exponentials
        assert sparse.stages[0][number] == pytest.approx(whole.stages[0][number] * RAGGED.density((1, 3, 3)))
    assert sparse.stages[0][2] == whole.stages[0][2]
