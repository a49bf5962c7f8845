"""`fpsgen generate --preset`: every step runs the plan of its noise level, and the result tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fpsgen import readiness
from fpsgen.attention import reference
from fpsgen.attention.plan import AttentionPlan, KeyTiles
from fpsgen.presets import Phase, Preset, file
from fpsgen.request import Request, resolve
from fpsgen.target import Target
from fpsgen.weights import models
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import find
from tests.tools.cli import Runner, invoke
from tests.tools.videos import metadata, read

# 96x64 and 5 frames are 2 x 4 x 6 tokens: with this tile 2 x 2 x 3 tiles.
HALVES = """
format = 1
tile = [1, 2, 2]

[[phase]]
sigma = [1.0, 0.8]

[[phase]]
sigma = [0.8, 0.0]
window = [2, 1, 1]
qk = "int8"
pv = "fp8"
"""

MEASURED = (
    '[measured]\nweights = "0123456789abcdef"\nsize = "96x64"\nframes = 5\nsteps = 2\nshift = 8.0\nguidance = 6.0\n'
    "clips = 8\ndensity = 0.5\ncost = 0.4\nerror = 0.01\nerror_ci95 = 0.002\npsnr = 31.25\npsnr_ci95 = 1.5\n"
    'psnr_worst = 28.0\ndevice = "cpu"\nfpsgen = "0.1.0"\ntorch = "2.13.0"\n'
)


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "halves.toml"
    path.write_text(HALVES)
    return path


def test_a_preset_changes_the_picture_and_bf16_does_not(run: Runner, preset: Path) -> None:
    plain, same, other = run.frames(steps=6), run.frames(steps=6, preset="bf16"), run.frames(steps=6, preset=preset)
    assert (plain == same).all()
    assert (plain != other).any()


def test_the_file_tells_the_preset_and_its_density(run: Runner, preset: Path) -> None:
    report = run(steps=6, shift=1, preset=preset)
    assert report["preset"] == {
        "name": "halves.toml",
        "tile": [1, 2, 2],
        "phases": [
            {"sigma": [1.0, 0.8], "window": None, "qk": "bf16", "pv": "bf16", "smooth_k": True},
            {"sigma": [0.8, 0.0], "window": [2, 1, 1], "qk": "int8", "pv": "fp8", "smooth_k": True},
        ],
    }
    # Without a shift the six noise levels are 1.0, 0.83, 0.67, … : two of them above 0.8. A window is 1 of 2 rows of
    # tiles and 1 of 3 columns.
    assert report["attention"].pop("density") == pytest.approx((2 + 4 / 6) / 6, abs=1e-4)
    assert report["attention"] == {"tile": [1, 2, 2], "backends": ["dense", "reference"]}
    assert metadata(report["output"])["preset"] == report["preset"]


def test_every_step_and_layer_runs_its_plan(run: Runner, preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[AttentionPlan] = []
    real = reference.attention
    monkeypatch.setattr(reference, "attention", lambda q, k, v, plan: ran.append(plan) or real(q, k, v, plan))
    run(steps=6, shift=1, preset=preset)
    layers = 2
    assert len(ran) == 4 * layers  # the dense steps go to SDPA
    assert {(plan.seen, plan.qk, plan.pv) for plan in ran} == {(((2, 1, 1),), "int8", "fp8")}


def test_verbose_says_what_runs_where_and_why(run: Runner, preset: Path) -> None:
    options = ("--res", "96x64", "--frames", 5, "--steps", 6, "--shift", 1, "--seed", 1, "-o", run.directory / "v.mp4")
    result = invoke("a cat", "--model", run.folder, *options, "--preset", preset, "--verbose")
    assert result.exit_code == 0, result.output
    assert "steps 1 to 2: dense of 2x2x3 tiles, density 1, qk bf16, pv bf16, by torch's SDPA" in result.stderr
    assert (
        "steps 3 to 6: window 2x1x1 of 2x2x3 tiles, density 0.167, qk int8, k smoothed, pv fp8, by reference"
        in result.stderr
    )
    assert "not flex: it is for CUDA GPUs" in result.stderr


def test_a_window_that_spans_everything_is_the_dense_video(run: Runner, preset: Path) -> None:
    preset.write_text("format = 1\n[[phase]]\nsigma = [1.0, 0.0]\nwindow = [99, 99, 99]\n")
    assert (run.frames() == run.frames(preset=preset)).all()


@pytest.mark.parametrize(
    ("res", "frames", "dtype"), [("80x112", 9, "fp32"), ("48x16", 1, "bf16"), ("16x16", 5, "fp32")]
)
def test_odd_sizes_and_dtypes(run: Runner, preset: Path, res: str, frames: int, dtype: str) -> None:
    preset.write_text(HALVES.replace("[2, 1, 1]", "[1, 1, 1]"))
    report = run(res=res, frames=frames, dtype=dtype, preset=preset)
    assert 0 < report["attention"]["density"] <= 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("[2, 1, 1]", "[1, 2, 2]"), "line 10: window (1, 2, 2): 2 of 3 tiles along W is even"),
        (("sigma = [0.8", "sigma = [0.7"), "line 9: the phase starts at sigma 0.7"),
        (("format = 1", "format = 9"), "line 2: format = 9"),
        (("tile =", 'model = "14b"\ntile ='), "line 3: it is for 14b, and this model belongs to the family 1.3b"),
        (("window = [2, 1, 1]", 'heads = "-----"'), "line 10: heads has 5 letters, and this model 2 heads"),
        (('"fp8"', '"fp8"\n[[phase.layers]]\nat = "0,2"\nqk = "bf16"'), "line 14: there is no layer 2"),
    ],
)
def test_a_preset_that_does_not_fit_ends_before_anything_loads(
    run: Runner, preset: Path, change: tuple[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fpsgen.texts.load_text_encoder", lambda *a: pytest.fail("it loaded"))
    preset.write_text(HALVES.replace(*change))
    output = run.directory / "out.mp4"
    size = ("--res", "96x64", "--frames", 5)
    result = invoke("a cat", "--model", run.folder, *size, "--preset", preset, "-o", output)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert not output.exists()


LAYERS = """
format = 1
tile = [1, 2, 2]

[windows]
a = [2, 1, 1]
b = [1, 1, 3]

[[phase]]
sigma = [1.0, 0.0]
heads = "ab"
qk = "int8"
pv = "fp8"

[[phase.layers]]
at = "0"
window = "dense"
qk = "bf16"
pv = "bf16"
"""


def test_layers_and_heads_run_their_own(run: Runner, preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[AttentionPlan] = []
    real = reference.attention
    monkeypatch.setattr(reference, "attention", lambda q, k, v, plan: ran.append(plan) or real(q, k, v, plan))
    preset.write_text(LAYERS)
    report = run(steps=3, preset=preset)
    assert {(plan.seen, plan.heads, plan.qk) for plan in ran} == {(((2, 1, 1), (1, 1, 3)), (0, 1), "int8")}
    assert len(ran) == 3  # the second layer's, at each step; the first goes to SDPA
    # A window of 2 x 1 x 1 of 2 x 2 x 3 tiles keeps 1/6, one of 1 x 1 x 3 keeps 1/4.
    assert report["attention"]["density"] == pytest.approx((1 + (1 / 6 + 1 / 4) / 2) / 2, abs=1e-6)
    assert report["preset"]["phases"][0]["layers"][0]["at"] == "0"


def test_verbose_names_layers(run: Runner, preset: Path) -> None:
    preset.write_text(LAYERS)
    options = ("--res", "96x64", "--frames", 5, "--steps", 2, "--seed", 1, "-o", run.directory / "v.mp4")
    result = invoke("a cat", "--model", run.folder, *options, "--preset", preset, "--verbose")
    assert result.exit_code == 0, result.output
    assert "steps 1 to 2, layer 0: dense of 2x2x3 tiles" in result.stderr
    assert "steps 1 to 2, layer 1: window 2x1x1, window 1x1x3 of 2x2x3 tiles" in result.stderr


def test_linear_layers_run_and_are_named(run: Runner, preset: Path) -> None:
    """In 8 bits where the preset says so: in the first half of the steps everywhere, then in one layer's FFN."""
    preset.write_text(
        "format = 1\n[[phase]]\nsigma = [1.0, 0.9]\nlinear = 'int8'\n[[phase]]\nsigma = [0.9, 0.0]\n"
        "[[phase.layers]]\nat = '1'\nlinear = { ffn = 'fp8' }\n"
    )
    options = ("--res", "96x64", "--frames", 5, "--steps", 2, "--seed", 1, "-o", run.directory / "v.mp4")
    result = invoke("a cat", "--model", run.folder, *options, "--preset", preset, "--verbose")
    assert result.exit_code == 0, result.output
    first, second = (line for line in result.stderr.splitlines() if "linear layers" in line)
    assert "step 1: linear layers int8, by plain PyTorch; not torch._int_mm" in first
    assert "step 2, layer 1: linear layers fp8 in the FFN, 16bit in attention, by plain PyTorch" in second
    assert (run.frames("a cat", preset=preset) != run.frames("a cat")).any()
    phases = metadata(run("a cat", preset=preset)["output"])["preset"]["phases"]
    assert [phase["linear"] for phase in phases] == ["int8", "16bit"]
    assert phases[1]["layers"][0]["linear"] == {"ffn": "fp8"}


def test_an_uncalibrated_preset_says_so_once(run: Runner, preset: Path) -> None:
    options = ("--model", run.folder, "--res", "96x64", "--frames", 5, "--steps", 2, "-o", run.directory / "v.mp4")
    result = invoke("a cat", *options, "--preset", preset, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("preset halves.toml is not calibrated") == 1
    assert "is not calibrated" not in invoke("a cat", *options, "--preset", "bf16", "--json").stderr


def test_the_summary_says_what_bf16_ran_in_and_counts_one_step(run: Runner) -> None:
    options = ("--model", run.folder, "--res", "96x64", "--frames", 5, "--steps", 1, "-o", run.directory / "v.mp4")
    result = invoke("a cat", *options, "--preset", "bf16", "--device", "cpu")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.rstrip() for line in result.stderr.splitlines() if "  " in line}
    assert "bf16 (float32)" in rows["preset"]
    assert rows["preset"].endswith("density 1.00 of token pairs")
    assert "1 step," in rows["denoise"]
    assert not rows["denoise"].endswith("each")
    assert rows["load"].endswith("imports included")


def test_the_summary_tells_preset_density_and_quality(run: Runner, preset: Path) -> None:
    options = ("--model", run.folder, "--res", "96x64", "--frames", 5, "--steps", 2, "-o", run.directory / "v.mp4")
    told = []
    weights = load_transformer(find(str(run.folder)).checkpoint, torch.device("cpu"), torch.float32).fingerprint()
    known = MEASURED.replace("0123456789abcdef", weights)
    for text in (HALVES, HALVES + MEASURED, HALVES + known):
        preset.write_text(text)
        result = invoke("a cat", *options, "--preset", preset)
        assert result.exit_code == 0, result.output
        told.append(next(line for line in result.stderr.splitlines() if line.startswith("preset  ")))
        assert " of token pairs, " in told[-1]
    assert "not calibrated" in told[0]
    assert "measured on other weights" in told[1]
    assert "PSNR" not in told[1]
    assert "measured PSNR 31.2 ± 1.5 dB" in told[2]
    assert "other weights" not in result.stderr


def test_other_weights_are_told_once(run: Runner, preset: Path) -> None:
    preset.write_text(HALVES + MEASURED)
    options = ("--model", run.folder, "--res", "96x64", "--frames", 5, "--steps", 2, "-o", run.directory / "v.mp4")
    result = invoke("a cat", *options, "--preset", preset)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("was measured with other weights") == 1


def test_a_grade_is_that_of_the_model_and_size(run: Runner) -> None:
    """The small model is taken for one of the 1.3B family."""
    report = run(preset="fast", steps=2)
    assert report["preset"]["name"] == "1.3b-480p-fast"
    assert run(preset="1.3b-720p-fast", steps=2)["preset"]["name"] == "1.3b-720p-fast"


def test_the_preset_is_not_overwritten(run: Runner, preset: Path) -> None:
    shared = preset.rename(preset.with_suffix(".mp4"))
    result = invoke("a cat", "--model", run.folder, "--preset", shared, "-o", shared)
    assert result.exit_code == 2
    assert "is the preset" in result.stderr
    assert shared.read_text() == HALVES


def test_no_such_preset(run: Runner) -> None:
    result = invoke("a cat", "--model", run.folder, "--preset", "fastest")
    assert result.exit_code == 2
    assert "there is no preset 'fastest'" in result.stderr
    assert "did you mean fast?" in result.stderr
    assert "`fpsgen presets` lists them" in result.stderr


def test_plain_pytorch_on_a_gpu_is_said_without_being_asked() -> None:
    """Somebody with a GPU expects speed."""
    model = models.find("pocket")
    phases = (Phase(sigma=(1.0, 0.5)), Phase(sigma=(0.5, 0.0), window=(3, 3, 3), qk="int8", pv="fp8"))
    request = Request("", model.defaults.override(steps=2, shift=1.0), 0, Path(), Preset(name="two", phases=phases))
    for device, told in (("cpu", False), ("cuda", True)):
        plan = resolve(request, model, Target(torch.device(device), torch.float32, torch.float32))
        notices = list(readiness.notices(plan))
        assert any("plain PyTorch" in notice.text and not notice.detail for notice in notices) is told
        assert [notice.text.split(":")[0] for notice in notices if notice.detail] == ["step 1", "step 2"]


CONTENT = """
format = 1
tile = [1, 2, 2]

[windows]
a = { top = 0.25 }
b = { window = [2, 1, 1], rest = "summary" }

[[phase]]
sigma = [1.0, 0.0]
top = 0.3
rest = "summary"
qk = "int8"
pv = "fp8"

[[phase.layers]]
at = "1"
heads = "ab"
"""


def test_key_tiles_are_chosen_by_content(run: Runner, preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[AttentionPlan] = []
    real = reference.attention
    monkeypatch.setattr(reference, "attention", lambda q, k, v, plan: ran.append(plan) or real(q, k, v, plan))
    preset.write_text(CONTENT)
    report = run(preset=preset)
    top, mixed = (KeyTiles(top=0.3, rest="summary"),), (KeyTiles(top=0.25), KeyTiles((2, 1, 1), rest="summary"))
    assert {(plan.seen, plan.heads, plan.qk) for plan in ran} == {(top, (), "int8"), (mixed, (0, 1), "int8")}
    # 48 tokens in 12 tiles: 4 of them and 8 summaries; 3; 2 and 10 summaries.
    expected = ((4 / 12 + 8 / 48) + (3 / 12 + 2 / 12 + 10 / 48) / 2) / 2
    assert report["attention"]["density"] == pytest.approx(expected, abs=1e-6)
    told = metadata(report["output"])["preset"]
    assert told["windows"] == {"a": {"top": 0.25}, "b": {"window": [2, 1, 1], "rest": "summary"}}
    assert file.from_dict(told) == replace(file.read(preset, str(preset)), name=told["name"])
    ran.clear()
    assert (run.frames(preset=preset) == read(report["output"])[1]).all()


def test_the_share_of_all_tiles_is_the_dense_video(run: Runner, preset: Path) -> None:
    preset.write_text("format = 1\ntile = [1, 2, 2]\n[[phase]]\nsigma = [1.0, 0.0]\ntop = 1.0\nrest = 'summary'\n")
    assert (run.frames() == run.frames(preset=preset)).all()
