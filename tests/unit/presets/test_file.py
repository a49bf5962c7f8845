"""Preset files: what they may say, and the one sentence, with the line, for what they may not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fpsgen.attention.plan import KeyTiles
from fpsgen.attention.tiles import TileGrid
from fpsgen.errors import UsageError
from fpsgen.presets import BF16, Layers, Measured, Phase, file, shipped
from fpsgen.wan.plan import UNROUNDED, Linears
from tests.tools.presets import MEASURED

WHOLE = """\
format = 1
model = "14b"
about = "all there is"
tile = [2, 2, 2]

[windows]
a = [3, 3, 5]
B = [1, 1, 1]

[[phase]]
sigma = [1, 0.9]

[[phase]]
sigma = [0.9, 0.5]
window = [3, 3, 5]
qk = "fp8"
pv = "fp8"
smooth_k = false

[[phase.layers]]
at = "0-1, 5"
window = "dense"
qk = "bf16"
pv = "bf16"

[[phase.layers]]
at = "3"
heads = "aB-a"

[[phase]]
sigma = [0.5, 0]
density = 0.25
linear = "bf16"
"""
ONE = "format = 1\n[[phase]]\nsigma = [1.0, 0.0]\n"  # 3 lines: what is added stands on the fourth
LAYERS = ONE + '[[phase.layers]]\nat = "0"\n'  # 5 lines


def parse(text: str) -> file.Preset:
    return file.parse(text.encode(), "mine.toml")


def test_a_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "whole.toml").write_text(WHOLE)
    preset = shipped.find(str(tmp_path / "whole.toml"))
    assert (preset.name, preset.model, preset.about) == ("whole.toml", "14b", "all there is")
    assert preset.tile == (2, 2, 2)
    assert preset.windows == {"a": (3, 3, 5), "B": (1, 1, 1)}
    assert preset.measured is None
    middle = Phase(
        sigma=(0.9, 0.5), window=(3, 3, 5), qk="fp8", pv="fp8", smooth_k=False,
        layers=(
            Layers(at=(0, 1, 5), smooth_k=False),
            Layers(at=(3,), heads="aB-a", qk="fp8", pv="fp8", smooth_k=False),
        ),
    )  # fmt: skip
    assert preset.phases == (Phase(sigma=(1.0, 0.9)), middle, Phase(sigma=(0.5, 0.0), density=0.25))


def test_tiles_by_content_and_their_rest() -> None:
    """Layers keep their phase's rest, unless nothing is skipped in them or each head has its own."""
    preset = parse(
        ONE + "top = 0.25\nrest = 'summary'\n"
        "[[phase.layers]]\nat = '0'\ntop = 1\n"
        "[[phase.layers]]\nat = '1'\nwindow = 'dense'\n"
        "[[phase.layers]]\nat = '2'\nrest = 'drop'\n"
        "[[phase.layers]]\nat = '3'\nheads = 'abc-'\n"
        "[[phase.layers]]\nat = '4'\nwindow = [1, 1, 3]\n"
        "[windows]\na = { top = 0.5 }\nb = { window = [1, 3, 3], rest = 'summary' }\nc = { window = [1, 3, 1] }\n"
    )
    assert preset.windows == {"a": KeyTiles(top=0.5), "b": KeyTiles((1, 3, 3), rest="summary"), "c": (1, 3, 1)}
    assert preset.phases == (
        Phase(
            sigma=(1.0, 0.0), top=0.25, rest="summary",
            layers=(
                Layers(at=(0,), top=1.0, rest="summary"),
                Layers(at=(1,)),
                Layers(at=(2,), top=0.25),
                Layers(at=(3,), heads="abc-"),
                Layers(at=(4,), window=(1, 1, 3), rest="summary"),
            ),
        ),
    )  # fmt: skip
    assert not preset.is_exact


def test_linear_layers_are_named_together_or_by_group() -> None:
    """ "bf16" is what older files call 16 bits. Layers say it anew for both groups, or keep their phase's."""
    preset = parse(
        ONE + "linear = { ffn = 'fp8' }\n"
        "[[phase.layers]]\nat = '0'\nlinear = 'bf16'\n"
        "[[phase.layers]]\nat = '1'\nlinear = { attention = 'int8' }\n"
        "[[phase.layers]]\nat = '2'\nlinear = 'int8'\n"
        "[[phase.layers]]\nat = '3'\nqk = 'int8'\n"
    )
    (phase,) = preset.phases
    assert phase.linear == Linears(ffn="fp8")
    wanted = [UNROUNDED, Linears(attention="int8"), Linears("int8", "int8"), phase.linear]
    assert [own.linear for own in phase.layers] == wanted
    tiles = TileGrid((2, 2, 2), (1, 1, 1))
    assert preset.plans(tiles, 5, 1)[phase].linear == (*wanted, phase.linear)
    assert all(plan.linear == () for plan in parse(WHOLE).plans(tiles, 40, 4).values())


def test_what_was_measured_is_read() -> None:
    preset = parse(ONE + MEASURED)
    assert isinstance(preset.measured, Measured)
    assert (preset.measured.size, preset.measured.psnr, preset.measured.clips) == ("160x96", 31.5, 32)


def test_one_clip_has_no_interval_whatever_a_file_says() -> None:
    """Older files say 0.0, newer ones nothing; neither is told as an interval, nor written again."""
    one = MEASURED.replace("clips = 32", "clips = 1")
    bare = "".join(line for line in one.splitlines(keepends=True) if "ci95" not in line)
    older, newer = parse(ONE + one), parse(ONE + bare)
    assert older == newer
    assert newer.measured is not None
    assert newer.measured.psnr_told == "31.5"
    for told in (file.text(older), json.dumps(file.as_dict(older))):
        assert "ci95" not in told
    several = parse(ONE + MEASURED).measured
    assert several is not None
    assert several.psnr_told == "31.5 ± 0.5"


def test_lines_of_what_may_not_fit_are_kept() -> None:
    """Videos, layers and heads are known later than the file is read."""
    preset = parse(WHOLE)
    assert preset.lines == {"model": 2, "windows.a": 7, "windows.B": 8}
    _, middle, last = preset.phases
    assert [own.line for own in (middle, *middle.layers, last)] == [15, 22, 28, 32]


PAGE = (Path(__file__).parents[3] / "docs" / "presets.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```toml\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", BLOCKS, ids=["half.toml", "all keys"])
def test_examples_are_presets(text: str) -> None:
    preset = parse(text)
    assert len(preset.phases) == 2
    hd = TileGrid((21, 45, 80), (3, 5, 8))
    assert all(len(step.attention) == 40 for step in preset.plans(hd, 40, 40).values())


def measured(key: str, value: str) -> str:
    """A file in which `key` is wrong, and a mark for its line."""
    lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in MEASURED.splitlines()]
    return ONE + "\n".join(lines) + "\n"


HUGE = "1" + "0" * 400
WRONG: list[tuple[str, int | None, str]] = [
    ("format = 1\n[[phase]\n", None, "not TOML"),
    ("[[phase]]\nsigma = [1, 0]\n", None, "format is missing"),
    (ONE.replace("1\n", "2\n", 1), 1, "format = 2"),
    (ONE.replace("1\n", "true\n", 1), 1, "format = True"),
    (ONE.replace("1\n", "1.0\n", 1), 1, "format = 1.0"),
    ("format = 1\n", None, "phase is missing"),
    ("format = 1\nphase = 3\n", 2, "phase = 3"),
    ("format = 1\nphase = []\n", 2, "0 phases"),
    ("format = 1\nphase = [1]\n", 2, "phase = [1]"),
    ("format = 1\n\n[phase]\nsigma = [1, 0]\n", 3, "phase = {'sigma': [1, 0]}"),
    ("format = 1\n" + "[[phase]]\nsigma = [1, 0]\n" * 1001, 2, "1001 phases; 1 to 1000"),
    ("tiles = [1, 2, 3]\n" + ONE, 1, "no key 'tiles'; did you mean tile?"),
    (f"{'x' * 5000} = 1\n" + ONE, 1, "there is no key 'xxx"),
    # The head
    ('model = "14bb"\n' + ONE, 1, "model = '14bb' is not valid; did you mean 14b?"),
    ("model = 14\n" + ONE, 1, "model = 14 "),
    ("model = [1]\n" + ONE, 1, "model = [1] "),
    ('about = "a\\nb"\n' + ONE, 1, "about = "),
    (f'about = "{"a" * 501}"\n' + ONE, 1, "about = "),
    ("about = 1\n" + ONE, 1, "about = 1"),
    ("tile = [2, 2]\n" + ONE, 1, "tile = [2, 2] "),
    ("tile = [2, 2, 0]\n" + ONE, 1, "tile = [2, 2, 0]"),
    ("tile = [2, 2, 32768]\n" + ONE, 1, "tile = [2, 2, 32768]"),
    # Noise levels
    ("format = 1\n\n[[phase]]\nqk = 'fp8'\n", 3, "sigma is missing"),
    (ONE.replace("[1.0, 0.0]", "[1.0]"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", "['a', 'b']"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", "[true, false]"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", "[nan, 0.0]"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", "[1.0, nan]"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", "[1.0, -1.0]"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", f"[{HUGE}, 0.0]"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", f"[0x{'f' * 5000}, 0.0]"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", f"[1{'0' * 5000}, 0.0]"), None, "a number or lists in lists"),
    (ONE.replace("[1.0, 0.0]", "[0.0, 1.0]"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", "[1.0, 1.0]"), 3, "sigma = "),
    (ONE.replace("[1.0, 0.0]", "[1.0, 0.9999999]"), 3, "sigma = "),
    (ONE + "[[phase]]\nsigma = [0.0, 0.0]\n", 5, "sigma = [0.0, 0.0]"),
    (ONE.replace("[1.0, 0.0]", "[0.9, 0.0]"), 3, "starts at sigma 0.9 and leaves a gap: it must start at 1.0"),
    (ONE.replace("0.0]", "0.5]") + "[[phase]]\nsigma = [0.6, 0.0]\n", 5, "starts at sigma 0.6 and overlaps"),
    (ONE.replace("0.0]", "0.5]") + "[[phase]]\nsigma = [0.4, 0.0]\n", 5, "a gap: it must start at 0.5"),
    (ONE.replace("0.0]", "0.3]") + "[[phase]]\nsigma = [0.30000000000000004, 0]\n", 5, "00004 and overlaps"),
    (ONE.replace("[1.0, 0.0]", "[1.0, 0.5]"), 3, "the last phase ends at sigma 0.5"),
    # Settings
    (ONE + "windows = [1, 1, 1]\n", 4, "there is no key 'windows'; did you mean window?"),
    (ONE + "zzz = 1\n", 4, "known are sigma, window, density, top, heads, rest, qk, pv, smooth_k"),
    (ONE + "window = [1, 1.0, 3]\n", 4, "window = [1, 1.0, 3]"),
    (ONE + "window = [1, true, 3]\n", 4, "window = [1, True, 3]"),
    (ONE + "window = 3\n", 4, "window = 3"),
    (ONE + f"window = 0x{'f' * 5000}\n", 4, "window = a number of thousands of digits"),
    (ONE + "window = " + "[" * 5000, None, "a number or lists in lists"),
    (ONE + "density = 0\n", 4, "density = 0 "),
    (ONE + "density = 1.1\n", 4, "density = "),
    (ONE + "density = nan\n", 4, "density = "),
    (ONE + "density = true\n", 4, "density = "),
    (ONE + f"density = {HUGE}\n", 4, "density = "),
    (ONE + "density = 0.5\nqk = 'int8'\nwindow = [1, 1, 1]\n", 6, "density and window both say what is seen"),
    (ONE + "qk = 'fp4'\n", 4, "qk = 'fp4'"),
    (ONE + f'qk = "{"x" * 5000}"\n', 4, "qk = 'xxx"),
    (ONE + "pv = 'int8'\n", 4, "pv = 'int8'"),
    (ONE + "pv = [1]\n", 4, "pv = [1]"),
    (ONE + "smooth_k = 1\n", 4, "smooth_k = 1"),
    (ONE + "linear = 'fp4'\n", 4, "linear = 'fp4'"),
    (ONE + "linear = {}\n", 4, "linear = {}"),
    (ONE + "linear = { fnn = 'fp8' }\n", 4, "linear = {'fnn': 'fp8'}"),
    (ONE + "linear = { ffn = ['fp8'] }\n", 4, "linear = {'ffn': ['fp8']}"),
    (ONE + "guidance = 'sometimes'\n", 4, "guidance = 'sometimes' is not valid"),
    (ONE + "compute = 'of'\n", 4, "compute = 'of' is not valid"),
    (ONE + "[[phase.layers]]\nat = '0'\nguidance = 'off'\n", 6, "there is no key 'guidance'"),
    (ONE + "top = 0\n", 4, "top = 0 "),
    (ONE + "top = 1.5\n", 4, "top = 1.5"),
    (ONE + "top = '25 %'\n", 4, "top = "),
    (ONE + "topp = 0.5\n", 4, "did you mean top?"),
    (ONE + "top = 0.5\nwindow = [1, 1, 1]\n", 5, "top and window both say what is seen"),
    (ONE + "top = 0.5\nrest = 'summery'\n", 5, "did you mean summary?"),
    (ONE + "rest = 'summary'\n", 4, "nothing is skipped here"),
    (ONE + "window = 'dense'\nrest = 'drop'\n", 5, "nothing is skipped here"),
    (ONE + "rest = 'summary'\nheads = 'a'\n[windows]\na = [1, 1, 1]\n", 4, "each letter of [windows]"),
    (ONE + "top = 0.5\n[[phase.layers]]\nat = '0'\nwindow = 'dense'\nrest = 'summary'\n", 8, "nothing is skipped"),
    # Heads and their windows
    (ONE + "heads = 'a'\n[windows]\na = {}\n", 6, "no window or top"),
    (ONE + "heads = 'a'\n[windows]\na = { top = 2 }\n", 6, "top = 2 "),
    (ONE + "heads = 'a'\n[windows]\na = { rest = 'summary' }\n", 6, "no window or top"),
    (ONE + "heads = 'a'\n[windows]\na = { density = 0.5 }\n", 6, "there is no key 'density'"),
    (ONE + "heads = 'a'\n[windows]\na = { top = 0.5, window = [1, 1, 1] }\n", 6, "window and top both"),
    (ONE + "heads = 'a'\n[windows]\na = { window = 'dense' }\n", 6, "window = 'dense'"),
    (ONE + "heads = 3\n", 4, "heads = 3"),
    (ONE + "heads = ''\n", 4, "heads = ''"),
    (ONE + "heads = 'x'\n", 4, "heads has a letter 'x'; there are - for dense"),
    ("windows = 3\n" + ONE, 1, "windows = 3"),
    (ONE + "[windows]\nab = [1, 1, 1]\n", 5, "'ab' must be one letter"),
    (ONE + '[windows]\n"+" = [1, 1, 1]\n', 5, "must be one letter"),
    (ONE + '[windows]\n"" = [1, 1, 1]\n', 5, "must be one letter"),
    (ONE + "[windows]\na = [1, 1]\n", 5, "a = [1, 1]"),
    (ONE + "heads = '-b'\n[windows]\nb = [1, 1, 1]\na = [1, 1, 1]\n", 7, "no heads use the letter a"),
    # Layers
    (ONE + "layers = 3\n", 4, "layers = 3"),
    (ONE + "[phase.layers]\nat = '0'\n", 4, "layers = {'at': '0'}"),
    (ONE + "[[phase.layers]]\nqk = 'fp8'\n", 4, "at is missing"),
    (LAYERS, 4, "these layers say nothing of their own"),
    (LAYERS + "sigma = [1, 0]\n", 6, "there is no key 'sigma'"),
    (LAYERS.replace('"0"', "0") + "qk = 'fp8'\n", 5, "at = 0 "),
    (LAYERS.replace('"0"', '"a"') + "qk = 'fp8'\n", 5, "at = "),
    (LAYERS.replace('"0"', '"1-"') + "qk = 'fp8'\n", 5, "at = "),
    (LAYERS.replace('"0"', '"٣"') + "qk = 'fp8'\n", 5, "at = "),
    (LAYERS.replace('"0"', '"2-1"') + "qk = 'fp8'\n", 5, "at = '2-1'"),
    (LAYERS.replace('"0"', '"0-1-2"') + "qk = 'fp8'\n", 5, "at = '0-1-2'"),
    (LAYERS.replace('"0"', '"0-1000"') + "qk = 'fp8'\n", 5, "at = '0-1000'"),
    (LAYERS.replace('"0"', '"0-3,2"') + "qk = 'fp8'\n", 5, "at = "),
    (LAYERS.replace('"0"', f'"{"0-999," * 9999}0"') + "qk = 'fp8'\n", 5, "at = "),
    (LAYERS + "qk = 'fp8'\n[[phase.layers]]\nat = '0-2'\nqk = 'int8'\n", 8, "already, in line 5"),
    (LAYERS + "qk = 'fp4'\n", 6, "qk = 'fp4'"),
    # What was measured
    ("measured = 3\n" + ONE, 1, "measured = 3"),
    (ONE + "[measured]\nclips = 3\n", 4, "weights is missing"),
    (ONE + MEASURED + "extra = 1\n", ONE.count("\n") + MEASURED.count("\n") + 1, "there is no key 'extra'"),
    *(
        (measured(key, value), 4 + [line.split(" ")[0] for line in MEASURED.splitlines()].index(key), f"{key} = ")
        for key, value in (
            ("psnr", "nan"), ("psnr", HUGE), ("psnr", "inf"), ("psnr", '"31"'), ("psnr", "true"), ("frames", "1.5"),
            ("steps", "false"), ("device", "3"), ("device", '"a\\nb"'), ("size", '"480p"'), ("size", '"33x33"'),
            ("size", '"160 x 96"'), ("size", '""'),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "told"), WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_what_is_wrong_is_said_with_its_line(text: str, line: int | None, told: str, ends: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text.replace("\n", ends))
    said = str(caught.value)
    assert told in said
    assert said.startswith("preset mine.toml" + (f", line {line}: " if line else ""))
    assert line or ", line" not in said
    assert "\n" not in said
    assert len(said) < 400
    assert caught.value.hint


def test_encodings() -> None:
    with pytest.raises(UsageError, match="not UTF-8 text"):
        file.parse(ONE.encode("utf-16"), "mine.toml")
    assert file.parse(ONE.encode("utf-8-sig"), "x") == file.parse(ONE.encode(), "x")


def test_a_name_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\nb.toml"
    path.write_text("format = 2\n")
    with pytest.raises(UsageError, match=r"preset a\\x1b\[31m\\nb.toml, line 1: format = 2"):
        shipped.find(str(path))


@pytest.mark.parametrize("name", ["", "no-such.toml", "~nobody-here/x.toml", "a\0b", "/"])
def test_files_that_cannot_be_read(name: str) -> None:
    with pytest.raises(UsageError, match=r"the preset|no preset"):
        shipped.find(name)


def test_a_file_too_large(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"#" * (2**18 + 1))
    with pytest.raises(UsageError, match="larger"):
        shipped.find(str(tmp_path / "x.toml"))


def test_bf16_is_no_file() -> None:
    assert shipped.find("bf16") is BF16
    assert BF16.is_exact
    assert not parse(WHOLE).is_exact
    assert not parse(LAYERS + "qk = 'fp8'\n").is_exact
    assert parse(LAYERS + "window = 'dense'\n").is_exact
    for one in ("qk = 'int8'", "pv = 'fp8'", "window = [3, 3, 3]", "density = 0.5", "linear = { ffn = 'fp8' }"):
        assert not parse(LAYERS + one + "\n").is_exact, one
