"""Linear layers whose products may be in 8 bits (W8A8): both sides are rounded, each row of numbers has one scale.

x w ≈ (numbers of x · numbers of w) · scale of the token · scale of the output row. E4M3 products run by
`torch._scaled_mm` and INT8 ones by `torch._int_mm` where a GPU has them; elsewhere, and in training, PyTorch multiplies
the rounded numbers in float32. Every product of two such numbers is exact there, so that nothing but the order and the
last bits of sums is different. Weights are rounded from the 16-bit ones, or from whatever the model is loaded in; those
of a file that is in 8 bits itself are not rounded anew, and where a product is in 16 bits, they are made 16-bit for it.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpsgen.attention.door import Choice
from fpsgen.attention.quantize import LARGEST, Format, Quantized, round_by, scale_of
from fpsgen.attention.tiles import outlives_inference
from fpsgen.wan.plan import LinearPrecision

# What a GPU multiplies with. On a CPU, and where gradients pass, numbers stay in float32: there it takes longer to
# convert them than to multiply them.
DTYPES: dict[Format, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_KERNELS: dict[Format, str] = {"fp8": "torch._scaled_mm", "int8": "torch._int_mm"}

# Rows that are rounded, or whose INT32 sums are scaled, at once: float32 copies of a whole layer would need more memory
# than anything else in the model.
_ROWS = 8192
# Rows of 8-bit weights that are expanded at once, likewise; on a CPU so few that they stay in its cache.
_EXPANDED = {"cpu": 64, "cuda": 2048}


@dataclass(frozen=True, eq=False)
class Rounded:
    """The input of 8-bit products. kind: of its numbers; dtype: x's, in which products come back."""

    of: Quantized
    kind: Format
    dtype: torch.dtype


def rounded(x: Tensor | Rounded, precision: LinearPrecision) -> Tensor | Rounded:
    """x [..., channels] for one product or several: as it is for "16bit" or where it is rounded already, else with one
    scale for each token."""
    if precision == "16bit" or isinstance(x, Rounded):
        return x
    autocast = torch.is_autocast_enabled(x.device.type)  # which training uses
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    return Rounded(quantized(x, precision), precision, dtype)


def quantized(x: Tensor, kind: Format) -> Quantized:
    """x [..., channels] in numbers of a format, one scale for each row: [..., 1]. Gradients pass straight through."""
    scale = scale_of(x.detach().abs().amax(-1, keepdim=True), LARGEST[kind])
    if x.device.type == "cpu" or (torch.is_grad_enabled() and x.requires_grad):
        return round_by(x, scale, kind)
    numbers = torch.empty(x.shape, dtype=DTYPES[kind], device=x.device)
    rows = (x.flatten(0, -2).split(_ROWS), scale.flatten(0, -2).split(_ROWS), numbers.flatten(0, -2).split(_ROWS))
    for some, own, into in zip(*rows, strict=True):
        scaled = some * (1 / own)  # in float32
        into.copy_(scaled.clamp_(-448, 448) if kind == "fp8" else scaled.round_().clamp_(-128, 127))
    return Quantized(numbers, scale)


def expanded(weight: Quantized, dtype: torch.dtype) -> Tensor:
    """The values of 8-bit numbers, [outputs, …] with a scale for each output: their float32 products, in `dtype`."""
    values = torch.empty(weight.numbers.shape, dtype=dtype, device=weight.numbers.device)
    some = _EXPANDED.get(values.device.type, len(values))
    rows = (each.split(some) for each in (weight.numbers, weight.scale, values))
    for numbers, scale, into in zip(*rows, strict=True):
        into.copy_(numbers.float() * scale)
    return values


class Linear(nn.Linear):
    """A linear layer: its product is in 8 bits where its input is `Rounded`."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, device: str | None = None):
        super().__init__(inputs, outputs, bias, device)
        self._in_8_bits: dict[Format, Quantized] = {}
        self._of_file: Quantized | None = None  # instead of the parameter's values

    def forward(self, x: Tensor | Rounded) -> Tensor:
        if isinstance(x, Tensor):
            return F.linear(x, self.matrix(), self.bias)
        return product(x, self.quantized(x.kind), self.bias)

    def matrix(self) -> Tensor:
        """The weight in its dtype, made anew where only a file's 8-bit numbers are kept."""
        return self.weight if self._of_file is None else expanded(self._of_file, self.weight.dtype)

    def hold(self, weight: Tensor, precisions: Set[LinearPrecision]) -> Tensor:
        """Round a weight, which is to be this layer's parameter, to the formats among `precisions`. Returns it, or a
        tensor without values in its place if "16bit" is not among them."""
        self._in_8_bits = {kind: quantized(weight, kind) for kind in precisions if kind != "16bit"}
        return weight if "16bit" in precisions else weight.to("meta")

    def hold_8_bits(self, weight: Quantized, dtype: torch.dtype, precisions: Set[LinearPrecision]) -> Tensor:
        """`hold` for a file's 8-bit numbers, which are kept as they are. dtype: of products that are not in 8 bits.
        Returns a tensor without values."""
        self._of_file = weight
        self._in_8_bits = {kind: self._rounded(kind, dtype) for kind in precisions if kind != "16bit"}
        if "16bit" not in precisions:
            self._of_file = None
        return torch.empty(weight.numbers.shape, dtype=dtype, device="meta")

    def replace(self, other: Callable[[Tensor], Tensor]) -> None:
        """Put others in the place of the numbers and scales that are kept beside the parameters."""

        def moved(kept: Quantized) -> Quantized:
            return Quantized(other(kept.numbers), other(kept.scale))

        self._in_8_bits = {kind: moved(kept) for kind, kept in self._in_8_bits.items()}
        self._of_file = self._of_file and moved(self._of_file)

    def quantized(self, kind: Format) -> Quantized:
        """The weight in 8 bits, one scale for each output. Kept, for it does not change, unless it is trained."""
        if self.weight.requires_grad:
            return quantized(self.weight, kind)
        if kind not in self._in_8_bits:
            self._in_8_bits[kind] = outlives_inference(self._rounded)(kind, self.weight.dtype)
        return self._in_8_bits[kind]

    def _rounded(self, kind: Format, dtype: torch.dtype) -> Quantized:
        if self._of_file is None:
            return quantized(self.weight, kind)
        if self._of_file.numbers.dtype == DTYPES[kind]:
            return self._of_file
        return quantized(expanded(self._of_file, dtype), kind)


def product(x: Rounded, weight: Quantized, bias: Tensor) -> Tensor:
    """[..., inputs] by [outputs, inputs]: x w + bias, in x's dtype."""
    numbers, scale = x.of.numbers.flatten(0, -2), x.of.scale.flatten(0, -2)
    outputs, inputs = weight.numbers.shape
    converted = numbers.dtype == weight.numbers.dtype == DTYPES[x.kind]
    # `_int_mm` wants more than 16 rows.
    if not converted or len(numbers) <= 16 or why_not(numbers.device, x.kind, inputs, outputs):
        sums = F.linear(x.of.numbers.float(), weight.numbers.float())
        return (sums * x.of.scale * weight.scale.mT + bias).to(x.dtype)
    if x.kind == "fp8":
        # Without fast accumulation: FP8 sums keep 13 bits, which over thousands of channels err by as much as the
        # numbers' own rounding does (DeepSeek-V3, arXiv 2412.19437, section 3.3.2), unless promoted on the way.
        out = torch._scaled_mm(
            numbers, weight.numbers.mT, scale, weight.scale.mT, bias.bfloat16(), out_dtype=torch.bfloat16
        )
        return out.to(x.dtype).unflatten(0, x.of.numbers.shape[:-1])
    out = torch.empty(len(numbers), outputs, dtype=x.dtype, device=numbers.device)
    pieces = -(-len(numbers) // _ROWS)  # of nearly the same length: none is too short
    for some, own, into in zip(*(each.tensor_split(pieces) for each in (numbers, scale, out)), strict=True):
        into.copy_(torch._int_mm(some, weight.numbers.mT) * own * weight.scale.mT + bias)
    return out.unflatten(0, x.of.numbers.shape[:-1])


def choose(device: torch.device, kind: Format, inputs: int, outputs: int) -> Choice:
    """What multiplies numbers of a format on `device`, and why torch's kernel does not."""
    reason = why_not(device, kind, inputs, outputs)
    return Choice("plain PyTorch", ((_KERNELS[kind], reason),)) if reason else Choice(_KERNELS[kind], ())


@lru_cache(maxsize=1024)
def why_not(device: torch.device, kind: Format, inputs: int, outputs: int) -> str | None:
    """Why torch has no kernel for products of a size in a format; None if it has. It is asked by a small product."""
    if device.type != "cuda":
        return "it runs on CUDA GPUs"
    if inputs % 16 or outputs % 16:
        return f"{inputs} or {outputs} channels are no multiple of 16"
    try:
        a, one = torch.zeros(32, 32, dtype=DTYPES[kind], device=device), torch.ones(32, 1, device=device)
        if kind == "fp8":
            torch._scaled_mm(a, a.mT, one, one.mT, one[:, 0].bfloat16(), out_dtype=torch.bfloat16)
        else:
            torch._int_mm(a, a.mT)
    except RuntimeError as fault:
        return f"torch says: {str(fault).partition(chr(10))[0]}"
    return None
