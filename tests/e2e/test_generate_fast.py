"""`fpsgen generate` on models that were distilled for few steps: their steps, noise levels and attention by default."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fpsgen.weights.headers import headers
from tests.tools.cli import Runner, invoke, models, told
from tests.tools.fake_checkpoint import make, write_shards
from tests.tools.gated import NAME, add_gates
from tests.tools.wan_pipeline import make_plain_pipeline

# 96x64 and 17 frames are 5 x 4 x 6 tokens: 2 x 1 x 2 tiles of FastVideo's, three of which are ragged.
VIDEO = {"steps": None, "frames": 17}


@pytest.fixture(scope="module")
def gated(wan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_gates(wan_folder, tmp_path_factory.mktemp("gated") / "model")


def test_fastwan_runs_in_three_steps_with_the_attention_of_its_training(run: Runner, gated: Path) -> None:
    report = run(model=gated, **VIDEO)
    found = {key: report[key] for key in ("solver", "steps", "shift", "guidance", "grid")}
    assert found == {"solver": "fastwan", "steps": 3, "shift": 8, "guidance": 1, "grid": "original"}
    assert (report["preset"]["name"], report["preset"]["tile"]) == ("1.3b-vsa", [4, 4, 4])
    assert (report["attention"]["tile"], report["attention"]["density"]) == ([4, 4, 4], 0.25)  # 1 of 4 tiles
    dense = run(model=gated, preset="bf16", **VIDEO)
    assert dense["attention"]["density"] == 1
    assert dense["weights"] == report["weights"]
    other = run(model=gated, solver="unipc", steps=2)
    assert (other["solver"], other["steps"], other["shift"], other["guidance"]) == ("unipc", 2, 8, 6)


def test_its_notes_speak_of_other_attention_only(gated: Path, tmp_path: Path) -> None:
    given = ("a cat", "--model", gated, "--res", "96x64", "--frames", 17, "--seed", 1, "-o", tmp_path / "a.mp4")
    own = invoke(*given, "--verbose")
    assert own.exit_code == 0, own.output
    assert "3 steps of fastwan" in own.stderr
    assert "calibrated" not in own.output
    assert "trained for" not in own.output
    told = invoke(*given, "--preset", "bf16").stderr
    assert "these weights were trained for the preset 1.3b-vsa: with bf16 they may do worse" in told


def test_gates_change_the_picture(run: Runner, gated: Path, wan_folder: Path, tmp_path: Path) -> None:
    zeros = add_gates(wan_folder, tmp_path / "zeros", scale=0.0)
    frames = [run.frames(model=folder, preset="bf16", **VIDEO) for folder in (gated, zeros)]
    assert (frames[0] != frames[1]).any()


def test_what_contradicts_a_model_of_few_steps_is_refused(gated: Path, loads: list[str]) -> None:
    result = invoke("a cat", "--model", gated, "--res", "96x64", "--frames", 5, "--steps", 20)
    assert result.exit_code == 2
    assert "the solver fastwan has 3 steps" in result.stderr
    assert not loads


def test_a_checkpoint_of_true_size_is_whole(tmp_path: Path) -> None:
    make("1.3b", "diffusers", folder := tmp_path / "m", meta=True)
    own = folder / "transformer"
    files = list(own.glob("*.safetensors"))
    shapes = {name: header.shape for name, header in headers(files).items()}
    for part, shape in (("weight", (1536, 1536)), ("bias", (1536,))):
        shapes |= {f"{NAME.format(layer)}.{part}": shape for layer in range(30)}
    for file in files:
        file.unlink()
    write_shards(own, "diffusion_pytorch_model", shapes, torch.float32, 5e9, meta=True)
    facts = told(models("check", folder, "--json"), "models check")
    assert (facts["solver"], facts["steps"]) == ("fastwan", 3)
    assert facts["parameters"] == pytest.approx(1.419e9 + 30 * 1536 * 1537, rel=1e-3)


def test_a_merged_four_step_file_by_its_name(run: Runner, both_formats: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(both_formats["original"], folder := tmp_path / "mine")
    file = folder / "wan2.1_t2v_1.3b_lightx2v_4step.safetensors"
    (folder / "diffusion_pytorch_model.safetensors").rename(file)
    report = run(model=file, steps=None)
    assert (report["solver"], report["steps"], report["shift"], report["guidance"]) == ("lightx2v", 4, 5, 1)
    facts = told(models("check", file, "--json"), "models check")
    assert (facts["solver"], facts["steps"]) == ("lightx2v", 4)
    assert "made for 4 steps of lightx2v" in models("check", file).output


@pytest.mark.parametrize("gates", [False, True])
def test_the_5b_by_its_name_or_its_gates(run: Runner, tmp_path: Path, gates: bool) -> None:
    """64x64 and 17 frames are 5 x 2 x 2 tokens."""
    make_plain_pipeline(4, channels=48).save_pretrained(plain := tmp_path / "FastWan2.2-TI2V-5B-FullAttn-Diffusers")
    folder = add_gates(plain, tmp_path / "mine") if gates else plain
    report = run(model=folder, res="64x64", frames=17, steps=None)
    assert (report["solver"], report["steps"], report["guidance"], report["fps"]) == ("fastwan", 3, 1, 24)
    assert report["preset"]["name"] == ("5b-vsa" if gates else "bf16")
