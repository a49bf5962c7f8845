"""Who runs in `fpsgen bench attention`: dense attention in BF16, FlexAttention, and our kernel, on the same inputs.

A contender is a line of the record and what to call. Its line says of the work:

- kind: sdpa, package (attention of other projects), prepare (norm and RoPE, which those need first), flex, and of ours
  prologue, kernel and together, the prologue with the kernel;
- stages: of each part that waits for the one before [floating-point operations, exponentials, bytes], for
  `roofline.bound`;
- bits: 16 or 8, the operands of its matrix products;
- density: the true share of token pairs; wanted: what the window was chosen for;
- why_not: why it does not run here; fault: that it failed, or computes something else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fpsgen.attention import flex, hopper
from fpsgen.attention.door import QKTransform, prepare
from fpsgen.attention.emulator import VARIANTS
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Shape3
from fpsgen.bench import roofline
from fpsgen.bench.attention.check import Oracles, error, for_heads, sampled_rows, spread
from fpsgen.bench.attention.shapes import HEAD_DIM, Shape, plan_8bit
from fpsgen.bench.dense_kernels import KERNELS, DenseKernel
from fpsgen.kernels import sm90_prologue
from fpsgen.wan.config import FAMILIES, WanConfig
from fpsgen.wan.transformer import rope_table

# In BF16, P and the result are rounded to 2^-9 each: 4e-3 was measured (benchmarks/results/numerics.md).
LIMIT_16BIT = 1e-2
# Our kernel against its emulator; tests/gpu holds it to less. A speed must not be that of other work: on these data
# one key tile left out of 630 moves a result by 1 / sqrt(630) = 4e-2.
LIMIT_8BIT = 1e-2
CHECKED_HEADS = 8
MOST_WORDS = 600  # letters of an error in the record


class WrongResultError(Exception):
    """A contender computes something else: no speed of it is worth a line."""


def nothing() -> dict[str, Any]:
    return {}


@dataclass
class Contender:
    """call: the work that is timed. check: what its result is off by, for the line; WrongResultError if too much."""

    line: dict[str, Any]
    call: Callable[[], object] = nothing
    check: Callable[[], dict[str, Any]] = nothing


class Inputs:
    """q, k, v as projected, norm and RoPE, and what is checked: some rows of some heads. All on one device, seeded."""

    def __init__(self, shape: Shape, device: torch.device, seed: int = 0):
        generator = torch.Generator(device).manual_seed(seed)
        tiles, heads = shape.tiles, shape.heads
        size = (1, tiles.tokens, heads, HEAD_DIM)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

        self.shape = shape
        self.q, self.k, self.v = (random(*size) for _ in range(3))
        norm_q, norm_k = (1 + 0.1 * random(heads * HEAD_DIM).float() for _ in range(2))
        config = FAMILIES.get(shape.model, FAMILIES["1.3b"])  # smoke is neither
        rope = rope_table(tiles.grid, HEAD_DIM, WanConfig.ROPE_THETA)[tiles.inverse].to(device)
        self.transform = QKTransform(norm_q, norm_k, config.eps, rope)
        self.heads = spread(heads, CHECKED_HEADS).to(device)
        q, k = self.prepare(torch.float32, self.heads)
        self.oracles = Oracles(q, k, self.v[:, :, self.heads], sampled_rows(tiles))
        self.q16, self.k16 = self.prepare(torch.bfloat16)

    def prepare(self, dtype: torch.dtype, heads: Tensor | slice = slice(None)) -> list[Tensor]:
        """q and k after norm and RoPE, as `attend` makes them for backends that do not fuse those."""
        pairs = ((self.q, self.transform.norm_q), (self.k, self.transform.norm_k))
        return [prepare(x, weight, self.transform)[:, :, heads].to(dtype) for x, weight in pairs]

    def picked(self, out: Tensor) -> Tensor:
        """The rows and heads of a result that are checked."""
        return out[:, self.oracles.rows.to(out.device)][:, :, self.heads]

    def check_16bit(self, call: Callable[[], Tensor], plan: AttentionPlan) -> dict[str, Any]:
        """Against exact attention of the float32 q and k."""
        value = error(self.picked(call()), self.oracles.exact(for_heads(plan, self.heads)))
        return limited({"error_to_exact": value}, value, LIMIT_16BIT)

    def check_8bit(self, call: Callable[[], Tensor], plan: AttentionPlan, variant: str) -> dict[str, Any]:
        """Against the emulator; the error against exact attention is for the record."""
        out, own = self.picked(call()), for_heads(plan, self.heads)
        errors = self.oracles.emulated_errors(out, own, variant, LIMIT_8BIT)
        found = {"error_to_emulator": errors, "error_to_exact": error(out, self.oracles.exact(own))}
        return limited(found, min(errors.values()), LIMIT_8BIT)


def limited(found: dict[str, Any], value: float, limit: float) -> dict[str, Any]:
    """`found`; WrongResultError where `value` is not within `limit`, NaN included."""
    if not value <= limit:
        raise WrongResultError(f"relative error {value:.2g}, of which {limit:g} is allowed: {found}")
    return found


def contenders(inputs: Inputs, windows: dict[str, Shape3 | None], variants: Iterable[str]) -> Iterator[Contender]:
    """All of them, one after another; those that do not run here have a line with why_not."""
    yield from dense_16bit(inputs)
    yield prepare_line(inputs)
    for variant in variants:
        yield from ours(inputs, windows, variant)
    yield from flex_16bit(inputs, windows)  # which compiles for long: last


def dense_16bit(inputs: Inputs) -> Iterator[Contender]:
    """Every kernel for dense attention that does not round to 8 bits: torch's backends, other projects' packages."""
    shape, plan = inputs.shape, AttentionPlan(inputs.shape.tiles)
    moved = roofline.sdpa_bytes(shape.tiles.tokens, shape.heads, HEAD_DIM)
    common = {"bits": 16, "density": 1.0, "window": None, "stages": [stage(plan, shape.heads, moved)]}
    for kernel in KERNELS.values():
        if kernel.rounds or not (kernel.backend or kernel.package):
            continue
        line = {"kind": "sdpa" if kernel.backend else "package", "name": kernel.name, **common}
        if why_not := kernel.too_large(1, shape.heads, shape.tiles.tokens):
            yield Contender({**line, "why_not": why_not})
            continue
        call = partial(dense_by, kernel, inputs.q16, inputs.k16, inputs.v)
        yield Contender(line, call, partial(inputs.check_16bit, call, plan))


def dense_by(kernel: DenseKernel, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return kernel.load()(q, k, v)  # found anew, because importing a package may fail, and that is its line's


def stage(plan: AttentionPlan, heads: int, moved: float, variant: str | None = None) -> list[float]:
    """The work of attention, without what comes before it; variant: of our kernel."""
    flops = plan.flops(heads, HEAD_DIM)
    pairs = flops / (4 * HEAD_DIM)
    return [flops, roofline.exponentials(pairs, VARIANTS[variant] if variant else None), moved]


def prepare_line(inputs: Inputs) -> Contender:
    """Norm and RoPE before attention in 16 bits: eager PyTorch, what `attend` runs."""
    moved = roofline.prepare_bytes(inputs.shape.tiles.tokens, inputs.shape.heads, HEAD_DIM)
    line = {"kind": "prepare", "name": "norm and RoPE, eager", "bits": 16, "stages": [[0, 0, moved]]}
    return Contender(line, partial(inputs.prepare, torch.bfloat16))


def flex_16bit(inputs: Inputs, windows: dict[str, Shape3 | None]) -> Iterator[Contender]:
    """FlexAttention in BF16 over the same windows."""
    shape = inputs.shape
    moved = roofline.sdpa_bytes(shape.tiles.tokens, shape.heads, HEAD_DIM)
    for wanted, window in windows.items():
        plan = AttentionPlan(shape.tiles, (window,))
        work = {"density": plan.density, "stages": [stage(plan, shape.heads, moved)]}
        line = {"kind": "flex", "name": "flex", "bits": 16, "wanted": wanted, "window": window, **work}
        if reason := flex.why_not(inputs.q.device, plan, HEAD_DIM):
            yield Contender({**line, "why_not": reason})
            continue
        call = partial(flex.attention, inputs.q16, inputs.k16, inputs.v, plan)
        yield Contender(line, call, partial(inputs.check_16bit, call, plan))


def ours(inputs: Inputs, windows: dict[str, Shape3 | None], variant: str) -> Iterator[Contender]:
    """One variant: its prologue, then kernel and both for each window."""
    shape, device = inputs.shape, inputs.q.device
    plan = plan_8bit(shape.tiles, None, variant)
    given = (inputs.q, inputs.k, inputs.v, inputs.transform)
    sizes = (shape.tiles.tokens, len(shape.tiles.valid), shape.heads, HEAD_DIM, sm90_prologue.VARIANTS[variant].V_ONES)
    before = [0, 0, roofline.prologue_bytes(*sizes)]
    first = {"kind": "prologue", "name": f"{variant}, prologue", "bits": 8, "variant": variant, "stages": [before]}
    if reason := hopper.why_not(device, plan, HEAD_DIM):
        yield Contender({**first, "name": variant, "why_not": reason})
        return
    prepared = partial(hopper.prologue, *given, plan, variant)
    yield Contender(first, prepared)
    operands = cache(prepared)  # not before a check asks for them, so that a fault is that line's
    for wanted, window in windows.items():
        plan = plan_8bit(shape.tiles, window, variant)
        own = stage(plan, shape.heads, roofline.kernel_bytes(*sizes), variant)
        common = {"bits": 8, "variant": variant, "wanted": wanted, "window": window, "density": plan.density}
        alone = partial(over, operands, plan, variant)
        together = partial(hopper.attention, *given, plan, variant)
        for kind, call, stages in (("kernel", alone, [own]), ("together", together, [before, own])):
            line = {"kind": kind, "name": f"{variant}, {kind}", **common, "stages": stages}
            yield Contender(line, call, partial(inputs.check_8bit, call, plan, variant))


def over(operands: Callable[[], dict[str, Tensor]], plan: AttentionPlan, variant: str) -> Tensor:
    return hopper.attention_over(operands(), plan, variant, 1)


def tried(contender: Contender) -> bool:
    """Check a contender and note on its line what was found; whether it is to be timed.

    What torch cannot run it refuses with an exception, after warnings with the reasons. That is a `why_not`; a wrong
    result, or any exception of ours, is a fault.
    """
    line = contender.line
    if "why_not" in line:
        return False
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            line.update(contender.check())
            contender.call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return True
        except Exception as caught:
            refused = line["kind"] in ("sdpa", "package", "flex") and not isinstance(caught, WrongResultError)
            kind = "not installed" if isinstance(caught, ModuleNotFoundError) and refused else type(caught).__name__
            reasons = [f"{kind}: {caught}", *(str(one.message) for one in heard if refused)]
            line["why_not" if refused else "fault"] = " ".join("; ".join(reasons).split())[:MOST_WORDS]
            return False
