"""Files that people name by mistake, or that arrived damaged: `generate` refuses each in one sentence with its fix,
before it reads a single weight."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fpsgen.wan.config import WanConfig
from fpsgen.weights import read
from tests.tools import lora, quantised
from tests.tools.cli import invoke
from tests.tools.image_pipeline import make_image_pipeline
from tests.tools.wrong_files import CASES, FP8, SHAPES, T5, TRANSFORMER, VAE, Case, case


@case("ends after")
def transformer_cut(own: Case) -> list[object]:
    own.file.write_bytes(own.file.read_bytes()[:-1000])
    return own.model()


@case("within its header")
def transformer_cut_in_its_header(own: Case) -> list[object]:
    own.file.write_bytes(own.file.read_bytes()[:500])
    return own.model()


@case("is empty")
def transformer_empty(own: Case) -> list[object]:
    own.file.write_bytes(b"")
    return own.model()


@case("web page")
def transformer_is_a_login_page(own: Case) -> list[object]:
    own.file.write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    return own.model()


@case("Git LFS pointer")
def transformer_is_a_pointer(own: Case) -> list[object]:
    own.file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    return own.model()


@case("is damaged")
def text_encoder_cut(own: Case) -> list[object]:
    (own.folder / T5).write_bytes((own.folder / T5).read_bytes()[:-3000])
    return own.model()


@case("could run code")
def vae_that_would_run_code(own: Case) -> list[object]:
    (own.folder / VAE).write_bytes(pickle.dumps({"a": print}))
    return own.model()


@case("no tokenizer.json")
def tokenizer_absent(own: Case) -> list[object]:
    (own.folder / "google" / "umt5-xxl" / "tokenizer.json").unlink()
    return own.model()


@case("missing: blocks.1.ffn.0.weight")
def transformer_without_a_parameter(own: Case) -> list[object]:
    return own.model({name: value for name, value in own.state.items() if name != "blocks.1.ffn.0.weight"})


@case("of another shape")
def transformer_with_a_parameter_of_another_shape(own: Case) -> list[object]:
    return own.model(own.state | {"blocks.1.ffn.2.bias": torch.zeros(64)})


@case("twice")
def transformer_in_two_dialects(own: Case) -> list[object]:
    return own.model(own.state | {"blocks.0.attn1.to_q.weight": own.state["blocks.0.self_attn.q.weight"].clone()})


@case("is a LoRA")
def lora_as_the_model(own: Case) -> list[object]:
    return own.model(lora.tensors(lora.adapters(SHAPES)))


@case("is a VAE")
def vae_as_the_model(own: Case) -> list[object]:
    return own.model({"encoder.conv1.weight": torch.zeros(4, 3, 3, 3, 3), "decoder.conv1.weight": torch.zeros(1)})


@case("is a text encoder")
def text_encoder_as_the_model(own: Case) -> list[object]:
    return own.model({"shared.weight": torch.zeros(8, 8)})


@case("its tensors are called")
def image_model_as_the_model(own: Case) -> list[object]:
    return own.model({"double_blocks.0.img_attn.qkv.weight": torch.zeros(8, 8)})


@case("VACE")
def vace_as_the_model(own: Case) -> list[object]:
    return own.model(own.state | {"vace_blocks.0.before_proj.weight": torch.zeros(8, 8)})


@case("which fpsgen does not compute")
def model_of_another_attention(own: Case) -> list[object]:
    return own.model(own.state | {"blocks.0.self_attn.proj_l.weight": torch.zeros(8, 8)})


@case("more than text as input")
def model_of_camera_paths(own: Case) -> list[object]:
    return own.model(own.state | {"control_adapter.conv.weight": torch.zeros(8, 8)})


@case("half a model")
def an_expert_alone(own: Case) -> list[object]:
    return ["--model", own.experts / "high_noise_model"]


@case("lacks low_noise_model")
def an_expert_missing(own: Case) -> list[object]:
    shutil.rmtree(own.experts / "low_noise_model")
    return ["--model", own.experts]


@case("of two models")
def experts_of_two_models(own: Case) -> list[object]:
    file = own.experts / "low_noise_model" / TRANSFORMER
    state = {name: value.clone() for name, value in load_file(file).items() if not name.startswith("blocks.1.")}
    save_file(state, file)
    (own.experts / "low_noise_model" / "config.json").unlink()
    return ["--model", own.experts]


@case("lacks the scales")
def fp8_without_a_scale(own: Case) -> list[object]:
    state = quantised.split(own.state, FP8, True, "weight_scale")
    return own.model({name: value for name, value in state.items() if name != "blocks.0.ffn.0.weight_scale"})


@case("neither one number nor one for each row")
def fp8_with_scales_of_another_shape(own: Case) -> list[object]:
    state = quantised.split(own.state, FP8, True, "weight_scale")
    return own.model(state | {"blocks.0.ffn.0.weight_scale": torch.ones(7)})


@case("scales of no 8-bit weight")
def fp8_with_a_scale_of_nothing(own: Case) -> list[object]:
    return own.model(own.state | {"blocks.0.ffn.0.weight_scale": torch.ones(1)})


@case("NVFP4")
def four_bits(own: Case) -> list[object]:
    state = quantised.split(own.state, FP8, False, "weight_scale")
    return own.model(state | {"blocks.0.ffn.0.weight_scale_2": torch.ones(1)})


@case("mxfp8")
def a_format_that_nobody_reads(own: Case) -> list[object]:
    return own.model(quantised.comfy(own.state, FP8, False, "mxfp8"))


def as_gguf(own: Case, **kind: str) -> Path:
    file = own.file.with_suffix(".gguf")
    quantised.write_gguf(file, own.state, "Q8_0", **kind)
    own.file.unlink()
    return file


@case("damaged")
def gguf_cut(own: Case) -> list[object]:
    file = as_gguf(own)
    file.write_bytes(file.read_bytes()[:-5000])
    return ["--model", file]


@case("damaged")
def gguf_cut_in_its_header(own: Case) -> list[object]:
    file = as_gguf(own)
    file.write_bytes(file.read_bytes()[:300])
    return ["--model", file]


@case("is a language model")
def gguf_of_a_language_model(own: Case) -> list[object]:
    file = own.folder / "llama.gguf"
    quantised.write_gguf(file, {"blk.0.attn_q.weight": torch.ones(32, 32)}, "F16", "llama")
    return ["--model", file]


@case("A of blocks.0")
def lora_without_its_half(own: Case) -> list[object]:
    state = lora.tensors(lora.adapters(SHAPES))
    del state["diffusion_model.blocks.0.self_attn.q.lora_A.weight"]
    return own.lora(state)


@case("1536")
def lora_of_another_width(own: Case) -> list[object]:
    q = "diffusion_model.blocks.0.self_attn.q.lora_"
    return own.lora({f"{q}A.weight": torch.zeros(4, 1536), f"{q}B.weight": torch.zeros(1536, 4)})


@case("layer")
def lora_of_a_deeper_model(own: Case) -> list[object]:
    wider = lora.adapters(WanConfig(128, 96, 1, 4, text_dim=24, freq_dim=32))
    return own.lora(lora.tensors(wider))


@case("dialect")
def lora_in_two_dialects(own: Case) -> list[object]:
    state = lora.tensors(lora.adapters(SHAPES))
    more = {
        "lora_unet_blocks_1_ffn_0.lora_down.weight": torch.zeros(2, 128),
        "lora_unet_blocks_1_ffn_0.lora_up.weight": torch.zeros(96, 2),
    }
    return own.lora({name: value for name, value in state.items() if "blocks.1.ffn.0" not in name} | more)


@case("should be the LoRA, but is a transformer")
def model_as_a_lora(own: Case) -> list[object]:
    return [*own.model(), "--lora", own.file]


@case("LoKr")
def lora_of_another_kind(own: Case) -> list[object]:
    return own.lora({"diffusion_model.blocks.0.self_attn.q.lokr_w1": torch.zeros(8, 8)})


@case("does not begin as a .safetensors file does")
def lora_that_is_noise(own: Case) -> list[object]:
    return [*own.model(), "--lora", own.put("style.safetensors", b"\x00\xff" * 400)]


@case("ends after")
def lora_cut(own: Case) -> list[object]:
    arguments = own.lora(lora.tensors(lora.adapters(SHAPES)))
    file = own.place / "style.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return arguments


@case("pickled")
def lora_pickled(own: Case) -> list[object]:
    torch.save(lora.tensors(lora.adapters(SHAPES)), own.place / "style.pth")
    return [*own.model(), "--lora", own.place / "style.pth"]


@case("is no number")
def lora_with_a_scale_that_is_none(own: Case) -> list[object]:
    *rest, file = own.lora(lora.tensors(lora.adapters(SHAPES)))
    return [*rest, f"{file}:strong"]


@case("one transformer")
def lora_for_an_expert_that_is_none(own: Case) -> list[object]:
    *rest, file = own.lora(lora.tensors(lora.adapters(SHAPES)))
    return [*rest, f"high={file}"]


@case("image")
def image_for_a_text_to_video_model(own: Case) -> list[object]:
    Image.new("RGB", (64, 64)).save(own.place / "first.png")
    return [*own.model(), "--image", own.place / "first.png"]


@case("cannot be read")
def image_that_is_none(own: Case) -> list[object]:
    return [*own.model(), "--image", own.put("first.png", b"\x89PNG\r\n\x1a\n" + bytes(100))]


@case("no such file")
def image_absent(own: Case) -> list[object]:
    return [*own.model(), "--image", own.place / "first.png"]


@case("its config.json says model_type")
def configuration_of_another_model(own: Case) -> list[object]:
    config = own.folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "i2v"}))
    return own.model()


@case("holds half a character")
def configuration_with_half_a_character(own: Case) -> list[object]:
    config = own.folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": "\ud800"}))
    return own.model()


class WasReadError(BaseException):
    """A weight was read."""


def was_read(*_: object) -> None:
    raise WasReadError


def generate(place: Path, arguments: list[object]) -> Any:
    return invoke("a cat", "--res", "96x64", "--frames", 5, "--steps", 2, "-o", place / "a.mp4", *arguments)


@case("image")
def no_image_for_an_image_to_video_model(own: Case) -> list[object]:
    make_image_pipeline("i2v-14b").save_pretrained(own.place / "i2v")
    return ["--model", own.place / "i2v"]


@case("last")
def no_last_image_for_a_model_that_needs_one(own: Case) -> list[object]:
    make_image_pipeline("flf2v-14b").save_pretrained(own.place / "flf2v")
    Image.new("RGB", (96, 64)).save(own.place / "first.png")
    return ["--model", own.place / "flf2v", "--image", own.place / "first.png"]


@case("lacks image_encoder")
def image_encoder_absent(own: Case) -> list[object]:
    make_image_pipeline("i2v-14b").save_pretrained(own.place / "i2v")
    shutil.rmtree(own.place / "i2v" / "image_encoder")
    Image.new("RGB", (96, 64)).save(own.place / "first.png")
    return ["--model", own.place / "i2v", "--image", own.place / "first.png"]


@case("VAE")
def text_encoder_named_as_the_vae(own: Case) -> list[object]:
    return [*own.model(), "--vae", own.folder / T5]


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_file_costs_one_sentence(
    name: str,
    both_formats: dict[str, Path],
    experts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No value is read before the refusal; a LoRA's rank and scale, and a file's headers, are none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    own = Case(
        Path(shutil.copytree(both_formats["original"], tmp_path / "model")),
        Path(shutil.copytree(experts["original"], tmp_path / "experts")),
        tmp_path,
    )
    make, says = CASES[name]
    arguments = make(own)
    monkeypatch.setattr(read, "_value", was_read)
    result = generate(tmp_path, arguments)
    assert result.exit_code == 2, result.output
    flat = " ".join(result.stderr.split())
    assert flat.count("error:") == flat.count("hint:") == 1, flat
    assert says in flat
    assert "Traceback" not in flat
    assert not (tmp_path / "a.mp4").exists()


def test_what_is_right_is_read(both_formats: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hence a refusal above came before it."""
    assert len(CASES) >= 40
    monkeypatch.setattr(read, "_value", was_read)
    with pytest.raises(WasReadError):
        generate(tmp_path, ["--model", both_formats["original"]])
