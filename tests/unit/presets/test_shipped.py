"""Every preset that ships: what it promises, and what `fpsgen presets show` says of it against lists really built."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch
from typer.testing import CliRunner

from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.attention.tiles import TileGrid, key_lists
from fpsgen.cli import app
from fpsgen.presets import Setting, shipped
from fpsgen.presets.cost import RATES
from fpsgen.solvers import Solver
from fpsgen.weights import models
from fpsgen.weights.load import load_transformer

NAMES = shipped.names()
# By size, or by a preset's name: tokens and tiles. By family: layers, heads, shift, the size that is shown where none
# is said.
GRIDS = {
    "5b-720p": TileGrid((31, 22, 40), (3, 8, 5)),
    "480p": TileGrid((21, 30, 52), (3, 10, 4)),
    "720p": TileGrid((21, 45, 80), (3, 5, 8)),
    "pocket": TileGrid((7, 6, 10), (2, 2, 2)),
    "1.3b-vsa": TileGrid((21, 30, 52), (4, 4, 4)),
    "14b-vsa": TileGrid((21, 45, 80), (4, 4, 4)),
    "5b-vsa": TileGrid((31, 22, 40), (4, 4, 4)),
}
MODELS = {
    "1.3b": (30, 12, 8.0, 50),
    "14b": (40, 40, 5.0, 50),
    "2.2-14b": (40, 40, 12.0, 40),
    "5b": (30, 24, 5.0, 50),
    "pocket": (6, 3, 3.0, 20),
}
WAN = [*(f"{family}-{size}" for family in ("1.3b", "14b", "2.2-14b") for size in ("480p", "720p")), "5b-720p"]


def show(name: str, *options: object) -> dict:
    result = CliRunner().invoke(app, ["presets", "show", name, *map(str, options), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def grid_of(name: str) -> TileGrid:
    return next((tiles for size, tiles in GRIDS.items() if size in name), GRIDS["720p"])


@cache
def pairs(tiles: TileGrid, own: KeyTiles, mean_key: float) -> float:
    """Pairs of a token and a key that one head computes, counted in the lists: for each query token the tokens of its
    list and, with a summary, a key for each tile that is not in it, which counts as `mean_key`. Which tiles are the
    `top` ones, only q and k say; they count as tiles of the mean size."""
    count = len(tiles.valid)
    if own.top is not None:
        listed = math.ceil(own.top * count - 1e-9)
        found = tiles.tokens**2 * listed / count
    elif own.window is None:
        return tiles.tokens**2
    else:
        lists = key_lists(tiles, own.window)
        (listed,) = {len(each) for each in lists.split()}
        keys = torch.tensor([int(tiles.valid[each.long()].sum()) for each in lists.split()])
        list_of_token = lists.list_of.long().repeat_interleave(tiles.valid)
        assert len(list_of_token) == tiles.tokens
        found = int(keys[list_of_token].sum())
    return found + (mean_key * tiles.tokens * (count - listed) if own.rest == "summary" else 0)


@cache
def counted(plan: AttentionPlan, heads: int, mean_key: float = 1.0) -> float:
    """A plan's density by its lists, head by head."""
    each = [pairs(plan.tiles, plan.key_tiles[index], mean_key) for index in plan.heads or (0,) * heads]
    assert len(each) == heads
    return sum(each) / (heads * plan.tiles.tokens**2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("named", [True, False], ids=["50 steps, shift 5", "defaults"])
def test_what_is_shown_of_each_step_is_what_the_lists_say(name: str, named: bool) -> None:
    told = show(name, *(("--steps", 50, "--shift", 5) if named else ()))
    preset, tiles = shipped.load(name), grid_of(name)
    layers, heads, shift, steps = MODELS[preset.model or "14b"]
    shift, steps = (5.0, 50) if named else (shift, steps)
    levels = Solver(steps, shift).sigmas[:-1].tolist()
    schedule = preset.schedule(levels, tiles, layers, heads)
    shown = [run for run in told["runs"] for _ in range(run["steps"][0], run["steps"][1] + 1)]
    assert told["runs"][0]["steps"][0] == 1
    assert len(shown) == len(schedule) == steps
    densities, costs = [], []
    mean_key = tiles.tokens / len(tiles.valid) / 120  # of a cost: the pocket's tiles stand for tiles of 120 tokens
    for number, (run, level, step) in enumerate(zip(shown, levels, schedule, strict=True), 1):
        assert run["steps"][0] <= number <= run["steps"][1]
        assert run["sigma"][0] >= level >= run["sigma"][1]
        of_layer = {}
        for group in run["layers"]:
            for part in group["at"].split(","):
                first, _, last = part.partition("-")
                of_layer |= dict.fromkeys(range(int(first), int(last or first) + 1), group)
        assert sorted(of_layer) == list(range(layers))
        each = []
        for layer, plan in enumerate(step.attention):
            group = of_layer[layer]
            each.append(counted(plan, heads))
            assert group["density"] == pytest.approx(each[-1], rel=1e-12)
            assert (group["qk"], group["pv"], group["smooth_k"]) == (plan.qk, plan.pv, plan.smooth_k)
            shown_tiles = [(own["window"], own["top"], own["rest"]) for own in group["windows"]]
            assert shown_tiles == [(own.window and list(own.window), own.top, own.rest) for own in plan.key_tiles]
            costs.append(counted(plan, heads, mean_key) * RATES[plan.qk])
        assert run["density"] == pytest.approx(sum(each) / layers, rel=1e-12)
        densities += each
    assert told["density"] == pytest.approx(sum(densities) / len(densities), rel=1e-9)
    assert told["saved_flops"] / told["dense_flops"] == pytest.approx(1 - told["density"], abs=1e-9)
    assert told["dense_flops"] == pytest.approx(steps * layers * heads * 4 * 128 * tiles.tokens**2)
    # What it adds is little: rounding (0.011 at 480p, 0.013 for 5B's fewer tokens), the choice of tiles, means of tiles
    # that are seen.
    assert 0 <= told["cost"] - sum(costs) / len(costs) < 0.02


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_whom_it_is_for(name: str) -> None:
    preset = shipped.load(name)
    assert preset.name == name
    assert preset.about
    families = [family for family in MODELS if name.startswith(f"{family}-")]
    assert preset.model == (families[0] if families else None)
    if "pocket" not in name:
        assert preset.measured is None  # nobody has run it
        size = {"480p": (832, 480), "720p": (1280, 720)}.get(name.split("-")[-2] if "-" in name else "")
        assert shipped.size_of(preset) == size


def test_every_grade_of_every_wan_model_and_size_ships() -> None:
    assert {f"{own}-{grade}" for own in WAN for grade in shipped.GRADES} <= set(NAMES)
    for own in WAN:
        family, _, size = own.rpartition("-")
        width, height = {"480p": (832, 480), "720p": (1280, 720)}[size]
        for grade in shipped.GRADES:
            assert shipped.of_grade(grade, family, width, height).name == f"{own}-{grade}"
            assert shipped.of_grade(grade, family, height, width).name == f"{own}-{grade}"


def test_the_pocket_s_grades_are_calibrated_on_the_very_model_that_ships() -> None:
    model = models.find("pocket")
    weights = load_transformer(model.checkpoint, torch.device("cpu"), torch.float32).fingerprint()
    found = [shipped.of_grade(grade, "pocket", 1280, 720) for grade in shipped.GRADES]
    for preset in found:
        assert preset.measured is not None
        assert preset.measured.weights == weights
        told = show(preset.name)
        assert told["density"] == pytest.approx(preset.measured.density, abs=1e-4)
        assert told["cost"] == pytest.approx(preset.measured.cost, abs=1e-4)
        assert preset.surprise(weights, model.defaults) is None
        assert preset.surprise("0" * 16, model.defaults)
    costs = [preset.measured.cost for preset in found if preset.measured]
    qualities = [preset.measured.psnr for preset in found if preset.measured]
    assert costs == sorted(costs, reverse=True)
    assert qualities == sorted(qualities, reverse=True)


@pytest.mark.parametrize(
    ("size", "named"),
    [((848, 480), "480p"), ((832, 496), "480p"), ((1024, 576), "480p"), ((800, 800), "720p"), ((1024, 704), "720p")],
)
def test_another_size_takes_the_grade_of_the_nearest(size: tuple[int, int], named: str) -> None:
    assert shipped.of_grade("fast", "14b", *size).name == f"14b-{named}-fast"
    assert shipped.of_grade("fast", "5b", *size).name == "5b-720p-fast", "no other one ships for this model"


@pytest.mark.parametrize("own", WAN)
def test_grades_are_ordered(own: str) -> None:
    quality, balanced, fast = (show(f"{own}-{grade}") for grade in shipped.GRADES)
    assert 1 > quality["cost"] > balanced["cost"] > fast["cost"]
    assert 1 >= quality["density"] > balanced["density"] > fast["density"]


@pytest.mark.parametrize("grade", shipped.GRADES)
def test_fewer_tokens_and_the_smaller_model_keep_more(grade: str) -> None:
    density = {own: show(f"{own}-{grade}")["density"] for own in WAN}
    for family in ("1.3b", "14b", "2.2-14b"):
        assert density[f"{family}-480p"] > density[f"{family}-720p"]
    for size in ("480p", "720p"):
        assert density[f"1.3b-{size}"] >= density[f"14b-{size}"]


@pytest.mark.parametrize("own", WAN)
@pytest.mark.parametrize("grade", shipped.GRADES)
def test_wan_s_presets_start_dense_and_then_drop_nothing(own: str, grade: str) -> None:
    """Dense in the first fifth of the steps, then a share of the tiles with a summary of the rest; q and k in INT8."""
    preset = shipped.load(f"{own}-{grade}")
    levels = Solver(50, MODELS[preset.model or ""][2]).sigmas[:-1].tolist()
    steps = [preset.at(level) for level in levels]
    assert all(is_dense(phase) and not phase.layers for phase in steps[:10])
    for phase in preset.phases:
        first, others = phase.of_layer(0), phase.of_layer(2)
        assert {first.qk, others.qk} <= {"bf16", "int8"}
        assert (others.pv == "fp8") == (others.qk == "int8")
        assert is_dense(others) or (others.top is not None and others.rest == "summary")
        assert is_dense(first) or not phase.sigma[1]  # but for the last steps


@pytest.mark.parametrize("own", WAN)
def test_quality_is_careful(own: str) -> None:
    """It is exact at both ends, and in no step and layer does it compute less than half of the tiles."""
    preset = shipped.load(f"{own}-quality")
    levels = Solver(50, MODELS[preset.model or ""][2]).sigmas[:-1].tolist()
    steps = [preset.at(level) for level in levels]
    for phase in (*steps[:5], *steps[-5:]):
        assert is_dense(phase)
        assert phase.qk == "bf16"
    assert all(is_dense(phase) for phase in steps[:15])
    assert min(phase.top or 1 for phase in steps) >= 0.5


def is_dense(own: Setting) -> bool:
    return (own.window, own.density, own.top, own.heads) == (None, None, None, "")


def test_the_paper_s_operating_point() -> None:
    """FP8 everywhere, k as it is; sparse, then densest, then between; a mean between 0.22 and 0.26 at 720p."""
    told = show("paper", "--model", "14b", "--res", "720p", "--steps", 50, "--shift", 5)
    assert {(group["qk"], group["pv"], group["smooth_k"]) for run in told["runs"] for group in run["layers"]} == {
        ("fp8", "fp8", False)
    }
    early, middle, late = (run["density"] for run in told["runs"])
    assert early == pytest.approx(1 / 6)
    assert early < late < middle
    assert [run["steps"] for run in told["runs"]] == [[1, 10], [11, 40], [41, 50]]
    assert told["density"] == pytest.approx(0.243, abs=5e-4)
