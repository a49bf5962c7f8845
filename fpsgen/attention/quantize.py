"""8-bit formats: how numbers are rounded to them, and over which of them one scale is shared.

x ≈ numbers · scale. Tensors are [batch, tokens, heads, head_dim]; a scale broadcasts against them. Gradients pass
rounding straight through (Bengio et al., arXiv 1308.3432), but for values that saturate; scales are constants to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fpsgen.attention.tiles import TileGrid

Format = Literal["fp8", "int8"]

# The largest number that scales aim at. E4M3 (OCP 8-bit floating point specification, 1.0) ends there, without an
# infinity; INT8 is used symmetrically.
LARGEST: dict[Format, float] = {"fp8": 448.0, "int8": 127.0}

# A number beyond this is not rounded to the largest, but cut to it.
_SATURATES: dict[Format, float] = {"fp8": 464.0, "int8": 127.5}

# What the largest number of a sample becomes in E4M3: a number that is not in the sample may be 16 times as large. To a
# floating-point format this costs nothing but the last bits of what is less than 1 / 1800 of the sample's largest.
SAMPLE_LARGEST = 28.0


@dataclass(frozen=True, eq=False)
class Quantized:
    """numbers: every one of them a number of the format, in it or in float32; scale: float32."""

    numbers: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """float32 values."""
        return self.numbers.float() * self.scale


def round_to_(x: Tensor, kind: Format) -> Tensor:
    """Each float32 value becomes the nearest number of the format, in place: ties to even, saturating, NaN stays.

    As Hopper's `cvt.rn.satfinite.e4m3x2.f32` does; INT8 reaches -128, though no scale here aims
    there. Arithmetic, not a conversion to 8 bits and back, which on a CPU takes longer.
    """
    if kind == "int8":
        return x.round_().clamp_(-128.0, 127.0)
    x.clamp_(-448.0, 448.0)
    bits = x.view(torch.int32)
    signs = bits & -0x80000000  # of zeros, too
    # E4M3 has 3 bits after the leading one, and its smallest exponent is -6: neighbours of 2^e are 2^(e - 3) apart.
    # Adding 1.5 · 2^23 times that distance leaves float32 no bit for anything finer; its own rounding does the rest.
    power = (bits & 0x7F800000).view(torch.float32)
    shift = power.clamp_(min=2.0**-6).mul_(1.5 * 2.0**20)
    x.add_(shift).sub_(shift)
    bits.bitwise_or_(signs)
    return x


def quantize(x: Tensor, amax: Tensor, kind: Format, largest: float | None = None) -> Quantized:
    """Round `x`, given the largest magnitude under each scale; it becomes `largest`, by default the format's own."""
    return round_by(x, scale_of(amax, LARGEST[kind] if largest is None else largest), kind)


def round_by(x: Tensor, scale: Tensor, kind: Format) -> Quantized:
    """Round `x`, given the scales."""
    scale = scale.detach()
    return Quantized(_Numbers.apply(x, scale, kind), scale)


class _Numbers(torch.autograd.Function):
    """x / scale in numbers of the format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, kind: Format) -> Tensor:
        inverse = 1 / scale
        scaled = x.float() * inverse
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(scaled.abs() > _SATURATES[kind], inverse)
        return round_to_(scaled, kind)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        saturated, inverse = ctx.saved_tensors
        return (gradient * inverse).masked_fill_(saturated, 0.0), None, None


def scale_of(amax: Tensor, largest: float) -> Tensor:
    """The scale by which `amax`, not negative, becomes `largest`.

    1 for zeros, and never too small for float32, so that nothing is divided by 0.
    """
    return torch.where(amax > 0, (amax.float() / largest).clamp(min=torch.finfo(torch.float32).tiny), 1.0)


def per_token(x: Tensor, kind: Format, largest: float | None = None) -> Quantized:
    """One scale for each token of each head: scale [batch, tokens, heads, 1]."""
    return quantize(x, x.abs().amax(3, keepdim=True), kind, largest)


def per_tile(x: Tensor, kind: Format, tiles: TileGrid, largest: float | None = None) -> Quantized:
    """One scale for each tile of each head (FPSAttention, Eq. 4), repeated for its rows: [batch, tokens, heads, 1]."""
    amax = tile_amax(x.abs().amax(3), tiles)
    return quantize(x, amax.repeat_interleave(tiles.valid.to(x.device), dim=1)[..., None], kind, largest)


def per_channel(x: Tensor, kind: Format, largest: float | None = None) -> Quantized:
    """One scale for each channel of each head over all tokens (FPSAttention, Eq. 5): [batch, 1, heads, head_dim]."""
    return quantize(x, x.abs().amax(1, keepdim=True), kind, largest)


def per_channel_by_sample(x: Tensor, tiles: TileGrid) -> Quantized:
    """E4M3 with one scale for each channel of each head, by a rule that lets a kernel read x once.

    The largest magnitude in the first row of each tile becomes SAMPLE_LARGEST. Where that puts a number beyond E4M3's
    largest, the channel's scale is that of `per_channel`. A sample of zeros counts as the least normal float32: what
    else the channel has is then beyond.
    """
    magnitudes, limit = x.float().abs(), LARGEST["fp8"]
    amax, sample = (own.amax(1, keepdim=True) for own in (magnitudes, magnitudes[:, tiles.offsets[:-1].to(x.device)]))
    sample = sample.clamp(min=torch.finfo(torch.float32).tiny)
    scale = scale_of(sample, SAMPLE_LARGEST)
    within = amax * (1 / scale) <= limit
    return round_by(x, torch.where(within, scale, scale_of(amax, limit)), "fp8")


def tile_amax(x: Tensor, tiles: TileGrid) -> Tensor:
    """The largest value of each tile: [batch, tokens, …], not negative, to [batch, tiles, …]."""
    valid = tiles.valid.to(x.device)
    tile_of = torch.arange(len(valid), device=x.device).repeat_interleave(valid, output_size=tiles.tokens)
    index = tile_of.view(1, -1, *[1] * (x.ndim - 2)).expand_as(x)
    return x.new_zeros(len(x), len(valid), *x.shape[2:]).scatter_reduce_(1, index, x, "amax")


def smooth(k: Tensor) -> Tensor:
    """k less its mean over tokens. All scores of a query move by the same number, which softmax does not see; what is
    left is smaller, and rounds better (SageAttention2, arXiv 2411.10958, section 3.1)."""
    return k - k.mean(1, keepdim=True)
