"""Linear layers in 8 bits on a CUDA device: torch's kernels against the emulation on a CPU."""

from __future__ import annotations

import pytest
import torch

from fpsgen.attention.emulator import error
from fpsgen.attention.quantize import Format, Quantized
from fpsgen.wan.linear import DTYPES, Linear, quantized, rounded, why_not
from tests.gpu.hopper import tell

pytestmark = pytest.mark.gpu

# Tokens, inputs, outputs: few tokens, a number that no tile divides, Wan2.1 14B's FFN at 832x480.
SIZES = [(17, 64, 32), (8193, 1536, 1536), (420, 1536, 8960), (32760, 5120, 13824), (32760, 13824, 5120)]


def kinds() -> list[Format]:
    """FP8 is for compute capability 8.9 and newer."""
    newer = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    return ["fp8", "int8"] if newer else ["int8"]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", kinds())
@torch.inference_mode()
def test_products_are_the_emulation_s(
    kind: Format, size: tuple[int, int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, inputs, outputs = size
    device = torch.device("cuda")
    assert why_not(device, kind, inputs, outputs) is None
    generator = torch.Generator().manual_seed(1)
    layer, cpu = (Linear(inputs, outputs).bfloat16().requires_grad_(False) for _ in range(2))
    for parameter in cpu.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    layer.load_state_dict(cpu.state_dict())
    x = torch.randn(1, tokens, inputs, generator=generator) * torch.logspace(-2, 2, tokens)[:, None]
    x[0, 3] = 0
    got = layer.to(device)(rounded(x.bfloat16().to(device), kind))
    assert (got.shape, got.dtype) == ((1, tokens, outputs), torch.bfloat16)
    some = torch.arange(0, tokens, max(1, tokens // 64))
    expected = cpu(rounded(x[:, some].bfloat16(), kind))
    assert torch.equal(got[0, 3].cpu(), cpu.bias)
    found = error(got[:, some].cpu(), expected)
    tell(capsys, f"{kind} {found:.1e}")
    # Both are bfloat16, within 2^-9 each; FP8 sums on the way keep fewer bits than float32 has.
    assert found < (6e-3 if kind == "fp8" else 4e-3)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.inference_mode()
def test_numbers_are_those_of_a_cpu(kind: Format, dtype: torch.dtype) -> None:
    """Code by code, with saturation and ties; in pieces of rows."""
    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(2, 9000, 96, generator=generator) * 100).to(dtype)
    x[0, :5] = 0
    ours, theirs = quantized(x.cuda(), kind), quantized(x, kind)
    assert torch.equal(ours.scale.cpu(), theirs.scale)
    assert torch.equal(ours.numbers.cpu().float(), theirs.numbers)


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
@torch.inference_mode()
def test_weights_that_stay_in_8_bits_are_those_of_a_cpu(kind: Format, size: tuple[int, int, int]) -> None:
    """Expanded for a product in 16 bits, bit for bit; in 8 bits, as they are."""
    tokens, inputs, outputs = size
    generator = torch.Generator().manual_seed(3)
    numbers = (torch.randn(outputs, inputs, generator=generator) * 100).clamp(-127, 127).to(DTYPES[kind])
    scale = torch.rand(outputs, 1, generator=generator) / 100
    layers = {}
    for place in ("cpu", "cuda"):
        layers[place] = Linear(inputs, outputs).to(torch.bfloat16).requires_grad_(False)
        layers[place].bias.zero_()
        layers[place].hold_8_bits(Quantized(numbers.to(place), scale.to(place)), torch.bfloat16, {"16bit"})
        layers[place].to(place)
    assert torch.equal(layers["cuda"].matrix().cpu(), layers["cpu"].matrix())
    x = torch.randn(1, tokens, inputs, generator=generator).bfloat16()
    got, some = layers["cuda"](rounded(x.cuda(), kind)), torch.arange(0, tokens, max(1, tokens // 64))
    assert layers["cuda"].quantized(kind).numbers.dtype == DTYPES[kind]
    assert error(got[:, some].cpu(), layers["cpu"](rounded(x[:, some], kind))) < (6e-3 if kind == "fp8" else 4e-3)
