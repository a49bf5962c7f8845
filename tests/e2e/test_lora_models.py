"""LoRAs on models of other kinds and sizes: of two experts, of ones that begin with an image, of 14B."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from diffusers.loaders import lora_conversion_utils as converters
from safetensors.torch import save_file
from torch import Tensor

from fpsgen import pipeline, solvers
from fpsgen.events import Denoised
from fpsgen.request import Request
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.weights import lora, models
from fpsgen.weights.load import load_transformer
from tests.tools.cli import Runner, invoke
from tests.tools.fake_checkpoint import make
from tests.tools.image_pipeline import make_image_pipeline
from tests.tools.videos import metadata

CPU = torch.device("cpu")
TARGET = Target(CPU, torch.float32, torch.float32)
PROMPT, NEGATIVE = "a cat surfing on the sea", "blurry"
OWN = Settings(48, 32, 5, 16, 3, 4.0, 3.0, NEGATIVE, sigmas="diffusers", boundary=0.875, guidance_low=3.0)
# In the original's and in diffusers' names.
NAMES = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q", "blocks.1.cross_attn.o": "blocks.1.attn2.to_out.0",
    "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj", "time_projection.1": "condition_embedder.time_proj",
}  # fmt: skip
IMAGES = {
    "blocks.0.cross_attn.k_img": "blocks.0.attn2.add_k_proj", "blocks.1.cross_attn.v_img": "blocks.1.attn2.add_v_proj",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
}  # fmt: skip


def changed(transformer: torch.nn.Module, seed: int, factor: float, names: dict[str, str]) -> dict[str, Tensor]:
    """A LoRA in the original's names, which is merged with diffusers' transformer here."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, theirs in names.items():
        weight = transformer.get_submodule(theirs).weight
        down = torch.randn(2, weight.shape[1], generator=generator)
        up = 0.05 * torch.randn(weight.shape[0], 2, generator=generator)
        weight.data += factor * up @ down
        state |= {f"diffusion_model.{name}.lora_down.weight": down, f"diffusion_model.{name}.lora_up.weight": up}
    return state


def denoised(model: models.Model, settings: Settings) -> Tensor:
    events = pipeline.generate([Request(PROMPT, settings, 3, Path("unused.mp4"))], model, TARGET)
    for event in events:
        if isinstance(event, Denoised):
            events.close()
            return event.latents
    raise AssertionError("no video")


@pytest.mark.parametrize("given", [("high", "low"), ("both",)])
def test_each_expert_has_its_loras_as_in_diffusers(
    experts_pipeline: WanPipeline, experts: dict[str, Path], tmp_path: Path, given: tuple[str, ...]
) -> None:
    parts = {name: copy.deepcopy(getattr(experts_pipeline, name)) for name in ("transformer", "transformer_2")}
    loras = []
    for seed, which in enumerate(given):
        file, scale = tmp_path / f"{seed}.safetensors", 1.0 if seed else 0.5
        for name in {"high": ["transformer"], "low": ["transformer_2"], "both": [*parts]}[which]:
            save_file(changed(parts[name], seed, scale, NAMES), file)
        loras.append(lora.find(f"{file}:{scale}" if which == "both" else f"{which}={file}:{scale}"))
    names = ("tokenizer", "text_encoder", "vae", "scheduler")
    theirs = WanPipeline(**{name: getattr(experts_pipeline, name) for name in names}, **parts, boundary_ratio=0.875)
    theirs.set_progress_bar_config(disable=True)
    wanted = theirs(
        PROMPT, NEGATIVE, height=32, width=48, num_frames=5, num_inference_steps=3, guidance_scale=4.0,
        guidance_scale_2=3.0, latents=solvers.noise(16, OWN.latent_shape, 3), output_type="latent",
    ).frames  # fmt: skip
    model = models.find(str(experts["diffusers"])).with_loras(loras)
    assert 0 < OWN.high_steps < OWN.steps
    assert (denoised(model, OWN) - wanted).norm() <= 1e-3 * wanted.norm()  # as without LoRAs


def test_the_command_line_names_the_expert(
    experts: dict[str, Path], experts_pipeline: WanPipeline, tmp_path: Path
) -> None:
    state = changed(copy.deepcopy(experts_pipeline.transformer), 0, 1.0, NAMES)
    for name in ("style", "wan2.2_low_noise_style"):
        save_file(state, tmp_path / f"{name}.safetensors")
    run = Runner(experts["original"], tmp_path)
    plain, one = run(frames=1), run(frames=1, lora=f"high={tmp_path / 'style.safetensors'}:0.5")
    assert [(each["expert"], each["scale"]) for each in one["loras"]] == [("high", 0.5)]
    assert metadata(one["output"])["loras"] == one["loras"]
    assert plain["weights"] != one["weights"]
    options = ("--model", experts["original"], "--res", "96x64", "--frames", 1, "--steps", 2)
    result = invoke(
        "a cat", *options, "--lora", tmp_path / "wan2.2_low_noise_style.safetensors", "-o", tmp_path / "v.mp4"
    )
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "is for the low-noise expert, as it says, and only that one has it; --lora high=FILE gives it" in said
    assert metadata(tmp_path / "v.mp4")["loras"][0]["expert"] == "low"
    save_file(state, tmp_path / "wan2.2_high_noise_style.safetensors")
    pair = [part for one in ("high", "low") for part in ("--lora", tmp_path / f"wan2.2_{one}_noise_style.safetensors")]
    result = invoke("a cat", *options, *pair, "-o", tmp_path / "pair.mp4")
    assert result.exit_code == 0, result.output
    assert "and only that one has it" not in " ".join(result.stderr.split())
    assert [own["expert"] for own in metadata(tmp_path / "pair.mp4")["loras"]] == ["high", "low"]


@pytest.mark.parametrize("dialect", ["original", "diffusers"])
def test_the_part_of_an_image_to_video_model_that_sees_the_image(tmp_path: Path, dialect: str) -> None:
    theirs = make_image_pipeline("i2v-14b")
    theirs.save_pretrained(tmp_path / "model")
    blocks = {f"blocks.{n}.cross_attn.{one}": f"blocks.{n}.attn2.{two}" for n in range(2) for one, two in
              (("k_img", "add_k_proj"), ("v_img", "add_v_proj"))}  # fmt: skip
    names = NAMES | IMAGES | blocks
    state = changed(theirs.transformer, 0, 1.0, names)
    if dialect == "diffusers":
        state = converters._convert_non_diffusers_wan_lora_to_diffusers(dict(state))
    save_file(state, tmp_path / "a.safetensors")
    model = models.find(str(tmp_path / "model")).with_loras([lora.find(str(tmp_path / "a.safetensors"))])
    merged = load_transformer(model.checkpoint, CPU, torch.float32).state_dict()
    for ours, name in names.items():
        assert torch.equal(merged[f"{ours}.weight"], theirs.transformer.get_submodule(name).weight)


def test_a_lora_of_the_small_model_on_the_large_one(tmp_path: Path, loads: list[str]) -> None:
    make("14b", "diffusers", tmp_path / "14b", meta=True)
    state = {
        f"lora_unet_blocks_{n}_self_attn_q.{half}.weight": torch.zeros(shape)
        for n in range(30)
        for half, shape in (("lora_down", (4, 1536)), ("lora_up", (1536, 4)))
    }
    save_file(state, tmp_path / "small.safetensors")
    options = ("--model", tmp_path / "14b", "--lora", tmp_path / "small.safetensors", "-o", tmp_path / "v.mp4")
    result = invoke("a cat", *options)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "is for a model of width 1536 (1.3b); this one has width 5120 (14b)" in said
    assert "use a LoRA that was made for this model" in said
    assert loads == []
