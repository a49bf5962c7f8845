"""Models that were distilled for few steps are recognised, and get steps, noise levels and guidance of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fpsgen.choices import settings_of
from fpsgen.settings import DEFAULTS
from fpsgen.weights import load, models
from fpsgen.weights.convert import write_model
from fpsgen.weights.few_steps import solver_of
from tests.tools.cli import models as run

TRANSFORMER = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("label", "solver"),
    [
        ("FastVideo/FastWan2.1-T2V-1.3B-Diffusers", "fastwan"),
        ("Wan2_2-TI2V-5B-FastWanFullAttn_bf16.safetensors", "fastwan"),
        ("_class_name=WanDMDPipeline", "fastwan"),
        ("wan2.1_t2v_14b_lightx2v_4step.safetensors", "lightx2v"),
        ("Wan2.1-T2V-14B-StepDistill-CfgDistill", "lightx2v"),
        ("Wan21_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16", "lightx2v"),
        ("Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16", "lightx2v"),
        ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise", "lightx2v"),
        ("TurboWan2.1-T2V-1.3B-480P", "turbowan"),
        ("rCM_Wan2.1_T2V_1.3B_480p", "turbowan"),
        ("SparkWan2.2", "turbowan"),
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", None),
        ("wan2.1_t2v_1.3B_fp16.safetensors format=pt", None),
        ("a LoRA trained for 1024 steps, ss_steps=64 steps", None),
        ("circmap-wan", None),
        ("lightning-and-thunder-wan21-lora", None),
        ("lightx2v/Wan2.2-Lightning", "lightx2v"),
        ("Wan22_Lightning_high", "lightx2v"),
    ],
)
def test_names_that_people_have(label: str, solver: str | None) -> None:
    assert solver_of(label) == solver


def test_a_folder_by_its_name_and_a_file_by_its_own(both_formats: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(both_formats["diffusers"], folder := tmp_path / "Wan2.1-T2V-StepDistill")
    fast = DEFAULTS["1.3b"].override(solver="lightx2v")
    assert models.find(str(folder)).defaults == fast
    assert models.find(str(folder / "transformer" / TRANSFORMER)).defaults == fast
    snapshot = tmp_path / "models--lightx2v--Wan2.1-T2V-14B-StepDistill" / "snapshots" / "0a1b"
    shutil.copytree(folder, snapshot)
    assert models.find(str(snapshot)).defaults == fast

    shutil.copytree(both_formats["original"], plain := tmp_path / "plain")
    assert models.find(str(plain)).defaults == DEFAULTS["1.3b"]
    (plain / TRANSFORMER).rename(file := plain / "wan2.1_t2v_14b_lightx2v_4step.safetensors")
    assert models.find(str(file)).defaults == models.find(str(plain)).defaults == fast
    save_file(load_file(file), named := tmp_path / "plain" / TRANSFORMER, {"modelspec.title": "Wan rCM"})
    file.unlink()
    assert models.find(str(named)).defaults.solver == "turbowan"


def test_the_folders_around_it_say_nothing(
    both_formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = tmp_path / "LightX2V" / "models"
    for form, folder in both_formats.items():
        shutil.copytree(folder, around / form)
        assert models.find(str(around / form)).defaults == DEFAULTS["1.3b"]
    shutil.copytree(both_formats["original"], tmp_path / "FastWan")
    monkeypatch.chdir(tmp_path / "FastWan")
    assert models.find(".").defaults.solver == "fastwan"


@pytest.mark.parametrize("form", ["original", "diffusers"])
def test_what_is_written_of_it_says_so_itself(both_formats: dict[str, Path], tmp_path: Path, form: str) -> None:
    shutil.copytree(both_formats[form], folder := tmp_path / "TurboWan")
    result = run("convert", folder, tmp_path / "mine")
    assert result.exit_code == 0, result.output
    assert models.find(str(tmp_path / "mine")).defaults == DEFAULTS["1.3b"].override(solver="turbowan")
    model = models.find(str(folder))
    weights = load.load_transformer(model.checkpoint, torch.device("cpu"), torch.float32).state_dict()
    write_model(model, weights, tmp_path / "trained")
    assert models.find(str(tmp_path / "trained")).defaults.solver == "turbowan"


def test_the_user_s_solver_comes_first(both_formats: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(both_formats["original"], folder := tmp_path / "FastWan")
    model = models.find(str(folder))
    own = settings_of(model, None)
    assert (own.solver, own.steps, own.shift, own.guidance, own.branches) == ("fastwan", 3, 8, 1, 1)
    assert settings_of(model, None, solver="unipc") == DEFAULTS["1.3b"]
    assert settings_of(model, None, solver="lightx2v", guidance=2.0).steps == 4
    assert settings_of(models.find(str(both_formats["original"])), None, solver="fastwan").steps == 3
