"""Text encoders and VAEs in the files that people have: safetensors under either format's names, FP8, GGUF."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fpsgen.target import Target
from fpsgen.wan.linear import Linear
from fpsgen.wan.offload import Home
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import keys, load, models, needs
from fpsgen.weights.load import load_text_encoder, load_transformer, load_vae
from fpsgen.weights.models import Model
from tests.tools import original_t5
from tests.tools.quantised import DIALECTS, State, comfy_old, split, values, write, write_gguf

CPU = torch.device("cpu")
T5, VAE, DIT = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "diffusion_pytorch_model.safetensors"
PROMPT = "a cat surfing"
# By MODEL_ARCH.T5ENCODER of the gguf package; their meaning by llama.cpp's converter (`class T5EncoderModel`).
LLAMA = {
    "layer.0.SelfAttention.q": "attn_q", "layer.0.SelfAttention.k": "attn_k", "layer.0.SelfAttention.v": "attn_v",
    "layer.0.SelfAttention.o": "attn_o", "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "layer.0.layer_norm": "attn_norm", "layer.1.layer_norm": "ffn_norm", "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up", "layer.1.DenseReluDense.wo": "ffn_down",
}  # fmt: skip


def taken(folder: Path, name: str) -> State:
    """A part's tensors, whose file gives way to another."""
    found = torch.load(folder / name, weights_only=True)
    (folder / name).unlink()
    return {key: value.clone() for key, value in found.items()}


def theirs(state: State) -> State:
    """A text encoder under transformers' names."""
    names = original_t5.names(layers=2)
    return {names[name]: value for name, value in state.items()}


def llama(state: State) -> State:
    found = {}
    for name, value in theirs(state).items():
        fixed = {"shared.weight": "token_embd.weight", "encoder.final_layer_norm.weight": "enc.output_norm.weight"}
        if name not in fixed:
            block, _, rest = name.removeprefix("encoder.block.").partition(".")
            fixed[name] = f"enc.blk.{block}.{LLAMA[rest.removesuffix('.weight')]}.weight"
        found[fixed[name]] = value
    return found


HOMES: tuple[Home, ...] = ("device", "host memory", "files")


def embedded(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same whether its blocks stay, or come one by one."""
    checkpoint = models.find(str(folder / DIT)).checkpoint
    whole, *by_blocks = (load_text_encoder(checkpoint, CPU, dtype, home=home) for home in HOMES)
    text = whole.encode(PROMPT).text
    for own in by_blocks:
        assert torch.equal(own.encode(PROMPT).text, text)
        assert own.module.encoder.streamed is not None
    return text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("names", ["original", "transformers"])
def test_umt5_in_safetensors(original: Path, dtype: torch.dtype, names: str) -> None:
    state = {name: value.to(dtype) for name, value in taken(original, T5).items()}
    torch.save({name: value.float() for name, value in state.items()}, original / T5)
    expected = embedded(original)
    (original / T5).unlink()
    write(original / "umt5_xxl.safetensors", state if names == "original" else theirs(state))
    assert torch.equal(embedded(original), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [True, False])
def test_umt5_in_fp8_as_comfyui_has_it(original: Path, dtype: torch.dtype, scaled: bool) -> None:
    """With a tokenizer inside, which is not asked, and the embedding in FP8, too; matrices stay so in memory."""
    state = theirs(taken(original, T5))
    written = (comfy_old if scaled else DIALECTS["fp8"])(state)
    torch.save(values(written), original / T5)
    expected = embedded(original, dtype)
    (original / T5).unlink()
    write(original / "umt5_fp8.safetensors", written | {"spiece_model": torch.zeros(99, dtype=torch.uint8)})
    assert torch.equal(embedded(original, dtype), expected)
    module = load_text_encoder(models.find(str(original / DIT)).checkpoint, CPU, dtype).module
    assert all(layer.weight.is_meta for layer in module.modules() if isinstance(layer, Linear))


@pytest.mark.parametrize("dialect", ["lightx2v", "lightx2v int8"])
def test_umt5_in_8_bits_as_lightx2v_has_it(original: Path, dialect: str) -> None:
    """In a `.pth` file under the original's names."""
    written = DIALECTS[dialect](taken(original, T5))
    torch.save(values(written), original / T5)
    expected = embedded(original, torch.bfloat16)
    torch.save(written, original / T5)
    assert torch.equal(embedded(original, torch.bfloat16), expected)


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_umt5_in_gguf_under_llama_cpp_s_names(original: Path, kind: str) -> None:
    state = taken(original, T5)
    known = gguf.TENSOR_NAMES
    ours = {known[each].format(bid=n) for each in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.T5ENCODER] for n in (0, 1)}
    assert {name.removesuffix(".weight") for name in llama(state)} <= ours
    worth = write_gguf(original / "umt5.gguf", llama(state), kind, "t5encoder")
    back = {new: worth[old] for old, new in zip(llama(state), state, strict=True)}
    assert torch.equal(embedded(original), embedded_of(original, back))


def embedded_of(folder: Path, state: State) -> Tensor:
    torch.save(state, folder / T5)
    return embedded(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_vae_in_safetensors(original: Path, dtype: torch.dtype, names: str) -> None:
    state = {name: value.to(dtype) for name, value in taken(original, VAE).items()}
    written = state if names == "original" else {keys.VAE.to_diffusers(name): value for name, value in state.items()}
    write(original / "wan_2.1_vae.safetensors", written)
    found = load_vae(models.find(str(original / DIT)).checkpoint, CPU).state_dict()
    for name, value in state.items():
        assert torch.equal(found[keys.VAE.to_diffusers(name)], value.float())


def held(model: WanTransformer) -> int:
    """Bytes of all that a transformer keeps."""
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    eight = {id(each): each for layer in layers for each in (*layer._in_8_bits.values(), layer._of_file) if each}
    plain = sum(value.nbytes for value in model.parameters() if not value.is_meta)
    return plain + sum(each.numbers.nbytes for each in eight.values())


def named(original: Path, written: State) -> Model:
    (original / "config.json").unlink(missing_ok=True)
    return models.find(str(write(original / "mine.safetensors", written)))


@pytest.mark.parametrize("dialect", ["lightx2v", "comfy int8", "comfy, e5m2", "fp8"])
def test_memory_is_that_of_8_bits(original: Path, dialect: str) -> None:
    state = dict(load.read([original / DIT]))
    model = named(original, DIALECTS[dialect](state))  # type: ignore[arg-type]
    target = Target(CPU, torch.bfloat16, torch.bfloat16)
    assert (
        held(load_transformer(model.checkpoint, CPU, torch.bfloat16))
        == needs.weights(model.checkpoint, target)["transformer"]
    )
    matrices = sum(value.numel() for name, value in state.items() if "block" in name and value.ndim == 2)
    plain = needs.weights(models.find(str(original)).checkpoint, target)["transformer"]
    assert needs.weights(model.checkpoint, target)["transformer"] == plain - matrices


def test_a_scale_may_lie_in_another_file_than_its_weight(original: Path) -> None:
    state = dict(load.read([original / DIT]))
    written = split(state, torch.float8_e4m3fn, True, "weight_scale")  # type: ignore[arg-type]
    alone = named(original, written)
    folder = original.parent / "two"
    folder.mkdir()
    for part in original.iterdir():
        if part.suffix != ".safetensors" and part.name != "config.json":
            (folder / part.name).symlink_to(part)
    for n, ending in enumerate((True, False), 1):
        own = {name: value for name, value in written.items() if name.endswith("weight_scale") is ending}
        save_file(own, folder / f"diffusion_pytorch_model-0000{n}-of-00002.safetensors")
    two = models.find(str(folder))
    assert [len(each.checkpoint.transformer) for each in (alone, two)] == [1, 2]
    ours, whole = (load_transformer(each.checkpoint, CPU, torch.bfloat16) for each in (two, alone))
    assert ours.fingerprint() == whole.fingerprint()
    assert load.identity(two.checkpoint, "transformer") == load.identity(alone.checkpoint, "transformer")


def test_values_are_identified_whatever_they_are_in(original: Path) -> None:
    state: State = dict(load.read([original / DIT]))  # type: ignore[arg-type]
    eight = DIALECTS["comfy, old"](state)
    worth = write_gguf(original / "mine.gguf", state, "Q8_0")
    for file, same in ((named(original, eight), values(eight)), (models.find(str(original / "mine.gguf")), worth)):
        whole = models.find(str(write(original / "whole.safetensors", same)))
        assert load.identity(file.checkpoint, "transformer") == load.identity(whole.checkpoint, "transformer")
