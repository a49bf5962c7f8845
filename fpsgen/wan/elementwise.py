"""What a block does between its products: LayerNorm and modulation, gated residual, GELU, and rounding of the next
product's input.

In blocks with 8-bit products, in inference on a Hopper GPU and with all else in bfloat16, each is one pass by
`sm90_elementwise.cu`; elsewhere PyTorch's operations, so that without 8-bit products all stays what it was, bit for
bit. Both round at the same places. What differs is the order in which a norm sums a row, and GELU's exponential:
last bits of float32, which bfloat16 seldom shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpsgen.attention import hopper
from fpsgen.attention.quantize import Format, Quantized
from fpsgen.kernels import cache
from fpsgen.kernels.launch import launch, packed
from fpsgen.kernels.sm90_elementwise import MOST_NORMED, MOST_ROUNDED, PARAMETERS, VARIANTS
from fpsgen.wan import linear
from fpsgen.wan.linear import Rounded
from fpsgen.wan.plan import LinearPrecision

# What a kernel is not given.
_NOTHING: dict[str, Tensor | float] = dict.fromkeys(PARAMETERS.names or (), 0)

# Shift and scale of a norm's result, float32 [batch, 1, channels]; or of each token, [batch, tokens, channels], which
# the kernels do not take.
Modulation = tuple[Tensor, Tensor]


def norm(
    x: Tensor,
    layer: nn.LayerNorm,
    dtype: torch.dtype,
    modulation: Modulation | None,
    precision: LinearPrecision,
    ours: bool = True,
) -> Tensor | Rounded:
    """The norm of x, float32 [batch, tokens, channels], times 1 + scale, plus shift: the input of a product in
    `precision`, whose weights are in `dtype`. ours: by the kernels, where they run."""
    if ours and _runs(x, dtype, MOST_NORMED):
        return _norm(x, layer, modulation, precision)[1]
    made = layer(x)
    if modulation is not None:
        shift, scale = modulation
        made = made * (1 + scale) + shift
    return linear.rounded(made.to(dtype), precision)


def add_and_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    layer: nn.LayerNorm,
    dtype: torch.dtype,
    modulation: Modulation | None = None,
    precision: LinearPrecision = "16bit",
    ours: bool = True,
) -> tuple[Tensor, Tensor | Rounded]:
    """x plus y times its gate, as `add`; and the norm of that, as `norm`."""
    if ours and _runs(x, dtype, MOST_NORMED):
        return _norm(x, layer, modulation, precision, y, gate)
    x = add(x, y, gate, ours)
    return x, norm(x, layer, dtype, modulation, precision, ours)


def add(x: Tensor, y: Tensor, gate: Tensor | None, ours: bool = True) -> Tensor:
    """x plus y times its gate, float32 [batch, tokens, channels]; gate: [batch, 1, channels]. ours: as in `norm`."""
    if ours and _runs(x, y.dtype, MOST_NORMED):
        return _over_tokens("fps_residual", "16bit", x, y, {"gate": gate})
    return x + (y if gate is None else gate * y)


def rounded(x: Tensor | Rounded, precision: LinearPrecision) -> Tensor | Rounded:
    """As `linear.rounded`."""
    if isinstance(x, Tensor) and precision != "16bit" and _runs(x, x.dtype, MOST_ROUNDED):
        return _rounded("fps_round", x, precision)
    return linear.rounded(x, precision)


def gelu(x: Tensor, precision: LinearPrecision) -> Tensor | Rounded:
    """GELU by its approximation with tanh, and then `rounded`."""
    if precision != "16bit" and _runs(x, x.dtype, MOST_ROUNDED):
        return _rounded("fps_gelu", x, precision)
    return linear.rounded(F.gelu(x, approximate="tanh"), precision)


def make_ready(device: torch.device, dtype: torch.dtype, kinds: Collection[Format]) -> list[cache.Built]:
    """Compile what a model in `dtype` will launch, some of whose products are in `kinds`, unless it is there."""
    if not kinds or dtype != torch.bfloat16 or hopper.why_not_here(device):
        return []
    return [cache.build(VARIANTS[one]) for one in ("16bit", *kinds)]


# ---- by the kernels --------------------------------------------------------------------------------------------------


def _runs(x: Tensor, dtype: torch.dtype, most: int) -> bool:
    """Whether a kernel takes rows of x, products being in `dtype`. most: channels that it has room for."""
    trains = torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)
    fits = x.shape[-1] % 8 == 0 and x.shape[-1] <= most
    return dtype == torch.bfloat16 and fits and not trains and hopper.why_not_here(x.device) is None


def _norm(
    x: Tensor,
    layer: nn.LayerNorm,
    modulation: Modulation | None,
    precision: LinearPrecision,
    y: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor | Rounded]:
    addend, factor = modulation or (layer.bias, layer.weight)
    given = {"gate": gate, "factor": factor, "addend": addend, "base": float(modulation is not None), "eps": layer.eps}
    if precision == "16bit":
        out = torch.empty_like(x, dtype=torch.bfloat16)
        return _over_tokens("fps_norm", precision, x, y, {**given, "out": out}), out
    made = _room(x, precision)
    sums = _over_tokens("fps_norm", precision, x, y, {**given, "out": made.numbers, "scale": made.scale})
    return sums, Rounded(made, precision, torch.bfloat16)


def _over_tokens(
    function: str, precision: LinearPrecision, x: Tensor, y: Tensor | None, values: Mapping[str, Tensor | float | None]
) -> Tensor:
    """By blocks of a few tokens of a batch entry; x plus y times its gate. values: what else the kernel is given, a
    vector for each batch entry, or for all, among it. ValueError for what it would read beyond its end."""
    (batch, tokens, channels), kernel = x.shape, VARIANTS[precision]
    _check("x", x, torch.float32, x.numel())
    given = _NOTHING | {"x": x, "tokens": tokens, "channels": channels}
    sums = x
    if y is not None:
        _check("y", y, torch.bfloat16, x.numel())
        sums = torch.empty_like(x)
        given |= {"y": y.contiguous(), "sum": sums}
    for name, value in values.items():
        if isinstance(value, Tensor) and name in ("gate", "factor", "addend"):
            _check(name, value, torch.float32, channels, batch * channels)
            vectors = value.view(-1, channels)
            given |= {name: vectors.data_ptr(), f"{name}_stride": vectors.stride(0) if len(vectors) > 1 else 0}
        elif value is not None:
            given[name] = value
    launch(kernel, function, batch * ceil(tokens / kernel.TOGETHER), packed(PARAMETERS, given), x.device)
    return sums


def _check(name: str, value: Tensor, dtype: torch.dtype, *sizes: int) -> None:
    if value.dtype != dtype or value.numel() not in sizes:
        raise ValueError(f"{name} is {list(value.shape)} in {value.dtype}; {sizes[-1]} numbers in {dtype} are wanted")


def _rounded(function: str, x: Tensor, precision: Format) -> Rounded:
    """By blocks of a row each."""
    made = _room(x, precision)
    given = _NOTHING | {"y": x.contiguous(), "out": made.numbers, "scale": made.scale, "channels": x.shape[-1]}
    launch(VARIANTS[precision], function, made.scale.numel(), packed(PARAMETERS, given), x.device)
    return Rounded(made, precision, x.dtype)


def _room(x: Tensor, precision: Format) -> Quantized:
    """For rows of x in 8 bits."""
    numbers = torch.empty(x.shape, dtype=linear.DTYPES[precision], device=x.device)
    return Quantized(numbers, torch.empty(*x.shape[:-1], 1, device=x.device))
