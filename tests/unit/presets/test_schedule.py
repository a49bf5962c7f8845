"""From noise levels to what each layer and head does."""

from __future__ import annotations

import pytest

from fpsgen.attention.plan import AttentionPlan, KeyTiles, as_key_tiles
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import UsageError
from fpsgen.presets import BF16, Preset, file
from fpsgen.settings import Settings
from fpsgen.solvers import Solver, SolverName
from fpsgen.wan.plan import dense
from tests.tools.presets import HEADS, LAYERS, MEASURED, random_preset

TILES = TileGrid((7, 6, 10), (2, 2, 2))  # 4 x 3 x 5
WIDE = TileGrid((14, 10, 22), (2, 2, 2))  # 7 x 5 x 11
ONE = "format = 1\n[[phase]]\nsigma = [1.0, 0.0]\n"
WHOLE = """\
format = 1
model = "14b"
[windows]
a = [3, 3, 5]
b = [9, 9, 9]
[[phase]]
sigma = [1.0, 0.9]
[[phase]]
sigma = [0.9, 0.5]
window = [3, 3, 3]
qk = "fp8"
pv = "fp8"
smooth_k = false
[[phase.layers]]
at = "0"
window = "dense"
[[phase.layers]]
at = "2-3"
heads = "-aab"
qk = "int8"
[[phase]]
sigma = [0.5, 0.0]
window = [9, 9, 9]
qk = "int8"
"""


def parse(text: str) -> Preset:
    return file.parse(text.encode(), "mine.toml")


def test_each_step_layer_and_head_gets_its_plan() -> None:
    steps = parse(WHOLE).schedule([1.0, 0.9000001, 0.9, 0.5001, 0.5, 0.0], TILES, 5, 4)
    exact, wide = AttentionPlan(TILES), AttentionPlan(TILES, qk="int8")  # a window beyond the grid is dense
    fp8 = {"qk": "fp8", "pv": "fp8", "smooth_k": False}
    dense, most = AttentionPlan(TILES, **fp8), AttentionPlan(TILES, ((3, 3, 3),), **fp8)
    heads = AttentionPlan(TILES, (None, (3, 3, 5)), (0, 1, 1, 0), **{**fp8, "qk": "int8"})
    middle = (dense, most, heads, heads, most)
    assert [step.attention for step in steps] == [(exact,) * 5, middle, middle, middle, (wide,) * 5, (wide,) * 5]


def test_a_step_uses_again_only_what_an_earlier_one_has_left() -> None:
    ways = ("compute = 'reuse'", "guidance = 'off'", "guidance = 'reuse'", "guidance = 'full'", "guidance = 'reuse'")
    phases = [f"[[phase]]\nsigma = [{1 - i / 5}, {0.8 - i / 5:.1f}]\n{way}\n" for i, way in enumerate(ways)]
    text = "format = 1\n" + "".join(phases).replace("0.6000000000000001", "0.6").replace("0.19999999999999996", "0.2")
    preset = parse(text.replace("0.3999999999999999", "0.4"))
    steps = preset.schedule([1.0, 0.9, 0.7, 0.5, 0.45, 0.3, 0.1], TILES, 2, 4)
    assert [step.compute for step in steps] == ["full", "reuse", *["full"] * 5]
    assert [step.guidance for step in steps] == ["full", "full", "off", "reuse", "reuse", "full", "reuse"]
    late = preset.schedule([0.7, 0.5], TILES, 2, 4)
    assert [step.guidance for step in late] == ["off", "full"]
    assert not preset.is_exact


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_a_boundary_that_is_a_solver_s_level_begins_the_next_phase(solver: SolverName) -> None:
    """Levels are float32: 0.9 may be a little more or less. Without a shift, 10 steps of DPM++ go by tenths."""
    levels = Solver(10, 1.0, solver).sigmas.tolist()
    for level in levels[1:-1]:
        end = round(level, 6)
        preset = parse(f"{ONE.replace('0.0]', f'{end}]')}[[phase]]\nsigma = [{end}, 0.0]\n")
        assert [preset.at(x) is preset.phases[1] for x in levels[:-1]] == [x <= level for x in levels[:-1]]


@pytest.mark.parametrize("seed", range(60))
def test_heads_see_what_the_file_says(seed: int) -> None:
    """Every random preset, head by head: its window by the preset's own fields, not by the plan's."""
    preset = random_preset(seed)
    for phase, step in preset.plans(WIDE, LAYERS, HEADS).items():
        for number, plan in enumerate(step.attention):
            own = next((layers for layers in phase.layers if number in layers.at), phase)
            assert (plan.qk, plan.pv, plan.smooth_k) == (own.qk, own.pv, own.smooth_k)
            got = [plan.key_tiles[index] for index in plan.heads or (0,) * HEADS]
            if own.heads:
                wanted = [as_key_tiles(preset.windows.get(letter)) for letter in own.heads]
            else:
                window = own.window if own.density is None else WIDE.window_of(own.density)
                wanted = [KeyTiles(window, own.top, own.rest)] * HEADS
            assert got == [fitting(one) for one in wanted]


def fitting(own: KeyTiles) -> KeyTiles:
    """Where nothing is skipped, dense."""
    window = own.window and WIDE.fit(own.window)
    skips = window or (own.top is not None and own.count(WIDE) < 7 * 5 * 11)
    return KeyTiles(window, own.top, own.rest) if skips else KeyTiles()


def test_equal_plans_are_one() -> None:
    """Their key lists and compiled kernels are shared."""
    plans = parse(ONE + "window = [3, 3, 3]\n[[phase.layers]]\nat = '1'\nwindow = [3, 3, 3]\n").plans(TILES, 3, 1)
    (step,) = plans.values()
    assert len({id(plan) for plan in step.attention}) == 1


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("qk = 'fp8'", {"qk": "fp8"}),
        ("pv = 'bf16'", {"pv": "bf16"}),
        ("smooth_k = false", {"smooth_k": False}),
        ("window = [1, 3, 3]", {"seen": ((1, 3, 3),)}),
        ("window = 'dense'", {"seen": (None,)}),
        ("heads = 'ab'", {"seen": ((3, 3, 3), (1, 1, 3)), "heads": (0, 1)}),
        ("heads = 'ba'", {"seen": ((1, 1, 3), (3, 3, 3)), "heads": (0, 1)}),
    ],
)
def test_plans_that_differ_in_one_thing_stay_two(own: str, expected: dict) -> None:
    """Of one layer in two phases. Equal plans are shared; that must not make one of two that are nearly equal."""
    usual = "window = [3, 3, 3]\nqk = 'int8'\npv = 'fp8'\n"
    said = "[[phase]]\nsigma = [{}]\n" + usual + "[[phase.layers]]\nat = '1'\n{}\n"
    windows = "[windows]\na = [3, 3, 3]\nb = [1, 1, 3]\n" if "heads" in own else ""
    preset = parse("format = 1\n" + said.format("1.0, 0.5", "qk = 'int8'") + said.format("0.5, 0.0", own) + windows)
    first, second = (step.attention[1] for step in preset.plans(TILES, 2, 2).values())
    fields: dict = {"seen": ((3, 3, 3),), "heads": (), "qk": "int8", "pv": "fp8", "smooth_k": True}
    for plan, wanted in ((first, fields), (second, fields | expected)):
        assert {name: getattr(plan, name) for name in fields} == wanted
    assert len({first, second}) == 2


def test_heads_that_exchange_windows_are_two_plans() -> None:
    """Of one layer in two phases, all else being equal."""
    said = "[[phase]]\nsigma = [{}]\n[[phase.layers]]\nat = '0'\nheads = '{}'\n"
    windows = "[windows]\na = [3, 3, 3]\nb = [1, 1, 3]\n"
    preset = parse("format = 1\n" + said.format("1.0, 0.5", "ab") + said.format("0.5, 0.0", "ba") + windows)
    plans = [step.attention[0] for step in preset.plans(TILES, 1, 2).values()]
    seen = [[plan.seen[index] for index in plan.heads] for plan in plans]
    assert seen == [[(3, 3, 3), (1, 1, 3)], [(1, 1, 3), (3, 3, 3)]]


@pytest.mark.parametrize("density", [1e-9, 0.05, 0.25, 0.5, 0.9, 1.0])
def test_density_is_kept_at_least_and_little_more(density: float) -> None:
    (step,) = parse(ONE + f"density = {density}\n").plans(WIDE, 1, 1).values()
    kept = step.density
    others = sorted(WIDE.density(None if window == WIDE.counts else window) for window in WIDE.windows)
    assert kept >= density * (1 - 1e-9)
    assert kept <= max(1.35 * density, others[0])  # windows there are lie this close
    assert (kept == 1) == step.attention[0].is_dense


def test_bf16_is_dense_everywhere() -> None:
    assert BF16.schedule([1.0, 0.3], TILES, 2, 3) == [dense(TILES, 2)] * 2


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        (ONE + "qk = 'fp8'\nwindow = [2, 3, 5]\n", 5, "window (2, 3, 5): 2 of 4 tiles along T is even"),
        (ONE + "[[phase.layers]]\nat = '1'\nwindow = [2, 3, 5]\n", 6, "2 of 4 tiles along T is even"),
        (ONE + "heads = '--a'\n[windows]\na = [3, 2, 5]\n", 6, "2 of 3 tiles along H is even"),
        (ONE + "heads = '----'\n", 4, "heads has 4 letters, and this model 3 heads"),
        (ONE + "[[phase.layers]]\nat = '1'\nheads = '-'\n", 6, "heads has 1 letters"),
        (ONE + "[[phase.layers]]\nat = '0,5-6'\nqk = 'fp8'\n", 5, "there is no layer 6: this model's are 0 to 4"),
        (ONE + "[[phase.layers]]\nat = '5'\nqk = 'fp8'\n", 5, "there is no layer 5: this model's are 0 to 4"),
    ],
)
def test_what_does_not_fit_the_video_or_the_model(text: str, line: int, told: str) -> None:
    with pytest.raises(UsageError, match=f"^preset mine.toml, line {line}: ") as caught:
        parse(text).schedule([0.5], TILES, 5, 3)
    assert told in str(caught.value)
    assert caught.value.hint
    if "even" in told:
        assert "4 x 3 x 5 tiles" in caught.value.hint


def test_what_no_step_uses_must_fit_too() -> None:
    """Else a preset would fail at 50 steps that ran at 20."""
    text = ONE.replace("0.0]", "0.5]") + "[[phase]]\nsigma = [0.5, 0.0]\nwindow = [2, 3, 5]\n"
    with pytest.raises(UsageError, match="line 6"):
        parse(text).schedule([0.9], TILES, 1, 1)


def test_a_preset_is_for_its_family() -> None:
    preset = parse("format = 1\n\n" + 'model = "14b"\n' + ONE.split("\n", 1)[1])
    preset.check_family("14b")
    parse(ONE).check_family("pocket")
    with pytest.raises(UsageError, match=r"preset mine.toml, line 3: it is for 14b, .* family 1.3b"):
        preset.check_family("1.3b")


def test_what_a_user_should_know_is_one_sentence() -> None:
    """One rule says whether a measured quality holds for a run: on these weights, and at every setting it was measured
    at."""
    weights, own = "0123456789abcdef", Settings(160, 96, 25, 8, 20, 4.0, 3.0, "")
    assert BF16.surprise("w", own) is None
    assert "not calibrated" in (parse(ONE + "qk = 'fp8'\n").surprise("w", own) or "")
    preset = parse(ONE + "qk = 'fp8'\n" + MEASURED)
    assert preset.surprise(weights, own) is None
    assert preset.surprise(weights, own.override(fps=16, negative="blurry")) is None
    for here, then in (
        (own.override(width=96, height=160), "160x96"),
        (own.override(frames=29), "25 frames"),
        (own.override(steps=10), "20 steps"),
        (own.override(shift=5.0), "shift 3"),
        (own.override(guidance=1.0), "guidance 4"),
        (own.override(solver="euler"), "the solver unipc"),
        (own.override(sigmas="diffusers"), "the original sigmas"),
    ):
        assert preset.differences(weights, here) == [then]
        assert then in (preset.surprise(weights, here) or "")
    assert preset.differences("other", own.override(steps=10)) == ["other weights", "20 steps"]
