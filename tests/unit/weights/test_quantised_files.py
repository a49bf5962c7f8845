"""Files in fewer than 16 bits: each dialect against its definition and the gguf package, in memory and in products."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import GGUFQuantizationConfig, WanTransformer3DModel
from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor
from torch import Tensor

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import TileGrid
from fpsgen.wan.linear import Linear
from fpsgen.wan.plan import UNROUNDED, Linears, StepPlan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import lora, models
from fpsgen.weights.layout import PARTS
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import Model
from tests.tools import lora as lora_files
from tests.tools.quantised import DIALECTS, FP8, INT8, State, values, write, write_gguf

CPU = torch.device("cpu")
DIT = "diffusion_pytorch_model.safetensors"
Q = "blocks.0.self_attn.q"
RENAME = PARTS["transformer"].rename


def opened(original: Path, written: State, name: str = "mine.safetensors") -> Model:
    return models.find(str(write(original / name, written)))


def load(model: Model, dtype: torch.dtype = torch.float32, *steps: StepPlan) -> WanTransformer:
    return load_transformer(model.checkpoint, CPU, dtype, steps)


def plan_of(model: Model, *layers: Linears) -> StepPlan:
    tiles = TileGrid.cut(model.config.grid((3, 8, 12)))
    return StepPlan((AttentionPlan(tiles),) * model.config.num_layers, layers or (UNROUNDED,) * 2)


@torch.inference_mode()
def velocity(transformer: WanTransformer, plan: StepPlan) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x, text = (torch.randn(*shape, generator=generator) for shape in ((1, 16, 3, 8, 12), (1, 9, 24)))
    return transformer(x, torch.tensor([700.0]), transformer.embed_text(text), plan)


def linears(transformer: WanTransformer) -> dict[str, Linear]:
    return {name: layer for name, layer in transformer.named_modules() if isinstance(layer, Linear)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_is_what_its_definition_says(
    original: Path, state: State, dialect: str, dtype: torch.dtype
) -> None:
    """Weights that stay in 8 bits give, bit for bit, what their values do when these are expanded beforehand."""
    written = DIALECTS[dialect](state)
    eight, whole = opened(original, written), opened(original, values(written), "whole.safetensors")
    ours, theirs = load(eight, dtype), load(whole, dtype)
    assert ours.fingerprint() == theirs.fingerprint()
    assert all(layer.weight.is_meta for layer in linears(ours).values())
    for plan in (plan_of(eight), plan_of(eight, Linears(ffn="int8"), UNROUNDED)):
        if "int8" not in dialect or plan == plan_of(eight):
            assert torch.equal(velocity(ours, plan), velocity(theirs, plan))
    expanded = load_transformer(eight.checkpoint, CPU, dtype, trains=True).state_dict()
    assert all(torch.equal(value, expanded[name]) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("dialect", "kind"), [("lightx2v", "fp8"), ("comfy, old", "fp8"), ("fp8", "fp8"), ("lightx2v int8", "int8")]
)
@pytest.mark.parametrize("known", [False, True])
def test_8_bit_products_use_the_files_own_numbers(
    original: Path, state: State, dialect: str, kind: str, known: bool
) -> None:
    written = DIALECTS[dialect](state)
    model = opened(original, written)
    plan = plan_of(model, *[Linears(kind, kind)] * 2)  # type: ignore[arg-type]
    transformer = load(model, torch.bfloat16, *[plan] * known)
    velocity(transformer, plan)
    assert transformer.fingerprint() == load(model).fingerprint()
    for name, layer in linears(transformer).items():
        if "cross_attn" in name:
            continue
        own, numbers = layer.quantized(kind), written[f"{name}.weight"]  # type: ignore[arg-type]
        assert own.numbers.dtype == (FP8 if kind == "fp8" else INT8)
        assert torch.equal(own.numbers.view(torch.uint8), numbers.view(torch.uint8))
        assert torch.equal(own.dequantize(), values(written)[f"{name}.weight"])
    assert torch.equal(velocity(transformer, plan), velocity(load(model, torch.bfloat16), plan))


@pytest.mark.parametrize("dialect", ["lightx2v", "comfy, old, prefix", "fp8"])
def test_a_lora_is_merged_with_the_values_and_rounded_anew(original: Path, state: State, dialect: str) -> None:
    written = DIALECTS[dialect](state)
    eight, whole = opened(original, written), opened(original, values(written), "whole.safetensors")
    own = [lora.find(str(lora_files.write(original / "lora.safetensors", eight.config)))]
    ours, theirs = (load(model.with_loras(own), torch.bfloat16) for model in (eight, whole))
    assert ours.fingerprint() == theirs.fingerprint()
    for plan in (plan_of(eight), plan_of(eight, *[Linears("fp8", "fp8")] * 2)):
        assert torch.equal(velocity(ours, plan), velocity(theirs, plan))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K"])
def test_gguf_is_what_the_gguf_package_makes_of_it(original: Path, state: State, kind: str) -> None:
    worth = write_gguf(original / "mine.gguf", state, kind)
    model = models.find(str(original / "mine.gguf"))
    found = load(model).state_dict()
    assert all(torch.equal(found[name], value) for name, value in worth.items())


def test_gguf_is_what_diffusers_makes_of_it(original: Path, state: State, both_formats: dict[str, Path]) -> None:
    write_gguf(original / "mine.gguf", state, "Q8_0")
    theirs = WanTransformer3DModel.from_single_file(
        str(original / "mine.gguf"),
        config=str(both_formats["diffusers"]),
        subfolder="transformer",
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    ours = load(models.find(str(original / "mine.gguf"))).state_dict()
    for name, value in theirs.state_dict().items():
        packed = isinstance(value, GGUFParameter)  # whose values they make in float16, as the scales of blocks are
        known = (dequantize_gguf_tensor(value) if packed else value).float()
        torch.testing.assert_close(ours[RENAME(name)], known, rtol=2**-11 if packed else 0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_of_16_and_32_bits_are_what_diffusers_makes_of_them(
    original: Path, state: State, both_formats: dict[str, Path], dtype: torch.dtype
) -> None:
    model = opened(original, {name: value.to(dtype) for name, value in state.items()})
    theirs = WanTransformer3DModel.from_single_file(
        str(original / "mine.safetensors"), config=str(both_formats["diffusers"]), subfolder="transformer",
        torch_dtype=torch.float32,
    )  # fmt: skip
    ours = load(model).state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours[RENAME(name)], value)
    folder = Path(shutil.copytree(original, original.parent / "again"))
    assert load(models.find(str(folder))).fingerprint() == load(model).fingerprint()
