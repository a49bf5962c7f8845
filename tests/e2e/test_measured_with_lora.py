"""`--lora` of `calibrate`, `bench` and `bench quality`: what is measured has it, and records name it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fpsgen.presets import file as presets
from fpsgen.weights.models import open_folder
from tests.tools.bench import EXACT, HALVES, Bench
from tests.tools.bench_quality import Quality
from tests.tools.calibration import Calibrator
from tests.tools.cli import invoke, told
from tests.tools.lora import write


@pytest.fixture
def style(pocket_folder: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "style.safetensors", open_folder(pocket_folder, "pocket").config)


def recorded(style: Path, scale: float) -> list[dict]:
    digest = hashlib.sha256(style.read_bytes()).hexdigest()
    return [{"file": str(style), "scale": scale, "sha256": digest, "expert": None}]


def test_a_preset_is_calibrated_for_a_model_with_a_lora(
    calibrator: Calibrator, pocket_folder: Path, style: Path, tmp_path: Path
) -> None:
    result = calibrator("--min-psnr", 30, "--choose", "attention", "--lora", f"{style}:0.5", "--json")
    record = told(result, "calibrate")
    assert record["model"] == "pocket v0 with style.safetensors:0.5"
    assert record["loras"] == recorded(style, 0.5)
    preset = presets.read(tmp_path / "my.toml", "my.toml")
    assert preset.about == "calibrated for --min-psnr 30, with style.safetensors:0.5 merged"
    assert preset.measured is not None
    assert preset.measured.weights == record["weights"]
    options = ("--model", pocket_folder, "--steps", 4, "--preset", tmp_path / "my.toml", "-o", tmp_path / "v.mp4")
    other = "was measured with other weights (here with the LoRA style.safetensors): how close"
    for more, says in ((("--lora", f"{style}:0.5"), ""), (("--lora", style), other)):
        made = invoke("a cat", *options, *more)
        assert made.exit_code == 0, made.output
        said = " ".join(made.stderr.split())
        assert says in said if says else "measured with" not in said


def test_a_bench_measures_the_merged_model(pocket: Path, pocket_folder: Path, style: Path) -> None:
    bench = Bench(pocket_folder, pocket)
    record = bench("--lora", style, preset=bench.preset(HALVES), pairs=0)
    assert record["model"] == "pocket v0 with style.safetensors"
    assert record["loras"] == recorded(style, 1)
    refused = bench.run("--lora", style, preset=bench.preset(EXACT), compare="diffusers", pairs=0)
    assert refused.exit_code == 2
    assert "without the LoRAs" in refused.stderr
    refused = bench.run("--lora", style, model=None, random_weights="1.3b")
    assert refused.exit_code == 2
    assert "--random-weights and --lora contradict each other" in " ".join(refused.stderr.split())


def test_calibration_of_a_model_for_few_steps(
    calibrator: Calibrator, pocket_folder: Path, style: Path, tmp_path: Path
) -> None:
    few = style.rename(tmp_path / "lightx2v_4step.safetensors")
    record = told(calibrator("--lora", few, "--min-psnr", 40, "--choose", "attention", "--json"), "calibrate")
    assert (record["solver"], record["steps"], record["shift"], record["guidance"]) == ("lightx2v", 4, 5, 1)
    assert not [point for point in record["frontier"] if point["kind"] == "dense"]  # it has no fewer steps
    options = ("--model", pocket_folder, "--lora", few, "--preset", tmp_path / "my.toml", "-o", tmp_path / "v.mp4")
    made = invoke("a cat", *options)
    assert made.exit_code == 0, made.output
    assert "measured with" not in made.stderr
    made = invoke("a cat", *options, "--solver", "euler", "--steps", 4)
    assert "the solver lightx2v: how close" in " ".join(made.stderr.split())


def test_calibration_of_steps_that_add_noise(
    calibrator: Calibrator, pocket_folder: Path, style: Path, tmp_path: Path
) -> None:
    noisy = style.rename(tmp_path / "FastWan.safetensors")
    record = told(calibrator("--lora", noisy, "--min-psnr", 30, "--json", steps=None), "calibrate")
    assert (record["solver"], record["steps"]) == ("fastwan", 3)
    assert {step["compute"] for step in record["steps_done"]} == {"full"}
    options = ("--model", pocket_folder, "--lora", noisy, "--preset", tmp_path / "my.toml", "-o", tmp_path / "v.mp4")
    made = invoke("a cat", *options)
    assert made.exit_code == 0, made.output
    assert "measured with" not in made.stderr
    otherwise = calibrator("--lora", noisy, "--solver", "euler", "--dry-run", "--json", steps=None)
    assert told(otherwise, "calibrate --dry-run")["steps"] == 2
    refused = calibrator.refused("--lora", noisy, "--choose", "attention,compute", steps=None)
    assert "the solver fastwan adds noise between steps" in refused


def test_bench_quality_measures_the_merged_model(quality: Quality, style: Path, tmp_path: Path) -> None:
    noisy = style.rename(tmp_path / "FastWan.safetensors")
    record = quality.record("--lora", noisy, seeds=1)
    assert record["model"] == "pocket v0 with FastWan.safetensors"
    assert record["loras"] == recorded(noisy, 1)
    assert (record["video"]["solver"], record["video"]["steps"], record["video"]["guidance"]) == ("fastwan", 3, 1)
    otherwise = quality.record("--lora", noisy, "--solver", "euler", "--steps", 1, seeds=1)
    assert (otherwise["video"]["solver"], otherwise["video"]["steps"]) == ("euler", 1)
