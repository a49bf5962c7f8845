"""Linear layers in 8 bits: against the definition written out, against torch's own products, and in a transformer."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.quantize import Format, Quantized
from fpsgen.attention.tiles import TileGrid
from fpsgen.wan import linear
from fpsgen.wan.linear import Linear, Rounded, choose, expanded, rounded
from fpsgen.wan.plan import UNROUNDED, LinearPrecision, Linears, StepPlan
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import lora
from fpsgen.weights.load import load_transformer
from fpsgen.weights.models import Model, open_folder
from tests.tools.lora import write

CPU = torch.device("cpu")
FORMATS: tuple[Format, ...] = ("fp8", "int8")
FP8, INT8 = Linears("fp8", "fp8"), Linears("int8", "int8")


def codes(x: Tensor, kind: Format) -> tuple[Tensor, Tensor]:
    """Numbers and scales by the definition: the largest of a row becomes 448 or 127, by conversions of torch's own."""
    amax = x.float().abs().amax(-1, keepdim=True)
    scale = torch.where(amax > 0, amax / (448 if kind == "fp8" else 127), torch.ones(()))
    scaled = x.float() * (1 / scale)
    return (scaled.to(torch.float8_e4m3fn) if kind == "fp8" else scaled.round().to(torch.int8)), scale


def by_definition(x: Tensor, weight: Tensor, bias: Tensor, kind: Format) -> Tensor:
    (a, of_x), (b, of_weight) = codes(x, kind), codes(weight, kind)
    return (a.double() * of_x) @ (b.double() * of_weight).mT + bias


def example(dtype: torch.dtype = torch.float32) -> tuple[Linear, Tensor]:
    """A layer, and an input whose tokens are of very different sizes; one is zero."""
    generator = torch.Generator().manual_seed(4)
    layer = Linear(48, 32)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    layer.requires_grad_(False)
    x = torch.randn(2, 20, 48, generator=generator) * torch.logspace(-9, 9, 20)[:, None]
    x[1, 7] = 0
    return layer, x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_product_is_what_its_definition_says(kind: Format, dtype: torch.dtype) -> None:
    layer, x = example(dtype)
    got, expected = layer(rounded(x, kind)), by_definition(x, layer.weight, layer.bias, kind)
    assert got.dtype == dtype
    # float32 sums of 48 exact products; bfloat16 keeps 8 bits of the result.
    torch.testing.assert_close(got.double(), expected, rtol=1e-5 if dtype == torch.float32 else 2**-8, atol=1e-4)
    assert torch.equal(got[1, 7], layer.bias)
    exact = layer(x)
    error = (got - exact)[:, 10:].norm() / exact[:, 10:].norm()
    assert 0.001 < error < 0.05  # E4M3 keeps 4 bits, INT8 of a row's largest number 7


def test_16_bits_are_the_layer_itself() -> None:
    layer, x = example()
    assert rounded(x, "16bit") is x
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("kind", FORMATS)
def test_torch_s_own_product_is_the_same(kind: Format) -> None:
    """By the kernels that run on GPUs, as far as this torch has them for CPUs."""
    layer, x = example()
    (a, of_x), (b, of_weight) = codes(x.flatten(0, 1), kind), codes(layer.weight, kind)
    try:
        if kind == "fp8":
            bias = layer.bias.bfloat16()
            theirs = torch._scaled_mm(a, b.mT, of_x, of_weight.mT, bias, out_dtype=torch.bfloat16).float()
        else:
            theirs = torch._int_mm(a, b.mT) * of_x * of_weight.mT + layer.bias
    except (RuntimeError, NotImplementedError) as fault:
        pytest.skip(str(fault).partition("\n")[0])
    got = layer(rounded(x, kind)).flatten(0, 1)
    torch.testing.assert_close(
        got, theirs, rtol=2**-7 if kind == "fp8" else 1e-5, atol=2**-7 if kind == "fp8" else 1e-4
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_gradients_pass_rounding_straight_through(kind: Format) -> None:
    layer, x = example()
    layer.weight.requires_grad_()
    x = x[:, 9:11].requires_grad_()
    got = layer(rounded(x, kind))
    onto = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    of_x, of_weight = torch.autograd.grad(got, (x, layer.weight), onto)
    (a, scale), (b, of_row) = codes(x.detach(), kind), codes(layer.weight.detach(), kind)
    torch.testing.assert_close(of_x, onto @ (b.float() * of_row), rtol=1e-4, atol=1e-4)
    expected = torch.einsum("nto,nti->oi", onto, a.float() * scale)
    torch.testing.assert_close(of_weight, expected, rtol=1e-4, atol=1e-4)


def test_weights_that_are_trained_are_rounded_anew() -> None:
    layer, x = example()
    layer(rounded(x, "fp8"))
    layer.weight.requires_grad_()
    layer.weight.data.copy_(layer.weight.flip(0))
    expected = by_definition(x, layer.weight, layer.bias, "fp8")
    torch.testing.assert_close(layer(rounded(x, "fp8")).double(), expected, rtol=1e-5, atol=1e-4)


def test_a_cpu_multiplies_by_itself_and_says_why() -> None:
    choice = choose(CPU, "fp8", 32, 32)
    assert choice.name == "plain PyTorch"
    assert [name for name, _ in choice.refused] == ["torch._scaled_mm"]


# --- in a transformer --------------------------------------------------------------------------------


@pytest.fixture
def model(wan_folder: Path) -> Model:
    return open_folder(wan_folder, "small")


def plan_of(model: Model, *layers: Linears) -> StepPlan:
    tiles = TileGrid.cut(model.config.grid((3, 8, 12)))
    return StepPlan((AttentionPlan(tiles),) * model.config.num_layers, layers)


@torch.inference_mode()
def velocity(transformer: WanTransformer, plan: StepPlan) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x, text = (torch.randn(*shape, generator=generator) for shape in ((1, 16, 3, 8, 12), (1, 9, 24)))
    return transformer(x, torch.tensor([700.0]), transformer.embed_text(text), plan)


def test_16_bits_in_words_are_what_no_word_is(model: Model) -> None:
    assert plan_of(model, UNROUNDED, UNROUNDED) == plan_of(model)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("group", ["ffn", "attention"])
def test_only_what_the_plan_names_is_rounded(model: Model, layer: int, group: str) -> None:
    """By layers and groups; the input of q, k and v once. Cross-attention never is."""
    transformer = load_transformer(model.checkpoint, CPU, torch.float32)
    own = [UNROUNDED, UNROUNDED]
    own[layer] = Linears(**{group: "int8"})
    multiplied: list[Rounded] = []
    product = linear.product

    def noting(x: Rounded, *rest: Tensor) -> Tensor:
        multiplied.append(x)
        return product(x, *rest)

    with mock.patch.object(linear, "product", noting):
        changed = velocity(transformer, plan_of(model, *own))
    assert len(multiplied) == (2 if group == "ffn" else 4)
    assert len({id(x) for x in multiplied}) == 2
    exact = velocity(transformer, plan_of(model))
    assert 0 < (changed - exact).norm() < 0.05 * exact.norm()
    assert torch.equal(velocity(load_transformer(model.checkpoint, CPU, torch.float32), plan_of(model)), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merged", [False, True])
def test_weights_rounded_while_they_are_read_are_the_same(
    model: Model, tmp_path: Path, dtype: torch.dtype, merged: bool
) -> None:
    """A weight that is in 8 bits at every step is kept in nothing else; the fingerprint is the model's."""
    if merged:
        model = model.with_loras([lora.find(str(write(tmp_path / "a.safetensors", model.config)))])
    steps = [plan_of(model, FP8, UNROUNDED), plan_of(model, Linears(attention="fp8", ffn="int8"), INT8)]
    whole, lean = (load_transformer(model.checkpoint, CPU, dtype, own) for own in ((), steps))
    assert lean.fingerprint() == whole.fingerprint()
    for plan in steps:
        assert torch.equal(velocity(lean, plan), velocity(whole, plan))
    gone = {name for name, parameter in lean.named_parameters() if parameter.is_meta}
    names = [f"blocks.0.self_attn.{part}" for part in "qkvo"] + ["blocks.0.ffn.0", "blocks.0.ffn.2"]
    assert gone == {f"{name}.weight" for name in names}


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_errors_of_8_bits_stay_small(model: Model, precision: LinearPrecision) -> None:
    transformer = load_transformer(model.checkpoint, CPU, torch.float32)
    exact = velocity(transformer, plan_of(model))
    all_8_bit = velocity(transformer, plan_of(model, *[Linears(precision, precision)] * 2))
    assert 0.001 < (all_8_bit - exact).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("nan", [False, True])
def test_8_bit_numbers_are_expanded_to_what_torch_makes_of_them(dtype: torch.dtype, nan: bool) -> None:
    """Every number of a format; with those that are none, and without."""
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype)
    numbers = numbers if nan else numbers[numbers.float().isfinite()]
    scale = torch.logspace(-30, 30, 70)[:, None]
    weight = Quantized(numbers.expand(70, -1).contiguous(), scale)
    for wanted in (torch.float32, torch.bfloat16, torch.float16):
        expected = (numbers.float() * scale).to(wanted)
        assert torch.equal(expanded(weight, wanted).nan_to_num(7), expected.nan_to_num(7))
        assert torch.equal(expanded(weight, wanted).isnan(), expected.isnan())
