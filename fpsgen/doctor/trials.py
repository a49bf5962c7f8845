"""The kernels tried: one compiled, all launched and compared with their emulator."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Literal, get_args

from fpsgen import files, machine
from fpsgen.attention.plan import AttentionPlan, KeyTiles, QKPrecision, Seen
from fpsgen.attention.tiles import TileGrid
from fpsgen.doctor.checks import HEAD_DIM, sentence
from fpsgen.kernels import cache, nvrtc

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

TRIAL_KERNEL = "attention-fp8-fp16"
Outcome = Literal["ok", "skipped", "failed"]
# With these inputs no code is so near a tie that another order of sums decides: of so few tokens, one code of q is 3e-3
# of the result, and a card that is right would be called wrong. With seed 2, a few ulps of q and k are enough.
_SEED = 5


@dataclass(frozen=True)
class TrialCompile:
    """One kernel compiled where it cannot have been before. why: if not ok."""

    kernel: str = TRIAL_KERNEL
    state: Outcome = "ok"
    why: str | None = None
    seconds: float | None = None
    registers: int | None = None


def trial_compile() -> TrialCompile:
    from fpsgen.kernels import listing

    try:
        with files.temporary_folder("doctor") as folder:
            begin = time.perf_counter()
            built = cache.build(listing.KERNELS[TRIAL_KERNEL].kernel, folder)
            seconds = round(time.perf_counter() - begin, 3)
        return TrialCompile(seconds=seconds, registers=built.functions["fps_attention"].registers)
    except nvrtc.NoCompilerError as missing:
        return TrialCompile(state="skipped", why=str(missing))
    except Exception as fault:
        return TrialCompile(state="failed", why=sentence(fault))


@dataclass(frozen=True)
class TrialLaunch:
    """The kernels on the GPU, against their emulator. why: if not ok; errors: by plan, None for no number; sums: by
    plan, the rule by which the GPU's FP8 sums are nearest to the emulator's (`attention.sums`); elementwise: the error
    of what is between products, against PyTorch's operations.

    They are compiled into the cache, as `fpsgen generate` would.
    """

    state: Outcome = "skipped"
    why: str | None = "the trial could not begin"
    errors: dict[str, float | None] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    elementwise: float | None = None


def trial_launch() -> TrialLaunch:
    import torch

    from fpsgen.attention import hopper
    from fpsgen.attention.emulator import TOLERANCE

    device, plans = machine.best_device(), tiny_plans()
    reasons = [hopper.why_not(device, plan, HEAD_DIM) for plan in plans.values()]
    if why := next(filter(None, reasons), None) if torch.cuda.is_available() else "there is no CUDA GPU":
        return TrialLaunch("skipped", why)
    try:
        by_rule = {name: relative_errors(device, plan) for name, plan in plans.items()}
    except Exception as fault:
        return TrialLaunch("failed", sentence(fault))
    sums = {name: min(errors, key=errors.__getitem__) for name, errors in by_rule.items()}
    nearest = {name: errors[sums[name]] for name, errors in by_rule.items()}
    finite = {name: error if isfinite(error) else None for name, error in nearest.items()}  # JSON has no NaN
    if wrong := [f"{name} {error:.2g}" for name, error in nearest.items() if not error <= TOLERANCE]:
        why = f"results are wrong: relative error {', '.join(wrong)}; rounding explains at most {TOLERANCE:g}"
        return TrialLaunch("failed", why, finite, sums)
    try:
        between = elementwise_error(device)
    except Exception as fault:
        return TrialLaunch("failed", sentence(fault), finite, sums)
    if not between <= TOLERANCE:
        why = f"results are wrong: relative error between products {between:.2g}; rounding explains {TOLERANCE:g}"
        return TrialLaunch("failed", why, finite, sums, between if isfinite(between) else None)
    return TrialLaunch("ok", None, finite, sums, between)


def tiny_plans() -> dict[str, AttentionPlan]:
    """One for each variant that plans reach, with tiles of 4 to 24 tokens: a head with a window, a dense one, and one
    that chooses key tiles by their content and has a summary of the rest."""
    tiles = TileGrid.cut((2, 5, 9), (2, 3, 4))
    seen: tuple[Seen, ...] = (tiles.fit((1, 1, 3)), None, KeyTiles(top=0.5, rest="summary"))
    kernels: tuple[QKPrecision, ...] = ("fp8", "int8")
    return {qk: AttentionPlan(tiles, seen, (0, 1, 2), qk=qk, pv="fp8") for qk in kernels}


def relative_errors(device: torch.device, plan: AttentionPlan) -> dict[str, float]:
    """Errors of the hopper backend on `device`, against the emulator of its kernel on the CPU (`emulator.errors`)."""
    import torch

    from fpsgen.attention import emulator, hopper
    from fpsgen.attention.qk import QKTransform, prepare

    generator, heads, tokens = torch.Generator().manual_seed(_SEED), len(plan.heads), plan.tiles.tokens
    q, k, v = torch.randn(3, 1, tokens, heads, HEAD_DIM, generator=generator).bfloat16()
    norms = torch.rand(2, heads * HEAD_DIM, generator=generator) + 0.5
    angles = torch.rand(tokens, HEAD_DIM // 2, generator=generator) * 6
    rope = torch.stack([angles.cos(), angles.sin()], -1)
    here, there = (
        QKTransform(norms[0].to(where), norms[1].to(where), 1e-6, rope.to(where)) for where in ("cpu", device)
    )
    with torch.no_grad():
        found = hopper.attention(q.to(device), k.to(device), v.to(device), there, plan).cpu()
    given = prepare(q, here.norm_q, here), prepare(k, here.norm_k, here), v
    variant = emulator.VARIANTS[hopper.FASTEST[plan.qk]]
    return emulator.errors(found, variant, lambda sums: emulator.emulate(*given, plan, variant, sums=sums))


def elementwise_error(device: torch.device) -> float:
    """The largest error of what `wan.elementwise` makes on `device`, in each precision, against PyTorch on the CPU."""
    import torch

    from fpsgen.attention.emulator import error
    from fpsgen.wan import elementwise
    from fpsgen.wan.linear import Rounded
    from fpsgen.wan.plan import LinearPrecision

    generator = torch.Generator().manual_seed(_SEED)
    x, y = torch.randn(2, 1, 5, 384, generator=generator)
    gate, *modulation = torch.randn(3, 1, 1, 384, generator=generator)
    norm, half = torch.nn.LayerNorm(384, elementwise_affine=False), torch.bfloat16

    def made(where: torch.device) -> Iterator[torch.Tensor]:
        shift, scale = (one.to(where) for one in modulation)
        added, of_norm = y.to(where, half), (x.to(where), y.to(where, half), gate.to(where), norm, half, (shift, scale))
        for precision in get_args(LinearPrecision):
            sums, given = elementwise.add_and_norm(*of_norm, precision)
            for one in (sums, given, elementwise.gelu(added, precision), elementwise.rounded(added, precision)):
                yield (one.of.numbers.float() * one.of.scale if isinstance(one, Rounded) else one).cpu()

    with torch.inference_mode():
        return max(map(error, made(device), made(torch.device("cpu"))))
