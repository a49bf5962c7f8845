"""Our kernel and its prologue on a Hopper card, small: against the emulator, and the CPU machine that runs the very
sources; on streams, in dirty memory, on several cards. `test_hopper_sizes` has Wan2.1's true shapes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from fpsgen.attention import door, emulator, hopper
from fpsgen.attention.emulator import TOLERANCE, VARIANTS, emulate
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.sums import Sums
from fpsgen.attention.tiles import TileGrid
from fpsgen.bench.attention.check import Oracles, sampled_rows
from fpsgen.kernels import sm90_attention as kernels
from tests.gpu.hopper import another_card, tell
from tests.kernels import cases, host
from tests.kernels.cases import (
    MANY,
    MIXED,
    RAGGED,
    TOP_SUMMARY,
    Given,
    assert_same_operands,
    line,
    moved,
    plan_for,
    prepared,
    random_qkv,
)

# As a string it is looked at when a test runs, not when tests are collected, which shall not wake the card.
pytestmark = [pytest.mark.gpu, pytest.mark.skipif("another_card()", reason="for Hopper")]
assert another_card  # the mark's string names it

GRIDS = {**cases.GRIDS, "more tiles than SMs": TileGrid((3, 50, 80), (3, 5, 8))}


def inputs(tiles: TileGrid, heads: int = 2, batch: int = 1, seed: int = 0) -> Given:
    """Drawn on the CPU, hence the same on every card."""
    return moved(cases.inputs(tiles, heads, batch, seed), "cuda")


def emulated_errors(given: Given, plan: AttentionPlan, name: str) -> dict[str, float]:
    """Of the card's result, by the rule that its sums may obey."""
    found = hopper.attention(*given, plan, name)
    oracles = Oracles(*prepared(given), given[2], torch.arange(plan.tiles.tokens))
    return oracles.emulated_errors(found, plan, name)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("smooth_k", [True, False])
def test_dense(name: str, grid: str, smooth_k: bool, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = GRIDS[grid]
    errors = emulated_errors(inputs(tiles), plan_for(name, tiles, smooth_k=smooth_k), name)
    tell(capsys, errors)
    assert min(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("name", VARIANTS)
def test_windows_by_head_over_a_batch(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two batch entries; one head dense, one with a window, one with lists of one tile."""
    plan = plan_for(name, RAGGED, ((1, 1, 3), None, (1, 1, 1)), heads=(2, 0, 1))
    errors = emulated_errors(inputs(RAGGED, heads=3, batch=2), plan, name)
    tell(capsys, errors)
    assert min(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("name", VARIANTS)
def test_windows_in_pairs_are_those_of_each_block_alone(name: str) -> None:
    """Bit for bit, where some pairs share their list and others do not; an odd number of tiles."""
    tiles = TileGrid((3, 35, 72), (3, 5, 8))  # 7 x 9
    given, plan = inputs(tiles, heads=3), plan_for(name, tiles, (None, (1, 3, 3)), heads=(0, 1, 1))
    together = hopper.attention(*given, plan, name)
    with mock.patch.dict(kernels.VARIANTS, {name: replace(kernels.VARIANTS[name], CLUSTER=1)}):
        assert torch.equal(hopper.attention(*given, plan, name), together)


@pytest.mark.parametrize("name", VARIANTS)
def test_list_lengths(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the ring of stages once, twice, three times, and every remainder of a promotion, by both consumers."""
    found = {}
    for length in range(1, 13):
        tiles, window = line(length)
        plan = plan_for(name, tiles, (window,))
        found[length] = min(emulated_errors(inputs(tiles, heads=3), plan, name).values())
    tell(capsys, max(found.values()))
    assert max(found.values()) <= TOLERANCE, found


# ---- key tiles by their content, and a summary of the rest -----------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("grid", ["ragged", "of 120", "full", "ragged, of 128"])
def test_given_lists_and_a_summary(name: str, grid: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel alone, on what the emulator rounded and chose: a head of each kind, two batch entries."""
    tiles = GRIDS[grid]
    q, k, v = random_qkv(tiles, heads=4, batch=2)
    plan = plan_for(name, tiles, **MIXED)  # type: ignore[arg-type]
    operands = {key: torch.tensor(x) for key, x in host.images(q, k, v, plan, name).items()} | host.lists(q, k, plan)
    found = hopper.attention_over({key: x.cuda() for key, x in operands.items()}, plan, name, 2)
    errors = emulator.errors(
        found.cpu(), VARIANTS[name], lambda sums: emulate(q, k, v, plan, VARIANTS[name], sums=sums)
    )
    tell(capsys, errors)
    assert min(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("tiles", [RAGGED, MANY, GRIDS["more tiles than SMs"]], ids=["ragged", "many", "of 120"])
def test_what_it_chooses_and_computes(name: str, tiles: TileGrid, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way, against the emulator over the lists that the card chose."""
    given = inputs(tiles, heads=3, batch=2)
    plan = plan_for(name, tiles, (TOP_SUMMARY,))
    chosen = hopper.choose(hopper.prologue(*given, plan, name), plan, 2)["chosen"].view(2, 3, len(tiles.valid), -1)
    found = hopper.attention(*given, plan, name)
    rows = sampled_rows(tiles)

    def emulated(sums: Sums) -> Tensor:
        lists = {0: chosen.long()}
        return emulate(*prepared(given), given[2], plan, VARIANTS[name], sums=sums, rows=rows, chosen=lists)

    errors = emulator.errors(found[:, rows.to(found.device)], VARIANTS[name], emulated)
    tell(capsys, errors)
    assert min(errors.values()) <= TOLERANCE, errors


@pytest.mark.parametrize("name", VARIANTS)
def test_lists_of_all_tiles_are_dense_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(RAGGED)
    plan = plan_for(name, RAGGED, (KeyTiles(top=0.78, rest="summary"),))
    monkeypatch.setattr(KeyTiles, "count", lambda own, tiles: len(tiles.valid))
    assert torch.equal(hopper.attention(*given, plan, name), hopper.attention(*given, plan_for(name, RAGGED), name))


# ---- the prologue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("grid", ["ragged", "of 120", "full"])
@pytest.mark.parametrize("smooth_k", [True, False])
def test_prologue_makes_the_emulator_s_operands(name: str, grid: str, smooth_k: bool) -> None:
    given = inputs(GRIDS[grid], batch=2)
    plan = plan_for(name, GRIDS[grid], smooth_k=smooth_k)
    found = {key: x.cpu().numpy() for key, x in hopper.prologue(*given, plan, name).items()}
    there = moved(given, "cpu")
    assert_same_operands(found, host.images(*prepared(there), there[2], plan, name), plan)


@pytest.mark.parametrize("name", VARIANTS)
def test_v_beyond_the_scale_of_its_sample(name: str) -> None:
    """Many threads then go for the same words, and the last launch is more than a glance."""
    tiles = GRIDS["of 120"]
    there = cases.with_spikes(cases.inputs(tiles, heads=3, batch=2), tiles, 1000.0)
    plan = plan_for(name, tiles)
    found = {key: x.cpu().numpy() for key, x in hopper.prologue(*moved(there, "cuda"), plan, name).items()}
    assert_same_operands(found, host.images(*prepared(there), there[2], plan, name), plan)


@pytest.mark.skipif(not shutil.which("g++"), reason="the CPU machine is compiled by g++")
@pytest.mark.parametrize("name", VARIANTS)
def test_prologue_is_the_cpu_machine_s(name: str) -> None:
    given = inputs(RAGGED, batch=2)
    plan = plan_for(name, RAGGED)
    found = {key: x.cpu().numpy() for key, x in hopper.prologue(*given, plan, name).items()}
    expected = host.prologue(*moved(given, "cpu"), plan, name)
    assert_same_operands(found, expected, plan)
    for key in ("q_pooled", "k_pooled"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-4, atol=1e-5, err_msg=key)


# ---- as a guest in torch's process ----------------------------------------------------------------------------------


@pytest.fixture(params=["fp8-fp16", "int8-int32"])
def job(request: pytest.FixtureRequest) -> tuple[Given, AttentionPlan, str]:
    tiles = GRIDS["of 120"]
    return inputs(tiles, heads=3), plan_for(request.param, tiles, ((1, 1, 1),)), request.param


def test_cupy_allocates_nothing(job: tuple[Given, AttentionPlan, str]) -> None:
    import cupy

    given, plan, name = job
    hopper.attention(*given, plan, name)
    torch.cuda.synchronize()
    assert cupy.get_default_memory_pool().total_bytes() == 0
    assert cupy.get_default_pinned_memory_pool().n_free_blocks() == 0


def test_it_runs_on_torch_s_stream(job: tuple[Given, AttentionPlan, str]) -> None:
    """What it reads is there only after a tenth of a second on that stream; any other would read NaN."""
    (q, k, v, transform), plan, name = job
    expected = hopper.attention(q, k, v, transform, plan, name)
    late = [torch.full_like(x, torch.nan) for x in (q, k, v)]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        for place, x in zip(late, (q, k, v), strict=True):
            place.copy_(x)
        found = hopper.attention(*late, transform, plan, name)
    assert not side.query()  # it came back before anything ran
    side.synchronize()
    assert torch.equal(found, expected)


def test_two_streams_do_not_mix(job: tuple[Given, AttentionPlan, str]) -> None:
    _, plan, name = job
    givens = [inputs(plan.tiles, heads=3, seed=seed) for seed in (1, 2)]
    expected = [hopper.attention(*given, plan, name) for given in givens]
    torch.cuda.synchronize()
    found: list[list[Tensor]] = [[], []]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for _ in range(20):
        for stream, given, results in zip(streams, givens, found, strict=True):
            with torch.cuda.stream(stream):
                results.append(hopper.attention(*given, plan, name))
    torch.cuda.synchronize()
    assert not torch.equal(*expected)
    for results, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(result, wanted) for result in results)


def test_the_same_bits_in_dirty_memory(job: tuple[Given, AttentionPlan, str]) -> None:
    """Between runs, memory of random sizes is filled with NaN and handed back: what the next run gets is dirty."""
    given, plan, name = job
    first = hopper.attention(*given, plan, name)
    assert first.isfinite().all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        sizes = torch.randint(1, 2**20, (30,), generator=generator).tolist()
        dirty = [torch.full((size,), torch.nan, device="cuda") for size in sizes]
        del dirty
        assert torch.equal(hopper.attention(*given, plan, name), first)


def test_a_thousand_launches_give_the_same_bits(job: tuple[Given, AttentionPlan, str]) -> None:
    """One after another, with nothing to wait for in between."""
    given, plan, name = job
    first = hopper.attention(*given, plan, name)
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        different += (hopper.attention(*given, plan, name) != first).any()
    assert first.isfinite().all()
    assert int(different) == 0


def test_nothing_is_read_that_was_not_written(job: tuple[Given, AttentionPlan, str]) -> None:
    """torch fills what `torch.empty` gives with NaN, and with the largest integers."""
    given, plan, name = job
    first = hopper.attention(*given, plan, name)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = hopper.attention(*given, plan, name)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    assert torch.equal(found, first)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two cards")
def test_another_card_than_the_current_one(job: tuple[Given, AttentionPlan, str]) -> None:
    given, plan, name = job
    expected = hopper.attention(*given, plan, name)
    there = torch.device("cuda", 1)
    found = hopper.attention(*moved(given, there), plan, name)
    assert found.device == there
    assert torch.equal(found.cpu(), expected.cpu())


@pytest.mark.parametrize("qk", ["fp8", "int8"])
def test_attend_takes_it_for_8_bits(qk: str) -> None:
    given, plan = inputs(RAGGED), AttentionPlan(RAGGED, ((1, 1, 3),), (), qk, "fp8")  # type: ignore[arg-type]
    assert door.choose(given[0].device, plan, 128).name == "hopper"
    assert torch.equal(door.attend(*given, plan), hopper.attention(*given, plan))


@pytest.mark.parametrize(
    ("plan", "head_dim", "chosen"),
    [
        (AttentionPlan(RAGGED), 128, "dense"),
        (AttentionPlan(RAGGED, qk="int8", pv="fp8"), 64, "reference"),
        (AttentionPlan(RAGGED, qk="int8"), 128, "reference"),
        (AttentionPlan(GRIDS["of 120"], ((1, 1, 1),)), 128, "flex"),
    ],
)
def test_attend_leaves_the_rest_to_others(plan: AttentionPlan, head_dim: int, chosen: str) -> None:
    assert door.choose(torch.device("cuda", 0), plan, head_dim).name == chosen


def test_dtypes_and_gradients() -> None:
    """float32 comes back as float32; a gradient is refused."""
    q, k, v, transform = inputs(RAGGED)
    plan = plan_for("int8-int32", RAGGED)
    expected = hopper.attention(q, k, v, transform, plan)
    found = hopper.attention(q.float(), k.float(), v.float(), transform, plan)
    assert found.dtype == torch.float32
    assert torch.equal(found.bfloat16(), expected)
    with pytest.raises(NotImplementedError, match="no gradients"):
        hopper.attention(q.float().requires_grad_(), k, v, transform, plan)
