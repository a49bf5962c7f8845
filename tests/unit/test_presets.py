"""Preset files: what they may say, and the one sentence for what they may not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from fpsgen import presets
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import UsageError
from fpsgen.presets import Phase
from fpsgen.sampling import Solver, SolverName

WHOLE = """
format = 1
tile = [2, 2, 2]

[[phase]]
sigma = [1, 0.9]

[[phase]]
sigma = [0.9, 0.5]
window = [3, 3, 5]
qk = "fp8"
pv = "fp8"
smooth_k = false

[[phase]]
sigma = [0.5, 0]
window = [9, 9, 9]
qk = "int8"
pv = "bf16"
"""
TILES = TileGrid((7, 6, 10), (2, 2, 2))  # 4 x 3 x 5
ONE = "format = 1\n[[phase]]\nsigma = [1.0, 0.0]\n"


def test_a_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "whole.toml").write_text(WHOLE)
    preset = presets.find(str(tmp_path / "whole.toml"))
    assert preset.name == "whole.toml"
    assert preset.tile == (2, 2, 2)
    assert preset.phases == (
        Phase((1.0, 0.9)),
        Phase((0.9, 0.5), (3, 3, 5), "fp8", "fp8", smooth_k=False),
        Phase((0.5, 0.0), (9, 9, 9), "int8", "bf16"),
    )


def test_each_step_gets_the_plan_of_its_noise_level() -> None:
    preset = presets.parse(WHOLE.encode(), "whole")
    dense, fp8, int8 = (
        AttentionPlan(TILES),
        AttentionPlan(TILES, ((3, 3, 5),), (), "fp8", "fp8", smooth_k=False),
        AttentionPlan(TILES, (None,), (), "int8", "bf16"),  # a window beyond the grid is dense
    )
    sigmas = [1.0, 0.95, 0.9, 0.7, 0.5001, 0.5, 0.01, 0.0]
    assert preset.schedule(sigmas, TILES) == [dense, dense, fp8, fp8, fp8, int8, int8, int8]


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_a_boundary_that_is_a_solver_s_level_begins_the_next_phase(solver: SolverName) -> None:
    """Levels are float32: 0.9 may be a little more or less. Without a shift, 10 steps of DPM++ go by tenths."""
    levels = Solver(10, 1.0, solver).sigmas.tolist()
    for level in levels[1:-1]:
        end = round(level, 6)
        preset = presets.parse(f"{ONE.replace('0.0]', f'{end}]')}[[phase]]\nsigma = [{end}, 0.0]\n".encode(), "x")
        assert [preset.at(x) is preset.phases[1] for x in levels[:-1]] == [x <= level for x in levels[:-1]]


def test_examples_are_presets() -> None:
    """The README's, and the one of the module."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    module = (presets.__doc__ or "").split("preset:")[1].split("Phases")[0]
    for text in (readme.split("```toml")[1].split("```")[0], module):
        assert len(presets.parse(textwrap.dedent(text).encode(), "example").phases) == 2


def test_bf16_is_dense_everywhere() -> None:
    assert presets.find("bf16").schedule([1.0, 0.3], TILES) == [AttentionPlan(TILES)] * 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("format = 1\n[[phase]\n", "no TOML"),
        ("[[phase]]\nsigma = [1, 0]\n", "does not begin with its format; this fpsgen reads format = 1"),
        (ONE.replace("1\n", "2\n", 1), "format = 2"),
        (ONE.replace("1\n", "true\n", 1), "format = True"),
        (ONE.replace("1\n", "1.0\n", 1), "format = 1.0"),
        ("format = 1\n", "no [[phase]]"),
        ("format = 1\nphase = 3\n", "no [[phase]]"),
        ("format = 1\n[phase]\nsigma = [1, 0]\n", "[phase] needs double brackets"),
        (ONE.replace("[1.0, 0.0]", "[0.0, 1.0]"), "does not fall"),
        (ONE.replace("0.0]", "0.5]") + "[[phase]]\nsigma = [0.6, 0.0]\n", "starts at sigma 0.6 and overlaps"),
        ("format = 1\nphase = []\n", "no [[phase]]"),
        ("format = 1\nphase = [1]\n", "no [[phase]]"),
        ("tiles = [1, 2, 3]\n" + ONE, "no key 'tiles'; did you mean tile?"),
        (ONE + "windows = [1, 1, 1]\n", "phase 1: there is no key 'windows'; did you mean window?"),
        (ONE + "zzz = 1\n", "known are sigma, window, qk, pv, smooth_k"),
        ("tile = [2, 2]\n" + ONE, "tile = [2, 2]; it must be three counts"),
        ("tile = [2, 2, 0]\n" + ONE, "three counts"),
        (ONE + "window = [1, 1.0, 3]\n", "three counts"),
        (ONE + "window = [1, true, 3]\n", "three counts"),
        (ONE + "window = 3\n", "three counts"),
        (ONE + 'qk = "fp4"\n', "qk = 'fp4'; it is one of bf16, fp8, int8"),
        (ONE + 'pv = "int8"\n', "pv = 'int8'; it is one of bf16, fp8"),
        (ONE + "pv = [1]\n", "pv = [1]; it is one of bf16, fp8"),
        (ONE + "smooth_k = 1\n", "smooth_k must be true or false"),
        ("format = 1\n[[phase]]\nqk = 'fp8'\n", "sigma must be two numbers"),
        (ONE.replace("[1.0, 0.0]", "[1.0]"), "sigma must be two numbers"),
        (ONE.replace("[1.0, 0.0]", "['a', 'b']"), "sigma must be two numbers"),
        (ONE.replace("[1.0, 0.0]", "[true, false]"), "sigma must be two numbers"),
        (
            ONE.replace("[1.0, 0.0]", "[0.9, 0.0]"),
            "phase 1: it starts at sigma 0.9 and leaves a gap: it must start at 1",
        ),
        (ONE.replace("[1.0, 0.0]", "[nan, 0.0]"), "noise levels are 0 to 1"),
        (ONE.replace("[1.0, 0.0]", "[1.0, nan]"), "noise levels are 0 to 1"),
        (ONE.replace("[1.0, 0.0]", "[1.0, -1.0]"), "noise levels are 0 to 1"),
        (ONE.replace("[1.0, 0.0]", f"[1{'0' * 400}, 0.0]"), "noise levels are 0 to 1"),
        (ONE.replace("[1.0, 0.0]", f"[0x{'f' * 5000}, 0.0]"), "noise levels are 0 to 1"),
        (ONE + f"window = 0x{'f' * 5000}\n", "window = a number of thousands of digits; it must be three counts"),
        ("format = 1\n" + "[[phase]]\nsigma = [1, 0]\n" * 101, "it has 101 phases; at most 100"),
        (ONE.replace("[1.0, 0.0]", "[1.0, 0.9999999]"), "does not fall"),
        (
            ONE.replace("0.0]", "0.3]") + "[[phase]]\nsigma = [0.30000000000000004, 0]\n",
            "0.30000000000000004 and overlaps",
        ),
        (ONE.replace("[1.0, 0.0]", f"[1{'0' * 5000}, 0.0]"), "no TOML"),
        (ONE + "window = " + "[" * 5000, "no TOML"),
        (ONE + f'qk = "{"x" * 5000}"\n', "it is one of bf16, fp8, int8"),
        (ONE + f"{'x' * 5000} = 1\n", "there is no key"),
        (ONE.replace("[1.0, 0.0]", "[1.0, 1.0]"), "does not fall"),
        (ONE.replace("[1.0, 0.0]", "[1.0, 0.5]"), "the last phase ends at sigma 0.5"),
        (
            ONE.replace("0.0]", "0.5]") + "[[phase]]\nsigma = [0.4, 0.0]\n",
            "phase 2: it starts at sigma 0.4 and leaves a gap: it must start at 0.5",
        ),
        (ONE + "[[phase]]\nsigma = [0.0, 0.0]\n", "phase 2: sigma = [0.0, 0.0] does not fall"),
    ],
)
def test_what_is_wrong_is_said(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        presets.parse(text.encode(), "mine.toml")
    assert told in str(caught.value)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.hint


def test_encodings() -> None:
    with pytest.raises(UsageError, match="not UTF-8 text"):
        presets.parse(ONE.encode("utf-16"), "mine.toml")
    assert presets.parse(ONE.encode("utf-8-sig"), "x") == presets.parse(ONE.encode(), "x")


def test_a_name_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\nb.toml"
    path.write_text("format = 2\n")
    with pytest.raises(UsageError, match=r"preset a\?\[31m\?b.toml: format = 2"):
        presets.find(str(path))


def test_a_window_that_does_not_fit_the_video() -> None:
    preset = presets.parse((ONE + "window = [2, 3, 5]\n").encode(), "mine.toml")
    with pytest.raises(UsageError, match=r"phase 1: window .* 2 of 4 tiles along T is even") as caught:
        preset.schedule([0.5], TILES)
    assert "4 x 3 x 5 tiles" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["", "no-such.toml", "~nobody-here/x.toml", "a\0b", "/"])
def test_files_that_cannot_be_read(name: str) -> None:
    with pytest.raises(UsageError, match=r"the preset|no preset"):
        presets.find(name)


def test_a_file_too_large(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"#" * (2**14 + 1))
    with pytest.raises(UsageError, match="larger"):
        presets.find(str(tmp_path / "x.toml"))
