"""LoRAs that were distilled for few steps: recognised by what they are called, and run by their makers' sampler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from fpsgen.choices import settings_of
from fpsgen.settings import DEFAULTS
from fpsgen.weights import lora
from fpsgen.weights.few_steps import is_of_another_sampler
from fpsgen.weights.models import Model, open_folder
from tests.tools.cli import Runner, invoke, told
from tests.tools.lora import adapters, tensors


@pytest.fixture
def model(wan_folder: Path) -> Model:
    return open_folder(wan_folder, "small")


def write(model: Model, file: Path, metadata: dict[str, str] | None = None) -> Path:
    file.parent.mkdir(exist_ok=True)
    save_file(tensors(adapters(model.config)), file, metadata)
    return file


@pytest.mark.parametrize(
    ("name", "metadata", "solver"),
    [
        ("wan2.1_t2v_14b_lora_rank64_lightx2v_4step", {}, "lightx2v"),
        ("Wan21_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16", {}, "lightx2v"),
        ("Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/high_noise_model", {}, "lightx2v"),
        ("FastWan_T2V_14B_480p_lora_rank_128_bf16", {}, "fastwan"),
        ("Wan2_1-T2V-1.3B_rCM_lora", {}, "turbowan"),
        ("mine", {"modelspec.title": "my lightx2v"}, "lightx2v"),
        ("mine", {"ss_tag_frequency": "lightning, lightx2v", "ss_dit": "wan_4steps.safetensors"}, "unipc"),
        ("4steps/style", {}, "unipc"),
        ("Wan21_CausVid_14B_T2V_lora_rank32", {}, "unipc"),
    ],
)
def test_a_lora_is_recognised_by_what_it_is_called(
    model: Model, tmp_path: Path, name: str, metadata: dict[str, str], solver: str
) -> None:
    found = lora.find(str(write(model, tmp_path / f"{name}.safetensors", metadata)))
    own = settings_of(model.with_loras([found]), None)
    assert own == DEFAULTS["1.3b"].override(solver=solver)
    assert settings_of(model.with_loras([found]), None, solver="unipc") == DEFAULTS["1.3b"]
    assert is_of_another_sampler(found.called) is ("CausVid" in name)


def test_one_that_does_not_act_or_two_of_different_kinds_change_no_defaults(model: Model, tmp_path: Path) -> None:
    fast, light = (str(write(model, tmp_path / f"{name}.safetensors")) for name in ("FastWan", "lightx2v"))
    assert model.with_loras([lora.find(f"{fast}:0")]).defaults == model.defaults
    assert model.with_loras([lora.find(fast), lora.find(light)]).defaults == model.defaults


def test_both_of_two_experts_have_to_be_made_for_few_steps(model: Model, tmp_path: Path) -> None:
    checkpoint = replace(model.checkpoint, transformer_2=model.checkpoint.transformer)
    two = replace(model, checkpoint=checkpoint, defaults=DEFAULTS["2.2-14b"])
    file = write(model, tmp_path / "lightx2v_4step.safetensors")
    high, low = (write(model, tmp_path / f"lightx2v_4step_{name}_noise.safetensors") for name in ("high", "low"))
    style = write(model, tmp_path / "style.safetensors")
    for given in ([low], [f"high={file}"], [high, f"low={file}:0"], [high, style]):
        assert two.with_loras([lora.find(str(one)) for one in given]).defaults == two.defaults, given
    for given in ([file], [high, low], [f"high={file}", f"low={file}:0.5"], [low, file]):
        found = two.with_loras([lora.find(str(one)) for one in given])
        assert found.defaults == two.defaults.override(solver="lightx2v"), given


def test_generate_uses_the_solver_and_says_so(run: Runner, model: Model, tmp_path: Path) -> None:
    file = write(model, tmp_path / "style_lightx2v_4step.safetensors")
    options = ("--model", run.folder, "--res", "96x64", "--frames", 1, "--seed", 1, "--lora", file)
    result = invoke("a cat", *options, "-o", tmp_path / "a.mp4", "--json")
    own = told(result, "generate")
    assert (own["solver"], own["steps"], own["shift"], own["guidance"]) == ("lightx2v", 4, 5, 1)
    said = " ".join(result.stderr.split())
    assert "was made for 4 steps without guidance: the solver lightx2v is used; --solver unipc ignores this" in said

    result = invoke("a cat", *options, "-o", tmp_path / "b.mp4", "--json", "--guidance", 2)
    own = told(result, "generate")
    assert (own["solver"], own["guidance"]) == ("lightx2v", 2)

    result = invoke("a cat", *options, "-o", tmp_path / "c.mp4", "--json", "--sampler", "unipc", "--steps", 2)
    own = told(result, "generate")
    assert (own["solver"], own["steps"], own["guidance"]) == ("unipc", 2, DEFAULTS["1.3b"].guidance)
    assert "4 steps" not in result.stderr

    result = invoke("a cat", *options, "-o", tmp_path / "d.mp4", "--steps", 8)
    assert result.exit_code == 2
    assert "--steps 8: the solver lightx2v has 4 steps" in result.stderr
    assert not (tmp_path / "d.mp4").exists()


def test_one_of_another_sampler_is_noted(run: Runner, model: Model, tmp_path: Path) -> None:
    file = write(model, tmp_path / "wan_causvid_rank32.safetensors")
    options = ("--model", run.folder, "--res", "96x64", "--frames", 1, "--steps", 1)
    result = invoke("a cat", *options, "--lora", file, "-o", tmp_path / "a.mp4")
    assert result.exit_code == 0, result.output
    assert "by a sampler that fpsgen does not have; --steps 8 --guidance 1 may do" in " ".join(result.stderr.split())
