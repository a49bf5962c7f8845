"""`fpsgen presets` through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fpsgen.presets import shipped
from tests.tools.cli import told
from tests.tools.presets import MEASURED, SMALL, presets

MANY = """\
format = 1
model = "pocket"

[windows]
a = [3, 3, 3]
b = [1, 3, 5]

[[phase]]
sigma = [1.0, 0.0]
heads = "ab-"
qk = "fp8"
pv = "fp8"
smooth_k = false
"""


def refused(*args: object) -> str:
    """What is said on stderr of what cannot be."""
    result = presets(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not result.stdout
    return result.stderr


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of Wan2.1's on disk."""
    monkeypatch.setattr("fpsgen.weights.hub.on_disk", lambda key: pytest.fail("it looked for weights"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    report = told(presets("--json"), "presets")["presets"]
    assert report == told(presets("list", "--json"))["presets"]
    assert [entry["name"] for entry in report] == ["bf16", *shipped.names()]
    result = presets()
    assert result.exit_code == 0
    assert not result.stderr
    rows = {cells(line)[0]: cells(line)[1:] for line in result.stdout.splitlines()}
    assert rows["preset"] == ["model", "size", "phases", "density", "cost", "quality"]
    for entry in report:
        quality = rows[entry["name"]].pop()
        numbers = [str(entry["phases"]), f"{entry['density']:.2f}", f"{entry['cost']:.2f}"]
        assert rows[entry["name"]] == [entry["model"] or "any", entry["size"] or "any", *numbers]
        assert quality == "exact" if entry["exact"] else ("PSNR" in quality) == bool(entry["measured"])
        assert entry["exact"] == (entry["name"] == "bf16")
    assert rows["14b-480p-fast"][:2] == ["14b", "832x480"]
    assert rows["paper"][:2] == ["any", "any"]
    assert "--preset quality, balanced or fast" in result.stdout


def test_json_stands_after_the_command() -> None:
    result = presets("--json", "check", "x.toml")
    assert result.exit_code == 2
    assert "--json stands before the command" in result.stderr


def test_the_steps_of_a_preset(small: Path) -> None:
    """At 20 steps and shift 3 the first five noise levels are above 0.9."""
    result = presets("show", small)
    assert result.exit_code == 0, result.output
    assert not result.stderr
    title, about, head, *rows = result.stdout.splitlines()
    assert title == "small.toml: for a test"
    assert about == ("pocket at 160x96, 25 frames, 420 tokens in 4x3x5 tiles of 2x2x2; 20 steps, unipc, shift 3")
    assert cells(head) == ["steps", "noise", "layers", "heads", "sees", "precision", "density", "FLOPs saved"]
    # 3 of 4, of 3 and of 5 tiles; the edge tile along T is half as deep: (5.75 / 7) x 1 x 0.6 would be it without.
    assert cells(rows[0]) == ["1-5", "1.000-0.923", "all", "all", "dense", "bf16", "1.000", "0"]
    assert cells(rows[1])[:6] == ["6-20", "0.900-0.136", "0-1", "all", "dense", "qk int8, pv fp8"]
    assert cells(rows[2])[:5] == ["2-5", "all", "window 3x3x3", "qk int8, pv fp8", "0.478"]
    # 4 of 6 layers in 15 of 20 steps save 52.2 %: 26.1 % of 20 x 6 layers of 4 x 420² x 3 heads of 128.
    assert rows[3] == "density 0.739; saves 8.49 G of the 32.5 G FLOPs of attention in a guidance branch"
    assert rows[-1] == "quality not calibrated: nobody has measured how close it is to bf16"


def test_show_for_programs(small: Path) -> None:
    report = told(presets("show", small, "--json"))
    assert report["at"] == {
        "model": "pocket", "solver": "unipc", "grid": "original", "width": 160, "height": 96, "frames": 25,
        "steps": 20, "shift": 3.0, "tokens": 420, "tile": [2, 2, 2], "tiles": [4, 3, 5],
    }  # fmt: skip
    assert (report["name"], report["model"], report["exact"], report["measured"]) == (
        "small.toml",
        "pocket",
        False,
        None,
    )
    assert [run["steps"] for run in report["runs"]] == [[1, 5], [6, 20]]
    assert [group["at"] for group in report["runs"][1]["layers"]] == ["0-1", "2-5"]
    assert report["saved_flops"] == pytest.approx(report["dense_flops"] * (1 - report["density"]))
    # By hand: 15 steps in INT8, 470 / 882 of the pairs that are kept; rounding adds 9 x 470 / (4 x 3.0) / 75600.
    kept = 0.25 + 0.75 * ((1 + 2 * 0.478333) / 3 * 470 / 882 + 9 * 470 / 12 / 75600)
    assert report["cost"] == pytest.approx(kept, abs=2e-3)


def test_settings_move_the_steps(small: Path) -> None:
    report = told(presets("show", small, "--steps", 10, "--shift", 1, "--solver", "euler", "--json"))
    assert [run["steps"] for run in report["runs"]] == [[1, 1], [2, 10]]  # 0.999, 0.899, …
    report = told(presets("show", small, "--steps", 10, "--shift", 1, "--solver", "dpm++", "--json"))
    assert [run["steps"] for run in report["runs"]] == [[1, 1], [2, 10]]  # 1.0, 0.9, …: the second is not above 0.9
    assert told(presets("show", small, "--frames", 9, "--json"))["at"]["tiles"] == [2, 3, 5]
    own, other = (told(presets("show", "bf16", "--grid", name, "--json")) for name in ("original", "diffusers"))
    assert own["runs"][0]["sigma"] != other["runs"][0]["sigma"]


def test_many_plans_fit_a_screen_and_verbose_tells_all(small: Path) -> None:
    shapes = ("[1, 1, 1]", "[3, 1, 1]", "[1, 3, 1]", "[1, 1, 3]", "[3, 3, 3]")  # the last is one of the heads', too
    small.write_text(MANY + "".join(f'[[phase.layers]]\nat = "{i}"\nwindow = {own}\n' for i, own in enumerate(shapes)))
    (run,) = told(presets("show", small, "--json"))["runs"]
    assert [group["at"] for group in run["layers"]] == ["0", "1", "2", "3", "4", "5"]
    row, more = presets("show", small).stdout.splitlines()[3:-4]
    assert "--verbose" in more
    assert cells(row)[2:6] == ["all", "all", "6 plans, dense and 6 windows", "qk fp8, pv fp8, k not smoothed"]
    every = [cells(line) for line in presets("show", small, "-v").stdout.splitlines()[3:-4]]
    assert [line[-4] for line in every[:5]] == [f"window {own[1:-1].replace(', ', 'x')}" for own in shapes]
    assert every[5][:3] == ["5", "0", "window 3x3x3"]
    assert every[6][:2] == ["1", "window 1x3x5"]
    assert every[7][:2] == ["2", "dense"]


def test_heads_are_summed_up_but_for_programs(small: Path) -> None:
    small.write_text(MANY)
    row, _ = presets("show", small).stdout.splitlines()[3:-4]
    assert cells(row)[2:5] == ["all", "all", "dense and 2 windows"]
    (group,) = told(presets("show", small, "--json"))["runs"][0]["layers"]
    assert [(own["window"], own["heads"]) for own in group["windows"]] == [
        ([3, 3, 3], "0"), ([1, 3, 5], "1"), (None, "2"),
    ]  # fmt: skip


def test_tiles_by_content_are_shown_in_words(small: Path) -> None:
    content = SMALL.replace("window = [3, 3, 3]", 'top = 0.25\nrest = "summary"')
    small.write_text(content)
    rows = presets("show", small).stdout.splitlines()[4:6]
    assert [cells(row)[-4] for row in rows] == ["dense", "top 25 % with summary"]
    (own,) = told(presets("show", small, "--json"))["runs"][1]["layers"][1]["windows"]
    # 15 of 60 tiles, and 45 summaries beside 420 tokens.
    assert own == {
        "window": None, "top": 0.25, "rest": "summary", "heads": "0-2", "density": pytest.approx(0.25 + 45 / 420),
    }  # fmt: skip
    assert "dense and top 25 % with summary" in presets("check", small).stdout
    small.write_text(content.replace('"dense"', "[3, 3, 5]"))
    assert "window 3x3x5 with summary and top 25 % with summary" in presets("check", small).stdout
    small.write_text(content.replace("0.25", "25"))
    assert "small.toml, line 10: top = 25 is not valid" in refused("check", small)


def test_what_is_not_computed_costs_nothing(small: Path) -> None:
    """Above 0.9 both branches are computed, in 5 of 20 steps; below one, but for the steps that use the last again."""
    whole = told(presets("show", small, "--json"))
    phase = 'guidance = "reuse"\n\n[[phase]]\nsigma = [0.3, 0.0]\ncompute = "reuse"\n'
    small.write_text(SMALL.replace("[0.9, 0.0]", "[0.9, 0.3]").partition("\n[[phase.layers]]")[0] + phase)
    report = told(presets("show", small, "--json"))
    assert [(run["guidance"], run["compute"]) for run in report["runs"]] == [
        ("full", "full"), ("reuse", "full"), ("full", "reuse"),
    ]  # fmt: skip
    assert [run["steps"] for run in report["runs"]] == [[1, 5], [6, 18], [19, 20]]
    first, second, third = report["runs"]
    assert second["density"] == pytest.approx(whole["runs"][1]["layers"][1]["density"] / 2)
    assert third["density"] == third["cost"] == 0
    assert report["cost"] == pytest.approx((5 * first["cost"] + 13 * second["cost"]) / 20)
    assert report["dense_flops"] == pytest.approx(whole["dense_flops"])
    linear = whole["dense_steps"]["video"] / 20
    assert report["dense_steps"]["video"] < 20 * linear
    rows = presets("show", small).stdout.splitlines()[2:6]
    assert [cells(row)[2] for row in rows] == ["guidance", "full", "difference reused", "step reused"]


@pytest.mark.parametrize(
    ("letters", "heads", "says"),
    [
        (("{ top = 0.1 }", "{ top = 0.525 }"), "ab-", "dense and top 10 to 52.5 %"),
        (('{ top = 0.5, rest = "summary" }', '{ top = 0.1, rest = "summary" }'), "aba", "top 10 to 50 % with summary"),
        (('{ top = 0.1, rest = "summary" }', "{ top = 0.1 }"), "aba", "top 10 % (some with summary)"),
        (('{ window = [3, 3, 3], rest = "summary" }', "[3, 3, 3]"), "aba", "2 windows (some with summary)"),
        (("[3, 3, 3]", "{ top = 0.5 }"), "ab-", "dense, window 3x3x3 and top 50 %"),
    ],
)
def test_what_heads_see_is_summed_up(letters: tuple[str, str], heads: str, says: str, small: Path) -> None:
    small.write_text(MANY.replace("[3, 3, 3]", letters[0]).replace("[1, 3, 5]", letters[1]).replace("ab-", heads))
    assert f" {says}; " in presets("check", small).stdout


@pytest.mark.parametrize(
    ("args", "name", "at"),
    [
        (("fast",), "14b-720p-fast", ("14b", 1280, 720)),
        (("fast", "--model", "1.3b"), "1.3b-480p-fast", ("1.3b", 832, 480)),
        (("quality", "--model", "14B", "--res", "480p"), "14b-480p-quality", ("14b", 832, 480)),
        (("balanced", "--res", "720x1280"), "14b-720p-balanced", ("14b", 720, 1280)),
        (("14b-480p-fast",), "14b-480p-fast", ("14b", 832, 480)),
        (("14b-480p-fast", "--res", "640x640", "--frames", 49), "14b-480p-fast", ("14b", 640, 640)),
        (("paper",), "paper", ("14b", 1280, 720)),
        (("paper", "--model", "pocket"), "paper", ("pocket", 160, 96)),
        (("bf16",), "bf16", ("14b", 1280, 720)),
    ],
)
def test_which_is_shown_at_which_size(args: tuple, name: str, at: tuple) -> None:
    report = told(presets("show", *args, "--json"))
    assert report["name"] == name
    assert (report["at"]["model"], report["at"]["width"], report["at"]["height"]) == at
    assert report["at"]["frames"] == (49 if "--frames" in args else 25 if at[0] == "pocket" else 81)


def test_the_pocket_has_one_size(small: Path) -> None:
    result = presets("show", small, "--res", "480p", "--json")
    assert told(result)["at"]["width"] == 160
    assert result.stderr.count("note:") == 1
    assert "renders 160x96" in result.stderr


def test_a_folder_is_a_model(wan_folder: Path, small: Path) -> None:
    small.write_text(SMALL.replace("pocket", "1.3b"))
    report = told(presets("show", small, "--model", wan_folder, "--res", "96x64", "--frames", 5, "--json"))
    assert (report["at"]["model"], report["at"]["tokens"]) == ("1.3b", 48)
    assert [group["at"] for group in report["runs"][1]["layers"]] == ["0-1"]


def test_what_was_measured_is_shown(small: Path) -> None:
    small.write_text(SMALL + MEASURED)
    assert "quality PSNR 31.5 ± 0.5 dB against bf16, measured at 160x96, 25 frames" in presets("show", small).stdout
    assert told(presets("show", small, "--json"))["measured"]["clips"] == 32
    small.write_text(SMALL.replace("pocket", "14b") + MEASURED.replace("160x96", "832x480"))
    assert told(presets("show", small, "--json"))["at"]["width"] == 832  # where it was measured


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nope",), "there is no preset 'nope'"),
        (("quallity",), "did you mean quality?"),
        (("no-such.toml",), "there is no preset 'no-such.toml'"),
        (("fast", "--model", "15b"), "there is no model 15b"),
        (("fast", "--model", ""), "the model's name is empty"),
        (("14b-480p-fast", "--model", "1.3b"), "preset 14b-480p-fast, line 4: it is for 14b"),
        (("fast", "--res", "100x100"), "multiples of 16"),
        (("fast", "--res", "big"), "is not a size"),
        (("fast", "--frames", 8), "must be 4n + 1"),
        (("fast", "--steps", 0), "--steps 0: must be 1 to 1000"),
        (("fast", "--shift", 0), "--shift 0: must be"),
    ],
)
def test_what_cannot_be_shown(args: tuple, says: str) -> None:
    assert says in refused("show", *args)


def test_a_file_that_is_a_preset(small: Path) -> None:
    result = presets("check", small)
    assert result.exit_code == 0, result.output
    fits = "fits pocket at 160x96, 25 frames; attention: dense and window 3x3x3; density 0.74"
    assert result.stdout.splitlines() == [f"{small} is a preset for pocket, with 2 phases; {fits}"]
    report = told(presets("check", small, "--json"), "presets check")
    assert (report["file"], report["phases"], report["at"]["tiles"]) == (str(small), 2, [4, 3, 5])


def test_a_preset_for_any_model_is_checked_against_one_if_asked(small: Path) -> None:
    small.write_text(SMALL.replace('model = "pocket"\n', "").replace("[3, 3, 3]", "[3, 4, 3]"))
    result = presets("check", small)
    assert result.exit_code == 0
    assert "is a preset for any model, with 2 phases; --model NAME also checks" in result.stdout
    assert told(presets("check", small, "--json"))["at"] is None
    assert "small.toml, line 9: window (3, 4, 3): 4 of 9 tiles along H is even" in refused(
        "check", small, "--model", "14b"
    )
    assert presets("check", small, "--model", "pocket").exit_code == 0  # its 3 tiles along H are spanned
    assert "of 9 tiles" in refused("check", small, "--res", "720p")
    assert presets("check", small, "--res", "480p").exit_code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("smooth", "smoth"), "line 13: there is no key 'smoth_k'; did you mean smooth_k?"),
        (("[3, 3, 3]", "[3, 3, 2]"), "line 10: window (3, 3, 2): 2 of 5 tiles along W is even"),
        (('"0-1"', '"0,6"'), "line 16: there is no layer 6: this model's are 0 to 5"),
        (("window = [3, 3, 3]", 'heads = "--"'), "line 10: heads has 2 letters, and this model 3 heads"),
        (("[[phase]]", "[[phase"), "is not TOML"),
    ],
)
def test_a_file_that_is_none(small: Path, change: tuple[str, str], says: str) -> None:
    small.write_text(SMALL.replace(*change))
    assert says in refused("check", small)
    result = presets("check", small, "--json")
    assert result.exit_code == 2
    assert says in json.loads(result.stdout)["error"]


def test_a_tile_larger_than_the_video_is_told(small: Path) -> None:
    small.write_text(SMALL.replace('"pocket"', '"pocket"\ntile = [2, 50, 2]').replace("[3, 3, 3]", "[3, 1, 3]"))
    result = presets("check", small)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "its tile of 2x50x2 tokens is larger than this video of 7x6x10, along H" in said
    small.write_text(SMALL)
    assert not presets("check", small).stderr


def test_what_is_hidden_is_said_to_be(small: Path) -> None:
    told = "--verbose shows"
    assert told not in presets("show", small).stdout
    small.write_text(MANY)
    assert told in presets("show", small).stdout
    assert told not in presets("show", small, "--verbose").stdout


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("format = 2\n", "format = 2 ", "write format = 1 in the first line"),
        (SMALL.replace("pocket", "15b"), "model = '15b'", "or leave the line out"),
        (SMALL.replace("[0.9, 0.0]", "[0.8, 0.0]"), "leaves a gap", "let phases follow one another"),
        (SMALL.replace("[3, 3, 3]", "[3, 3]"), "window = [3, 3]", "write window = [3, 5, 5]"),
        (SMALL.replace('"0-1"', '"1-0"'), "at = '1-0'", 'at = "0-1,39"'),
        (SMALL.replace("int8", "int4"), "qk = 'int4'", "write one of bf16, fp8, int8"),
        (SMALL + "\n[measured]\nclips = 1\n", "weights is missing", "fpsgen calibrate writes it"),
        (MANY.replace('"ab-"', '"abc"'), "heads has a letter 'c'", "write a letter of [windows] for each head"),
        (SMALL.replace("0.9", "0.9.9"), "is not TOML", "texts stand in quotes"),
        (SMALL + "x = " + "9" * 5000, "that cannot be read", "needs none"),
        (SMALL + "x = " + "[" * 2000, "that cannot be read", "needs none"),
    ],
)
def test_each_kind_of_error_has_its_own_fix(small: Path, text: str, told: str, hint: str) -> None:
    small.write_text(text)
    said, _, fix = " ".join(refused("check", small).split()).partition("hint: ")
    assert told in said
    assert hint in fix


@pytest.mark.parametrize("name", ["fast", "no-such.toml", ".", ""])
def test_only_files_are_checked(name: str) -> None:
    assert "cannot read the preset" in refused("check", name)
