"""What tests of sm90_elementwise.cu, on this machine and on a card, share: inputs, exact results, what is near."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpsgen.attention.quantize import Format
from fpsgen.wan import elementwise, linear
from fpsgen.wan.elementwise import Modulation
from fpsgen.wan.plan import LinearPrecision

HALF_ULP = 2.0**-8  # of bfloat16, at most, to its number
BITS_8: tuple[Format, ...] = ("fp8", "int8")


@dataclass(frozen=True)
class Given:
    """What a norm is given, and what is added before. modulation and gate: None for a norm with its own weights."""

    x: Tensor
    y: Tensor
    gate: Tensor | None
    layer: nn.LayerNorm
    modulation: Modulation | None

    @torch.inference_mode()
    def made(self, precision: LinearPrecision) -> tuple[Tensor, Any]:
        """x plus y, and its norm: by kernels where they run, else by PyTorch."""
        rest = (self.layer, torch.bfloat16, self.modulation, precision)
        return elementwise.add_and_norm(self.x, self.y, self.gate, *rest)

    def to(self, device: str) -> Given:
        gate = self.gate if self.gate is None else self.gate.to(device)
        modulation = self.modulation and (self.modulation[0].to(device), self.modulation[1].to(device))
        return replace(self, x=self.x.to(device), y=self.y.to(device), gate=gate, layer=self.layer.to(device),
                       modulation=modulation)  # fmt: skip


def given(batch: int, tokens: int, channels: int, own_weights: bool = False, size: float = 1.0, seed: int = 0) -> Given:
    """Rows with a mean; vectors of each batch entry are parts of one tensor, as a block's are."""
    generator = torch.Generator().manual_seed(channels + tokens + seed)
    x = size * (torch.randn(batch, tokens, channels, generator=generator) * 3 + 1)
    y = (size * torch.randn(batch, tokens, channels, generator=generator)).bfloat16()
    shift, scale, gate, weight, bias, _ = torch.randn(batch, 6, channels, generator=generator).chunk(6, dim=1)
    layer = nn.LayerNorm(channels, 1e-6, elementwise_affine=own_weights).requires_grad_(False)
    if not own_weights:
        return Given(x, y, gate, layer, (shift, scale))
    layer.weight.copy_(weight[0, 0])
    layer.bias.copy_(bias[0, 0])
    return Given(x, y, None, layer, None)


def assert_normed(found: tuple[Tensor, Tensor], given: Given) -> None:
    """Sums bit for bit. The norm within half an ulp of the exact one, and what float32 may do before: as much as the
    last bits of the row's largest number. And nearly always PyTorch's."""
    sums, out = found
    theirs, expected = given.made("16bit")
    assert torch.equal(sums, theirs), "the residual stream"
    x = theirs.double()
    centred = x - x.mean(-1, keepdim=True)
    factor, addend = (given.layer.weight, given.layer.bias) if given.modulation is None else (1, 0)
    if given.modulation is not None:
        addend, factor = given.modulation[0], 1 + given.modulation[1].double()
    rms = (centred.square().mean(-1, keepdim=True) + given.layer.eps).rsqrt()
    exact = centred * rms * factor + addend
    before = 2.0**-20 * (x.abs().amax(-1, keepdim=True) * rms * abs(factor) + abs(addend))
    assert bool(((out.double() - exact).abs() <= HALF_ULP * exact.abs() + before).all()), "the norm"
    assert (out != expected).double().mean() < 2e-3, "PyTorch's norm"


def assert_rounded(found: Any, rows: Tensor, kind: Format) -> None:
    """Bit for bit what PyTorch makes of rows in bfloat16."""
    expected = linear.quantized(rows, kind)
    assert found.kind == kind, "the format"
    assert torch.equal(found.of.scale, expected.scale), "scales"
    assert torch.equal(found.of.numbers.float(), expected.numbers.float()), "codes"


def assert_gelu(found: Any, x: Tensor, kind: Format) -> None:
    """As PyTorch's, but where GELU in bfloat16 lies between two codes: PyTorch's loses what is below 2^-24."""
    expected = linear.quantized(F.gelu(x, approximate="tanh"), kind)
    assert torch.allclose(found.of.scale, expected.scale, rtol=2 * HALF_ULP, atol=0), "scales"
    numbers, scale = found.of.numbers.double(), found.of.scale.double()
    assert ((numbers != expected.numbers).double().mean()) < 1e-3, "codes"
    exact = F.gelu(x.double(), approximate="tanh")
    step = 0.5 if kind == "int8" else (numbers.abs() / 16).clamp(min=2.0**-10)
    before = HALF_ULP * exact.abs() + 2.0**-134  # which is half of bfloat16's least number
    assert bool(((numbers * scale - exact).abs() <= 1.01 * step * scale + before).all()), "GELU"
