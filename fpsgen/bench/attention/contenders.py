"""Who runs in `fpsgen bench attention`: dense attention in BF16, FlexAttention, and our kernel, on the same inputs.

A CPU has neither of the latter: there the reference runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fpsgen import machine
from fpsgen.attention import flex, hopper, reference
from fpsgen.attention.emulator import TOLERANCE, error
from fpsgen.attention.plan import AttentionPlan, Rest, Seen
from fpsgen.attention.qk import QKTransform, prepare
from fpsgen.bench.attention.check import Oracles, sampled_rows, spread
from fpsgen.bench.attention.record import Line
from fpsgen.bench.attention.shapes import HEAD_DIM, Shape, plan_8bit
from fpsgen.bench.dense_kernels import KERNELS, DenseKernel
from fpsgen.bench.roofline import Amounts
from fpsgen.wan.config import SHAPES, WanConfig
from fpsgen.wan.transformer import rope_table

# The largest error to exact attention. In BF16, P and the result are rounded to 2^-9 each: 4e-3 was measured
# (benchmarks/results/numerics.md). Our kernel is held to its emulator, by TOLERANCE. No speed may be that of other
# work: on these data one key tile left out of 630 moves a result by 1 / sqrt(630) = 4e-2.
LIMIT = 1e-2
MOST_WORDS = 600  # letters of an error in the record
_CHECKED_HEADS = 8

Made = Callable[[], dict[str, Tensor]]  # tensors by name, made when they are first wanted


@dataclass(frozen=True)
class Trial:
    """line: with why_not where it does not run here. call: the work that is timed. check: the errors of its result, as
    fields of the line."""

    line: Line
    call: Callable[[], object] = dict
    check: Callable[[], dict[str, Any]] = dict


class Inputs:
    """q, k, v as projected, norm and RoPE, and what is checked: some rows of some heads. All on one device, seeded."""

    def __init__(self, shape: Shape, device: torch.device, seed: int = 0):
        generator = torch.Generator(device).manual_seed(seed)
        tiles, heads = shape.tiles, shape.heads

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16)

        self.shape = shape
        self.q, self.k, self.v = (random(1, tiles.tokens, heads, HEAD_DIM) for _ in range(3))
        norm_q, norm_k = (1 + 0.1 * random(heads * HEAD_DIM).float() for _ in range(2))
        config = SHAPES.get(shape.model, SHAPES["1.3b"])  # smoke is neither
        rope = rope_table(tiles.grid, HEAD_DIM, WanConfig.ROPE_THETA)[tiles.inverse].to(device)
        self.transform = QKTransform(norm_q, norm_k, config.eps, rope)
        self.heads = spread(heads, _CHECKED_HEADS).to(device)
        q, k = self.prepare(torch.float32, self.heads)
        self.oracles = Oracles(q, k, self.v[:, :, self.heads], sampled_rows(tiles))
        self.q16, self.k16 = self.prepare(torch.bfloat16)

    def prepare(self, dtype: torch.dtype, heads: Tensor | slice = slice(None)) -> list[Tensor]:
        """q and k after norm and RoPE, as `attend` makes them for backends that do not fuse those."""
        pairs = ((self.q, self.transform.norm_q), (self.k, self.transform.norm_k))
        return [prepare(x, weight, self.transform)[:, :, heads].to(dtype) for x, weight in pairs]

    def chosen(self, plan: AttentionPlan) -> Tensor | None:
        """The lists that a backend in 16 bits chooses, of the heads that are checked; None where it chooses none."""
        own = plan.key_tiles[0]
        if own.top is None:
            return None
        return reference.key_tiles(self.q16[:, :, self.heads], self.k16[:, :, self.heads], own, plan.tiles)

    def lists(self, chosen: Mapping[str, Tensor], plan: AttentionPlan) -> Tensor | None:
        """The same of what our kernel chose."""
        if plan.key_tiles[0].top is None:
            return None
        return chosen["chosen"].view(1, self.shape.heads, len(plan.tiles.valid), -1)[:, self.heads].long()

    def check(
        self,
        call: Callable[[], Tensor],
        plan: AttentionPlan,
        variant: str | None = None,
        chosen: Made | None = None,
    ) -> dict[str, Any]:
        """Errors against exact attention of float32 q and k, and of a variant of our kernel against its emulator.

        chosen: what our kernel chose, as `hopper.choose` gives it; None for a backend in 16 bits.
        """
        out = call()[:, self.oracles.rows.to(self.q.device)][:, :, self.heads]
        lists = self.chosen(plan) if chosen is None else self.lists(chosen(), plan)
        errors: dict[str, Any] = {"error_to_exact": error(out, self.oracles.exact(plan, lists))}
        if variant is not None:
            errors["error_to_emulator"] = self.oracles.emulated_errors(out, plan, variant, lists)
        return errors


def contenders(inputs: Inputs, choices: Mapping[str, Seen], variants: Iterable[str]) -> Iterator[Trial]:
    """All of them, one after another. choices: of key tiles, by what is wanted; variants: of our kernel."""
    shape, device, q, k = inputs.shape, inputs.q.device, inputs.q16, inputs.k16
    plan = AttentionPlan(shape.tiles)
    for kernel in KERNELS.values():
        if not kernel.rounds and (kernel.backend or kernel.package):  # torch's choice is one of its backends
            why_not = kernel.too_large(1, shape.heads, shape.tiles.tokens)
            kind, call = "sdpa" if kernel.backend else "package", partial(dense_by, kernel, q, k, inputs.v)
            yield trial(inputs, plan, call, kind=kind, name=kernel.name, why_not=why_not)
    # Before attention in 16 bits: eager PyTorch, what `attend` runs.
    line = Line(kind="prepare", name="norm and RoPE, eager", bits=16, stages=(shape.prepare(),))
    yield Trial(line, partial(inputs.prepare, torch.bfloat16))
    for variant in variants:
        yield from ours(inputs, choices, variant)
    for wanted, seen in choices.items():  # FlexAttention compiles for long: last
        plan = AttentionPlan(shape.tiles, (seen,))
        call, why_not = partial(flex.attention, q, k, inputs.v, plan), flex.why_not(device, plan, HEAD_DIM)
        yield trial(inputs, plan, call, kind="flex", name="flex", wanted=wanted, why_not=why_not)
        if device.type == "cpu":
            call = partial(reference.attention, q, k, inputs.v, plan)
            yield trial(inputs, plan, call, kind="reference", name="reference", wanted=wanted)


def ours(inputs: Inputs, choices: Mapping[str, Seen], variant: str) -> Iterator[Trial]:
    """One variant: its prologue, then for each choice of key tiles kernel and both, and before them the choice itself
    where it depends on the content."""
    shape, given = inputs.shape, (inputs.q, inputs.k, inputs.v, inputs.transform)
    before, plan = shape.prologue(variant), plan_8bit(shape.tiles, None, variant)
    line = Line(kind="prologue", name=f"{variant}, prologue", bits=8, variant=variant, stages=(before,))
    if reason := hopper.why_not(inputs.q.device, plan, HEAD_DIM):
        yield Trial(replace(line, name=variant, why_not=reason))
        return
    prologue = partial(hopper.prologue, *given, plan, variant)
    yield Trial(line, prologue)
    # Not before a check asks for them, so that a fault is that line's. With a summary its images are made, too.
    operands: dict[Rest, Made] = {"drop": cache(prologue)}
    for wanted, seen in choices.items():
        plan = plan_8bit(shape.tiles, seen, variant)
        about: dict[str, Any] = {"variant": variant, "wanted": wanted}
        if reason := hopper.why_not(inputs.q.device, plan, HEAD_DIM):
            yield Trial(Line(kind="kernel", name=variant, stages=(), why_not=reason, **facts(plan), **about))
            continue
        own = operands.setdefault(plan.key_tiles[0].rest, cache(partial(hopper.prologue, *given, plan, variant)))
        choose, stages = partial(choice, own, plan), [before]
        if not plan.has_windows_only:
            stages.append(shape.choice(plan))
            line = Line(kind="choice", name=f"{variant}, choice", stages=stages[1:], **facts(plan), **about)
            yield Trial(line, choose)
        chosen = cache(choose)
        alone, together = partial(over, own, chosen, plan, variant), partial(hopper.attention, *given, plan, variant)
        yield trial(inputs, plan, alone, (), chosen, kind="kernel", name=f"{variant}, kernel", **about)
        yield trial(inputs, plan, together, stages, chosen, kind="together", name=f"{variant}, together", **about)


def trial(
    inputs: Inputs,
    plan: AttentionPlan,
    call: Callable[[], Tensor],
    before: Iterable[Amounts] = (),
    chosen: Made | None = None,
    **about: Any,
) -> Trial:
    """One that computes attention. before: the stages before that of attention itself; chosen: what our kernel chose;
    about: fields of its line."""
    variant = about.get("variant")
    line = Line(stages=(*before, inputs.shape.attention(plan, variant)), **facts(plan), **about)
    return Trial(line, call, partial(inputs.check, call, plan, variant, chosen))


def facts(plan: AttentionPlan) -> dict[str, Any]:
    """The fields of a line that say what is computed."""
    (own,) = plan.key_tiles
    chosen = {} if own.top is None else {"top": own.top, "rest": own.rest}
    return {"bits": 8 if plan.is_8bit else 16, "window": own.window, "density": plan.density, **chosen}


def choice(operands: Made, plan: AttentionPlan) -> dict[str, Tensor]:
    """What is chosen for the kernel before it runs; nothing where it sees a window."""
    return {} if plan.has_windows_only else hopper.choose(operands(), plan, 1)


def dense_by(kernel: DenseKernel, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return kernel.load()(q, k, v)  # loaded here, because to import a package may fail, and that belongs on its line


def over(operands: Made, chosen: Made, plan: AttentionPlan, variant: str) -> Tensor:
    return hopper.attention_over({**operands(), **chosen()}, plan, variant, 1)


def tried(trial: Trial, device: torch.device) -> Line:
    """The line with what its check found; it is to be timed unless that is trouble.

    What torch cannot run it refuses with an exception, after warnings with the reasons. That is a `why_not`; a wrong
    result, or any exception of ours, is a fault.
    """
    line = trial.line
    if line.trouble:
        return line
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            errors = trial.check()
            trial.call()
            machine.synchronise(device)
        except Exception as caught:
            refused = line.kind in ("sdpa", "package", "flex")
            kind = "not installed" if isinstance(caught, ModuleNotFoundError) and refused else type(caught).__name__
            reasons = [f"{kind}: {caught}", *(str(one.message) for one in heard if refused)]
            reason = " ".join("; ".join(reasons).split())[:MOST_WORDS]
            return replace(line, why_not=reason) if refused else replace(line, fault=reason)
    # Our kernel is an emulator's, with sums that obey any of its rules; all else is exact attention, or has no check.
    by_rule = errors.get("error_to_emulator")
    worst, limit = (min(by_rule.values()), TOLERANCE) if by_rule else (errors.get("error_to_exact", 0.0), LIMIT)
    if not worst <= limit:  # a NaN, too
        return replace(line, fault=f"the result is wrong: its relative error is {worst:.2g}, and {limit:g} is allowed")
    return replace(line, **errors, samples_ms=())
